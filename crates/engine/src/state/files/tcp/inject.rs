//! Sends segments in the name of peers, from within the tree's network namespace.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use arctern_sys::Pid;
use arctern_sys::diag::tcp_sockets;
use arctern_sys::handshake::{Agreement, Handshakes};
use arctern_sys::namespace::{Kind, inside};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::packet::{self, Segment};
use crate::options::Connection;

/// Raw sockets of a network namespace, made when the first segment needs one.
#[derive(Debug)]
pub(in crate::state::files) struct Injector {
    /// A process of the namespace.
    root: Pid,
    handshakes: Option<Handshakes>,
    /// IPv4, IPv6.
    sockets: [Option<OwnedFd>; 2],
    streams: Vec<Stream>,
}

/// What a peer had sent on a connection that nobody has accepted.
#[derive(Debug)]
pub(super) struct Stream {
    pub ends: Connection,
    /// The segment of its first byte.
    pub first: Segment,
    pub data: Vec<u8>,
    /// The peer has closed its side behind it.
    pub fin: bool,
}

impl Stream {
    /// What the receive queue counts when all of it has arrived.
    fn length(&self) -> usize {
        self.data.len() + usize::from(self.fin)
    }
}

impl Injector {
    pub(super) fn new(root: Pid, handshakes: Option<Handshakes>) -> Self {
        Injector { root, handshakes, sockets: [None, None], streams: Vec::new() }
    }

    /// Delivers a segment to our end.
    pub(super) fn send(
        &mut self,
        ends: &Connection,
        segment: Segment,
        data: &[u8],
    ) -> io::Result<()> {
        packet::deliver(self.raw(ends)?, ends, segment, data)
    }

    /// Sends a segment of ours to the peer.
    pub(super) fn answer(&mut self, ends: &Connection, segment: Segment) -> io::Result<()> {
        packet::answer(self.raw(ends)?, ends, segment)
    }

    fn raw(&mut self, ends: &Connection) -> io::Result<&OwnedFd> {
        let v6 = ends.local.is_ipv6();
        Ok(match &mut self.sockets[usize::from(v6)] {
            Some(raw) => raw,
            empty => empty.insert(make(self.root, v6)?),
        })
    }

    /// Delivers the last segment of a handshake to a listener, which takes the connection from it, and
    /// waits until it is `done`.
    pub(super) fn shake_hands(
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

    /// Notes what was sent on a connection that waits: [`Injector::confirm`] delivers it.
    pub(super) fn stream(&mut self, stream: Stream) {
        if stream.length() != 0 {
            self.streams.push(stream);
        }
    }

    fn send_stream(&mut self, stream: &Stream) -> io::Result<()> {
        const CHUNK: usize = 8 * 1024;
        let mut segment = stream.first;
        for chunk in stream.data.chunks(CHUNK) {
            self.send(&stream.ends, segment, chunk)?;
            segment.sequence = segment.sequence.wrapping_add(chunk.len() as u32);
        }
        if stream.fin {
            self.send(&stream.ends, Segment { fin: true, ..segment }, &[])?;
        }
        Ok(())
    }

    /// Delivers the streams, and makes sure that every byte is in its receive queue: a busy loopback
    /// device drops packets. Not before all hands are shaken, whose programs would meet the packets.
    pub(super) fn confirm(&mut self) -> io::Result<()> {
        const ATTEMPTS: u32 = 100;
        let mut missing = std::mem::take(&mut self.streams);
        missing.iter().try_for_each(|stream| self.send_stream(stream))?;
        for _ in 0..ATTEMPTS {
            if missing.is_empty() {
                return Ok(());
            }
            let queues: HashMap<_, _> = inside(self.root, &[Kind::Net], || tcp_sockets(None))?
                .into_iter()
                .map(|socket| ((socket.local, socket.peer), socket.receive_queue as usize))
                .collect();
            missing.retain(|stream| {
                let queue = queues.get(&(stream.ends.local, stream.ends.peer));
                queue.is_none_or(|queue| *queue < stream.length())
            });
            for stream in &missing {
                self.send_stream(stream)?;
            }
        }
        let Some(Stream { ends, data, .. }) = missing.first() else { return Ok(()) };
        Err(io::Error::other(format!(
            "the {} unread bytes of {} -> {} do not pass the loopback device of the namespace",
            data.len(),
            ends.peer,
            ends.local
        )))
    }

    /// Waits until a segment has had its effect. It passes the loopback device, mostly before its
    /// sender returns; the kernel has no event for it.
    pub(super) fn settled(&self, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
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
