//! Connections that no descriptor leads to: those that have reached a listener and not the program,
//! and those that the program has closed and that still send. They become what can be carried, or end,
//! within moments.

use std::os::fd::AsFd;

use arctern_sys::diag::{TcpSocket, tcp_sockets};
use arctern_sys::tcp::state;
use arctern_sys::{Pid, proc};

use super::capture::ends_of;
use super::collect::waiting;
use super::waiting::returnable;
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
    pub fn late_arrivals(&mut self, tree: &FrozenTree) -> Result<Vec<Refusal>, CaptureError> {
        let mut waits = false;
        for listener in &self.tcp.listeners {
            waits |= listener.complete()? != 0;
        }
        let gives_back = waits && self.gives_back(tree);
        let listeners = &self.tcp.listeners;
        if listeners.is_empty() {
            return Ok(Vec::new());
        }
        let (list, _) = listing(tree)?;
        let half_open: Vec<_> =
            list.iter().filter(|s| s.ino == 0 && s.state == state::SYN_RECV).collect();
        // What came while the network was being locked is not among what is locked.
        let locked = self.connections();
        let mut refusals = Vec::new();
        for listener in listeners {
            let complete = listener.complete()?;
            let begun = half_open.iter().filter(|s| listener.is_of(s)).count();
            let stays = || {
                let mut theirs = list.iter().filter(|s| self.tcp.waits(s) && listener.is_of(s));
                gives_back
                    && returnable(&listener.socket, listener.address.port(), &list)
                    && theirs.all(|s| locked.contains(&ends_of(s)))
            };
            if begun != 0 || complete != 0 && !stays() {
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
        // The end itself counts as one byte: a peer that never hears of it waits for ever.
        for socket in draining.filter(|s| s.send_queue > 0) {
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
