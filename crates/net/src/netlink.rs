//! Netlink messages and a synchronous socket: the transport under [`crate::route`] and [`crate::nft`].
//!
//! A message is a 16-byte header, a fixed part that depends on its type, and attributes: length and
//! type (16 bits each, host byte order), value, padding to four bytes. Requests ask for an
//! acknowledgement, so that every error comes back with the sequence number of its request.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`: an acknowledgement, with 0 or a negative error number.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are not flags.
const TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// One or several messages under construction.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Where the current message begins.
    start: usize,
}

/// Where a nested attribute begins, until it is ended.
#[derive(Debug)]
#[must_use = "a nest must be ended"]
pub struct Nest(usize);

impl Messages {
    /// Nothing yet.
    pub fn new() -> Self {
        Messages::default()
    }

    /// Begins a message; `fixed` is the part after the header.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32, fixed: &[u8]) -> &mut Self {
        self.start = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(fixed);
        self.pad();
        self
    }

    /// Adds an attribute to the current message.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Values are short; whoever builds lists splits them below 64 KiB.
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Adds a text attribute, with the final zero byte that the kernel wants.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds a 32-bit attribute in host byte order (rtnetlink).
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a 32-bit attribute in network byte order (netfilter).
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Begins a nested attribute.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.bytes.len());
        self.bytes.extend(4u16.to_ne_bytes());
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        nest
    }

    /// Adds raw bytes inside a nest: the fixed part of a message within a message.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.pad();
        self
    }

    /// Ends a nested attribute.
    pub fn end(&mut self, nest: Nest) -> &mut Self {
        let len = u16::try_from(self.bytes.len() - nest.0).unwrap_or(u16::MAX);
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Ends the current message.
    pub fn finish(&mut self) -> &mut Self {
        let len = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.bytes[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `bytes`: type without flags, value. Stops at the first that is malformed.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A text value without its final zero byte.
pub fn as_text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// A 32-bit value in host byte order.
pub fn as_u32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A message as it came from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its type.
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// A socket of one netlink family in one network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// The netlink families we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `NETLINK_ROUTE`: links, addresses, routes, neighbours.
    Route,
    /// `NETLINK_NETFILTER`: nf_tables, conntrack.
    Netfilter,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // The kernel answers at once; a lost answer must not hang a command for ever.
        rustix::net::sockopt::set_socket_timeout(
            &fd,
            Timeout::Recv,
            Some(Duration::from_secs(10)),
        )?;
        Ok(Socket { fd, sequence: 1 })
    }

    /// Opens a socket in another network namespace: it belongs to it for good, so that afterwards
    /// no thread has to enter. A thread of its own enters, because `setns(2)` to a network
    /// namespace is per thread and is never undone here.
    ///
    /// # Errors
    /// Those of `setns(2)` and `socket(2)`.
    pub fn open_in(family: Family, netns: BorrowedFd<'_>) -> io::Result<Self> {
        crate::netns::run_in(netns, || Socket::open(family))?
    }

    /// Opens a socket, in another network namespace if one is given, that gets a message whenever a
    /// link changes.
    ///
    /// # Errors
    /// Those of `setns(2)`, `socket(2)` and `bind(2)`.
    pub fn open_link_changes(netns: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        /// `RTMGRP_LINK`.
        const LINKS: u32 = 1;
        let socket = match netns {
            Some(netns) => Socket::open_in(Family::Route, netns)?,
            None => Socket::open(Family::Route)?,
        };
        rustix::net::bind(&socket.fd, &SocketAddrNetlink::new(0, LINKS))?;
        Ok(socket)
    }

    /// Waits for any message.
    ///
    /// # Errors
    /// Those of `recv(2)`: `EAGAIN` when none came for long.
    pub fn wait(&mut self) -> io::Result<()> {
        self.receive_each(|_, _, _| true)
    }

    /// A sequence number that was not used yet.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends one message that asks for an acknowledgement and waits for it. Replies that come
    /// before it are returned.
    ///
    /// # Errors
    /// The kernel's error number.
    pub fn request(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Messages),
    ) -> io::Result<Vec<Reply>> {
        let sequence = self.next_sequence();
        let mut messages = Messages::new();
        messages.begin(kind, flags | ACK, sequence, fixed);
        fill(&mut messages);
        messages.finish();
        self.send(messages.bytes())?;
        self.receive(sequence)
    }

    /// Makes room for a datagram of `len` bytes.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`: without CAP_NET_ADMIN the buffer does not grow.
    pub fn reserve(&mut self, len: usize) -> io::Result<()> {
        // The default buffer is 208 KiB and is charged with some overhead.
        if len > 64 * 1024 {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, len * 2)?;
        }
        Ok(())
    }

    /// Sends bytes that are complete messages.
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = rustix::net::send(&self.fd, bytes, SendFlags::empty())?;
        match sent == bytes.len() {
            true => Ok(()),
            false => Err(Errno::MSGSIZE.into()),
        }
    }

    /// Waits for the acknowledgement of `sequence`, or the end of its dump, and returns what came
    /// before it.
    ///
    /// # Errors
    /// The kernel's error number; `EINTR` for a dump that changed under the reader.
    pub fn receive(&mut self, sequence: u32) -> io::Result<Vec<Reply>> {
        let mut replies = Vec::new();
        let mut first_error = None;
        self.receive_each(|seq, kind, body| {
            if seq != sequence {
                return false;
            }
            match kind {
                ERROR => {
                    first_error = error_of(body);
                    true
                }
                DONE => true,
                _ => {
                    replies.push(Reply { kind, body: body.to_vec() });
                    false
                }
            }
        })?;
        match first_error {
            None => Ok(replies),
            Some(error) => Err(error),
        }
    }

    /// Waits for the acknowledgements of all sequence numbers from `first` to `last`, or an error
    /// of one of them or of `batch`, whichever comes first.
    ///
    /// # Errors
    /// The sequence number and the kernel's error.
    pub fn receive_acks(
        &mut self,
        batch: u32,
        first: u32,
        last: u32,
    ) -> Result<(), (u32, io::Error)> {
        let mut failure = None;
        let received = self.receive_each(|seq, kind, body| {
            let ours = seq == batch || (first..=last).contains(&seq);
            if !ours || kind != ERROR {
                return false;
            }
            match error_of(body) {
                Some(error) => {
                    failure = Some((seq, error));
                    true
                }
                None => seq == last,
            }
        });
        received.map_err(|e| (batch, e))?;
        failure.map_or(Ok(()), Err)
    }

    /// Hands every message that comes (sequence, type, body) to `take` until that says it is done.
    fn receive_each(&mut self, mut take: impl FnMut(u32, u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let (len, _) =
                match rustix::net::recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                    Ok(got) => got,
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                };
            let mut rest = &buffer[..len];
            while let Some((seq, kind, body, after)) = split_message(rest) {
                rest = after;
                if take(seq, kind, body) {
                    return Ok(());
                }
            }
        }
    }
}

