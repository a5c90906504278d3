//! What becomes of a TCP socket that a descriptor leads to: carried, dropped or refused.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use arctern_image::messages::TcpOptsEntry;
use arctern_sys::diag::{TcpSocket, tcp_sockets};
use arctern_sys::fd::{socket_int, socket_option};
use arctern_sys::tcp::{self, state};
use arctern_sys::{Pid, proc};

use super::capture::{has_urgent_data, on_wire};
use super::shape::shape;
use super::waiting::returnable;
use crate::error::{CaptureError, Refusal, Remedy, Subject};
use crate::options::TcpPolicy;
use crate::state::files::capture::FileCollector;
use crate::state::files::descriptor::Descriptor;
use crate::state::files::inet::{CLOSE, LISTEN, ends};

/// Names of the kernel's TCP states, from 1.
const STATES: [&str; 12] = [
    "established",
    "connecting (SYN_SENT)",
    "being accepted (SYN_RECV)",
    "closing (FIN_WAIT1)",
    "closing (FIN_WAIT2)",
    "closing (TIME_WAIT)",
    "closed",
    "half closed by the peer (CLOSE_WAIT)",
    "closing (LAST_ACK)",
    "listening",
    "closing (CLOSING)",
    "being accepted (NEW_SYN_RECV)",
];

/// A socket's own address and its peer's.
type Ends = (Option<SocketAddr>, Option<SocketAddr>);

/// Connections that wait at a listener.
pub(super) fn waiting(subject: Subject, count: u32) -> Refusal {
    Refusal {
        subject,
        cause: format!("{count} connection(s) wait to be accepted"),
        remedy: Remedy::try_again(
            "when the program has accepted them, or drop them with --skip-in-flight",
        ),
    }
}

/// Options of a TCP socket that CRIU's images have a place for.
pub(in crate::state::files) fn options(socket: &impl AsFd) -> TcpOptsEntry {
    let number = |name| socket_int(socket, libc::IPPROTO_TCP, name).ok();
    let on = |name| number(name).is_some_and(|value| value != 0).then_some(true);
    TcpOptsEntry {
        cork: on(libc::TCP_CORK),
        nodelay: on(libc::TCP_NODELAY),
        keepcnt: number(libc::TCP_KEEPCNT).map(|n| n as u32),
        keepidle: number(libc::TCP_KEEPIDLE).map(|n| n as u32),
        keepintvl: number(libc::TCP_KEEPINTVL).map(|n| n as u32),
    }
}

