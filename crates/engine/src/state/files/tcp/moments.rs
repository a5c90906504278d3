//! Connections that no descriptor leads to: those that have reached a listener and not the program,
//! and those that the program has closed and that still send. They become what can be carried, or end,
//! within moments.

use std::os::fd::AsFd;

use arctern_sys::diag::{TcpSocket, tcp_sockets};
use arctern_sys::tcp::{self, state};
use arctern_sys::{Pid, proc};

use super::capture::failed;
use super::collect::waiting;
use crate::error::{CaptureError, Refusal, Remedy};
use crate::state::files::capture::FileCollector;
use crate::tree::FrozenTree;

/// Lists the TCP sockets of the tree's network namespace, and whether that is our own.
fn listing(tree: &FrozenTree) -> Result<(Vec<TcpSocket>, bool), CaptureError> {
    let root = &tree.tasks[0];
    let of = |pid| proc::namespace(pid, "net").ok().flatten();
    let own = of(Pid(std::process::id() as i32)) == of(root.pid);
    let list = if own {
        tcp_sockets(None)
    } else {
        std::fs::File::open(proc::path(root.pid, "ns/net"))
            .and_then(|file| tcp_sockets(Some(file.as_fd())))
    };
    Ok((list.map_err(root.failed("", "list the TCP sockets of its namespace"))?, own))
}

impl FileCollector {
    /// Connections that reached a listener after it was looked at, whether they are complete or not.
    /// Once the network is locked there are no more.
    pub fn late_arrivals(&self, tree: &FrozenTree) -> Result<Vec<Refusal>, CaptureError> {
        let listeners = &self.tcp.listeners;
        if listeners.is_empty() {
            return Ok(Vec::new());
        }
        let (list, _) = listing(tree)?;
        let half_open: Vec<_> =
            list.iter().filter(|s| s.ino == 0 && s.state == state::SYN_RECV).collect();
        let mut refusals = Vec::new();
        for listener in listeners {
            let at = |s: &&&TcpSocket| {
                let ip = listener.address.ip();
                s.local.port() == listener.address.port()
                    && (ip.is_unspecified() || ip.to_canonical() == s.local.ip())
            };
            let complete = tcp::info(&listener.socket)
                .map_err(failed(&listener.subject, "look at the listener"))?
                .unacknowledged;
            let begun = half_open.iter().filter(at).count();
            if complete != 0 || begun != 0 {
                let begun = u32::try_from(begun).unwrap_or(u32::MAX);
                refusals.push(waiting(listener.subject.clone(), complete.saturating_add(begun)));
            }
        }
        Ok(refusals)
    }

    /// Connections that the program has closed and that still have something to send. In a namespace
    /// that others use too nobody knows whose they are; there they go on without the tree.
    pub fn check_draining(
        &self,
        tree: &FrozenTree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        let (list, own) = listing(tree)?;
        if own {
            return Ok(());
        }
        let ending = [state::FIN_WAIT1, state::LAST_ACK, state::CLOSING];
        let draining = list.iter().filter(|s| s.ino == 0 && ending.contains(&s.state));
        // A FIN alone is no data, and counts as one byte.
        for socket in draining.filter(|s| s.send_queue > 1) {
            refusals.push(tree.tasks[0].refuse(
                "",
                format!(
                    "TCP {} -> {} was closed by the program and still has {} bytes to send",
                    socket.local, socket.peer, socket.send_queue
                ),
                Remedy::try_again("when they are sent, or drop them with --skip-in-flight"),
            ));
        }
        Ok(())
    }
}
