//! Sends segments in the name of peers, from within the tree's network namespace.

use std::io;
use std::os::fd::OwnedFd;

use arctern_sys::Pid;
use arctern_sys::handshake::{Agreement, Handshakes};
use arctern_sys::namespace::{Kind, inside};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::packet::{self, Segment};
use crate::options::Connection;

/// Raw sockets of a network namespace, made when the first segment needs one.
pub(super) struct Injector {
    /// A process of the namespace.
    root: Pid,
    handshakes: Option<Handshakes>,
    /// IPv4, IPv6.
    sockets: [Option<OwnedFd>; 2],
}

impl Injector {
    pub fn new(root: Pid, handshakes: Option<Handshakes>) -> Self {
        Injector { root, handshakes, sockets: [None, None] }
    }

    /// Delivers a segment to our end.
    pub fn send(&mut self, ends: &Connection, segment: Segment, data: &[u8]) -> io::Result<()> {
        let v6 = ends.local.is_ipv6();
        let raw = match &mut self.sockets[usize::from(v6)] {
            Some(raw) => raw,
            empty => empty.insert(make(self.root, v6)?),
        };
        packet::deliver(raw, ends, segment, data)
    }

    /// Delivers the last segment of a handshake to a listener, which takes the connection from it, and
    /// waits until it is `done`.
    pub fn shake_hands(
        &mut self,
        ends: &Connection,
        agreement: &Agreement,
        segment: Segment,
        mut done: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<()> {
        let expected = {
            let handshakes = match &mut self.handshakes {
                Some(handshakes) => handshakes,
                empty => empty.insert(inside(self.root, &[Kind::Net], Handshakes::probe)?),
            };
            let expect = || handshakes.expect(ends.local, ends.peer, agreement, packet::tag());
            inside(self.root, &[Kind::Net], expect)?
        };
        // Until the segment has arrived, which on a busy machine is later.
        // A busy loopback device drops packets.
        let mut result = Ok(());
        for _ in 0..20 {
            result = self.send(ends, segment, &[]).and_then(|()| self.settled(&mut done));
            if result.is_ok() {
                break;
            }
        }
        drop(expected);
        result
    }

    /// Waits until a segment has had its effect. It passes the loopback device, mostly before its
    /// sender returns; the kernel has no event for it.
    pub fn settled(&self, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
        const ATTEMPTS: u32 = 100;
        for _ in 0..ATTEMPTS {
            if done()? {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(io::Error::other("a packet does not pass the loopback device of the namespace"))
    }
}

fn make(root: Pid, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let raw = inside(root, &[Kind::Net], || {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(socket(family, SockType::Raw, flags, SockProtocol::Raw)?)
    })?;
    packet::prepare(&raw, v6)?;
    Ok(raw)
}
