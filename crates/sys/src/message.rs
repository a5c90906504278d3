//! Messages of sockets with everything that comes along: the sender's address, control messages,
//! descriptors (recvmsg(2), cmsg(3), unix(7), ip(7)).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::check;

/// Room for control messages: as many descriptors as one message can carry (SCM_MAX_FD, 253),
/// credentials and addresses.
const CONTROL_BYTES: usize = 2048;

/// The sender as a pidfd, where the reader asked for it (SO_PASSPIDFD, kernel 6.5). It is closed.
const SCM_PIDFD: i32 = 4;

/// What was received besides the bytes.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes that are in the buffer.
    pub len: usize,
    /// The message was longer than the buffer (MSG_TRUNC).
    pub cut: bool,
    /// The sender's sockaddr, empty where it has none.
    pub name: Vec<u8>,
    /// Control messages without descriptors.
    pub control: Vec<Control>,
    /// Descriptors (SCM_RIGHTS), close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Level, as of an option.
    pub level: i32,
    /// Type within the level.
    pub kind: i32,
    /// Its data.
    pub data: Vec<u8>,
}

impl Received {
    /// The data of a control message.
    pub fn control(&self, level: i32, kind: i32) -> Option<&[u8]> {
        let mut all = self.control.iter();
        all.find(|c| (c.level, c.kind) == (level, kind)).map(|c| c.data.as_slice())
    }

    /// A control message that is an int.
    pub fn number(&self, level: i32, kind: i32) -> Option<i32> {
        let data = self.control(level, kind)?;
        match *data {
            [byte] => Some(byte.into()),
            _ => Some(i32::from_ne_bytes(data.get(..4)?.try_into().ok()?)),
        }
    }
}

/// Receives one message. Control messages that do not fit are an error: a descriptor in them would
/// be lost.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: i32) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_BYTES / 8];
    let mut name = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as libc::socklen_t;
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` points at buffers of the sizes that it names, which outlive the call.
    let n = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &mut header, flags) };
    let len = check(n as libc::c_long)? as usize;
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut received = Received {
        len: len.min(buffer.len()),
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
        name: name[..(header.msg_namelen as usize).min(name.len())].to_vec(),
        ..Received::default()
    };
    for message in parse(bytes.get(..header.msg_controllen).unwrap_or_default()) {
        let rights = match (message.level, message.kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => true,
            (libc::SOL_SOCKET, SCM_PIDFD) => false,
            _ => {
                received.control.push(message);
                continue;
            }
        };
        let numbers = message.data.chunks_exact(4);
        let numbers = numbers.map(|n| i32::from_ne_bytes([n[0], n[1], n[2], n[3]]));
        for number in numbers.filter(|number| *number >= 0) {
            // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            if rights {
                received.descriptors.push(fd);
            }
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("what came with the message does not fit"));
    }
    Ok(received)
}

/// Control messages as they lie in memory: struct cmsghdr (length with header, level, type), data,
/// filled up to a multiple of 8.
fn parse(mut bytes: &[u8]) -> Vec<Control> {
    const HEADER: usize = 16;
    let mut all = Vec::new();
    while bytes.len() >= HEADER {
        let word = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let length = word(0) as usize;
        let Some(data) = bytes.get(HEADER..length) else { break };
        all.push(Control { level: word(8), kind: word(12), data: data.to_vec() });
        bytes = bytes.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn descriptors_and_numbers_come_along() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let fds = [a.as_raw_fd(), b.as_raw_fd()];
        let iov = [io::IoSlice::new(b"two")];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(a.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        let mut buffer = [0; 2];
        let peeked = receive(&b, &mut buffer, libc::MSG_PEEK).unwrap();
        assert_eq!((peeked.len, peeked.cut, peeked.descriptors.len()), (2, true, 2));
        let received = receive(&b, &mut [0; 8], 0).unwrap();
        assert_eq!((received.len, received.cut, received.descriptors.len()), (3, false, 2));
        assert!(received.control.is_empty());
    }

    #[test]
    fn damaged_control_messages_end_the_list() {
        let mut bytes = vec![0; 40];
        bytes[0] = 20;
        bytes[8] = 41;
        bytes[16] = 7;
        bytes[24] = 200;
        let all = parse(&bytes);
        assert_eq!(all, [Control { level: 41, kind: 0, data: vec![7, 0, 0, 0] }]);
        let received = Received { control: all, ..Received::default() };
        assert_eq!((received.number(41, 0), received.number(41, 1)), (Some(7), None));
        assert!(parse(&[0; 16]).is_empty() || parse(&[0; 16])[0].data.is_empty());
    }
}