impl FileCollector {
    /// State and backlog that a TCP socket has in the images; None if it was refused. `ends` are
    /// corrected where the socket itself does not tell.
    pub(in crate::state::files) fn tcp_socket(
        &mut self,
        d: &Descriptor<'_>,
        found: &mut Ends,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<(u32, u32)>, CaptureError> {
        let info = tcp::info(&d.file).map_err(d.failed("read the state of the TCP socket"))?;
        match (info.state, self.options.tcp) {
            (state::CLOSE, _) => return ended(d, refusals),
            (state::LISTEN, _) => return self.listener(d, info, found.0, refusals),
            (_, TcpPolicy::Close) => {
                *found = (None, None);
                return Ok(Some((CLOSE, 0)));
            }
            _ => {}
        }
        let listed = self.listed(d)?;
        if let (Some(listed), None) = (listed, found.1) {
            // While it connects it does not tell its peer.
            found.1 = Some(match (listed.peer, found.0) {
                (SocketAddr::V4(v4), Some(SocketAddr::V6(_))) => {
                    SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
                }
                (peer, _) => peer,
            });
        }
        let state = info.state;
        let name = STATES.get(usize::from(state) - 1).copied().unwrap_or("in an unknown state");
        let mut refuse = |cause: &str, remedy: Remedy| {
            let cause = format!("TCP {} {cause}", ends(found.0, found.1));
            refusals.push(d.refuse(cause, remedy));
            Ok(None)
        };
        if self.options.tcp == TcpPolicy::Refuse {
            return refuse(
                &format!("is {name}"),
                "carry live connections with --tcp-established, or close it".into(),
            );
        }
        if d.passed {
            return refuse(
                &format!("is {name} and on its way to the program"),
                Remedy::try_again("when the program has received it"),
            );
        }
        let (Some(local), Some(peer)) = *found else {
            return refuse(&format!("is {name}, and its addresses are unknown"), "close it".into());
        };
        if shape(state).is_none() && state != state::SYN_SENT {
            return refuse(&format!("is {name}"), Remedy::try_again("when it is connected"));
        }
        if has_urgent_data(&d.file).map_err(d.failed("look for urgent data"))? {
            return refuse(
                "has urgent data, whose place in the stream cannot be restored",
                Remedy::try_again("when the program has read it"),
            );
        }
        let mut upper = [0; 16];
        let upper_len = socket_option(&d.file, libc::IPPROTO_TCP, libc::TCP_ULP, &mut upper);
        if upper_len.is_ok_and(|len| len != 0) {
            let name = String::from_utf8_lossy(&upper);
            let name = name.trim_end_matches('\0');
            return refuse(
                &format!("is handled by the kernel's {name} layer, whose keys cannot be read"),
                "switch kernel TLS off in the program".into(),
            );
        }
        if let Some(keys) = keys(&d.file, listed) {
            return refuse(&format!("has {keys} keys, which cannot be read"), "close it".into());
        }
        self.tcp.add(d, state, on_wire(local, peer), options(&d.file))?;
        Ok(Some((state.into(), 0)))
    }

    fn listener(
        &mut self,
        d: &Descriptor<'_>,
        info: tcp::Info,
        source: Option<SocketAddr>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<(u32, u32)>, CaptureError> {
        let listed = self.listed(d)?;
        if let Some(keys) = keys(&d.file, listed) {
            let cause = format!(
                "the listener {} has {keys} keys, which cannot be read",
                ends(source, None)
            );
            refusals.push(d.refuse(cause, "close it"));
            return Ok(None);
        }
        if !self.options.skip_in_flight {
            if info.unacknowledged != 0 && !self.can_take(d, source) {
                let part = format!("{} ({})", d.part(), ends(source, None));
                refusals.push(waiting(d.task().subject(part), info.unacknowledged));
                return Ok(None);
            }
            if let Some(address) = source {
                self.tcp.add_listener(d, address)?;
            }
        }
        Ok(Some((LISTEN, info.backlog)))
    }

    /// Whether the connections that wait at a listener can be taken and given back.
    fn can_take(&mut self, d: &Descriptor<'_>, source: Option<SocketAddr>) -> bool {
        let list = self.tcp.listing.as_deref().unwrap_or_default();
        source.is_some_and(|address| returnable(&d.file, address.port(), list))
            && self.gives_back(d.tree)
    }

    /// The socket in the kernel's list of its namespace, which is made once.
    fn listed(&mut self, d: &Descriptor<'_>) -> Result<Option<TcpSocket>, CaptureError> {
        let list = match &mut self.tcp.listing {
            Some(list) => list,
            empty => {
                let of = |pid| proc::namespace(pid, "net").ok().flatten();
                let (own, theirs) = (of(Pid(std::process::id() as i32)), of(d.task().pid));
                let list = if own == theirs {
                    tcp_sockets(None)
                } else {
                    std::fs::File::open(proc::path(d.task().pid, "ns/net"))
                        .and_then(|file| tcp_sockets(Some(file.as_fd())))
                };
                empty.insert(list.map_err(d.failed("list the TCP sockets of its namespace"))?)
            }
        };
        let ino = d.stat.st_ino as u32;
        Ok(list.iter().find(|socket| socket.ino == ino).copied())
    }
}

/// A socket without connection; one that had a connection may have unread data, for which a new
/// socket has no place.
fn ended(
    d: &Descriptor<'_>,
    refusals: &mut Vec<Refusal>,
) -> Result<Option<(u32, u32)>, CaptureError> {
    let unread = tcp::lengths(&d.file).map_err(d.failed("ask for unread data"))?.unread;
    if unread == 0 {
        return Ok(Some((CLOSE, 0)));
    }
    refusals.push(d.refuse(
        format!("its TCP connection has ended, and {unread} bytes of it wait to be read"),
        Remedy::try_again("when the program has read them"),
    ));
    Ok(None)
}

/// Which kind of keys sign the segments, if any do.
fn keys(socket: &impl AsFd, listed: Option<TcpSocket>) -> Option<&'static str> {
    if listed.is_some_and(|socket| socket.signed) {
        return Some("MD5");
    }
    tcp::has_authentication(socket).then_some("TCP-AO")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_name() {
        assert_eq!(STATES[usize::from(state::ESTABLISHED) - 1], "established");
        assert_eq!(STATES[usize::from(state::LISTEN) - 1], "listening");
        assert_eq!(STATES[usize::from(state::CLOSE) - 1], "closed");
    }
}