/// Sequence, type, body, and what follows the first message.
fn split_message(bytes: &[u8]) -> Option<(u32, u16, &[u8], &[u8])> {
    let len = usize::try_from(as_u32(bytes.get(0..4)?)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = as_u32(bytes.get(8..12)?)?;
    let body = bytes.get(HEADER..len)?;
    Some((sequence, kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// The error in an acknowledgement; `None` for success.
fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(body.get(0..4)?.try_into().ok()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut messages = Messages::new();
        messages.begin(16, 0, 7, &[1, 2, 3, 4]);
        messages.text(3, "ab");
        let nest = messages.nest(18);
        messages.u32(1, 5).attr(2, &[9]);
        messages.end(nest);
        messages.finish();
        let (sequence, kind, body, rest) = split_message(messages.bytes()).expect("one message");
        assert_eq!((sequence, kind, rest.len()), (7, 16, 0));
        assert_eq!(find(&body[4..], 3).and_then(as_text), Some("ab"));
        let nested = find(&body[4..], 18).expect("nest");
        assert_eq!(find(nested, 1).and_then(as_u32), Some(5));
        assert_eq!(find(nested, 2), Some(&[9][..]));
    }

    #[test]
    fn truncated_messages_end_the_iteration() {
        assert!(split_message(&[20, 0, 0, 0, 1]).is_none());
        assert_eq!(attrs(&[8, 0, 1]).count(), 0);
        assert_eq!(attrs(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attrs(&[0, 0, 1, 0]).count(), 0);
    }
}
