//! Sockets of a network namespace, as the kernel lists them to sock_diag(7).
//!
//! Peers of unix sockets, waiting connections and what was shut down are told nowhere else. The
//! namespace is entered on a thread of its own.

mod tcp;

pub use tcp::{TcpSocket, tcp_sockets};

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// One unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Inode number: the one of `socket:[INO]`.
    pub ino: u32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: u8,
    /// TCP_ESTABLISHED (1), TCP_CLOSE (7) or TCP_LISTEN (10).
    pub state: u8,
    /// Name as in sun_path: a path, or an abstract name that begins with a zero byte.
    pub name: Vec<u8>,
    /// Inode of the peer; 0: the peer is closed, or waits to be accepted.
    pub peer: Option<u32>,
    /// Listening: inodes of the sockets whose connections wait to be accepted, 0 for those that are
    /// closed already.
    pub waiting: Vec<u32>,
    /// Bytes that can be read; listening: connections that wait.
    pub receive_queue: u32,
    /// Bytes that the peer has not read; listening: the backlog.
    pub send_queue: u32,
    /// Bits: 1 receiving, 2 sending was shut down.
    pub shutdown: u8,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const HEADER: usize = 16;

/// Lists the unix sockets of a network namespace; None: our own.
pub fn unix_sockets(namespace: Option<BorrowedFd<'_>>) -> io::Result<HashMap<u32, UnixSocket>> {
    // struct unix_diag_req: family, states, what to show: name, peer, waiting connections, queues.
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend((1u32 | 4 | 8 | 16).to_ne_bytes());
    request.extend([0; 8]);
    let mut sockets = HashMap::new();
    list(namespace, &[request], |message| {
        let socket = unix_socket(message)?;
        sockets.insert(socket.ino, socket);
        Some(())
    })?;
    Ok(sockets)
}

/// Asks for lists of sockets in a network namespace, and hands every answer to `each`, which says
/// None to what it does not understand.
fn list(
    namespace: Option<BorrowedFd<'_>>,
    requests: &[Vec<u8>],
    mut each: impl FnMut(&[u8]) -> Option<()> + Send,
) -> io::Result<()> {
    let mut all = || requests.iter().try_for_each(|request| list_here(request, &mut each));
    let Some(namespace) = namespace else { return all() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            all()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the listing thread failed")))
    })
}

fn list_here(request: &[u8], each: &mut impl FnMut(&[u8]) -> Option<()>) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if parse(&buffer[..n], each)? {
            return Ok(());
        }
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes the sockets of one datagram of answers. True when the list is complete.
fn parse(mut bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Option<()>) -> io::Result<bool> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag answer not understood");
    while bytes.len() >= HEADER {
        let length = word(bytes, 0).ok_or_else(bad)? as usize;
        let message = bytes.get(HEADER..length).ok_or_else(bad)?;
        match half(bytes, 4).ok_or_else(bad)? {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let error = word(message, 0).ok_or_else(bad)? as i32;
                return Err(io::Error::from_raw_os_error(-error));
            }
            SOCK_DIAG_BY_FAMILY => each(message).ok_or_else(bad)?,
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// struct unix_diag_msg (family, type, state, ino, cookie), then attributes.
fn unix_socket(message: &[u8]) -> Option<UnixSocket> {
    let mut socket = UnixSocket {
        kind: *message.get(1)?,
        state: *message.get(2)?,
        ino: word(message, 4)?,
        ..UnixSocket::default()
    };
    let mut rest = message.get(16..)?;
    while rest.len() >= 4 {
        let length = half(rest, 0)? as usize;
        let value = rest.get(4..length)?;
        match half(rest, 2)? {
            0 => socket.name = value.to_vec(),
            2 => socket.peer = Some(word(value, 0)?),
            3 => socket.waiting = value.chunks_exact(4).filter_map(|c| word(c, 0)).collect(),
            4 => {
                socket.receive_queue = word(value, 0)?;
                socket.send_queue = word(value, 4)?;
            }
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    fn ino(fd: impl AsFd) -> u32 {
        nix::sys::stat::fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn pairs_listeners_and_waiting_connections() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"abc").unwrap();
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let name = format!("arctern-diag-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let client = UnixStream::connect_addr(&address).unwrap();
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        for sockets in [unix_sockets(None).unwrap(), unix_sockets(Some(own.as_fd())).unwrap()] {
            let (one, other) = (&sockets[&ino(&a)], &sockets[&ino(&b)]);
            assert_eq!((one.peer, one.state, one.kind), (Some(other.ino), 1, 1));
            assert_eq!((one.receive_queue, one.shutdown, other.shutdown), (3, 1, 2));
            let listening = &sockets[&ino(&listener)];
            assert_eq!(listening.state, 10);
            assert_eq!(listening.name, [b"\0", name.as_bytes()].concat());
            assert_eq!(listening.waiting, [ino(&client)]);
            assert_eq!((listening.receive_queue, listening.send_queue > 0), (1, true));
            assert_eq!(sockets[&ino(&client)].peer, Some(0));
        }
    }

    #[test]
    fn damaged_answers_are_errors() {
        let mut each = |message: &[u8]| unix_socket(message).map(drop);
        let mut message = vec![0; 20];
        message[0] = 60;
        message[4] = 20;
        assert!(parse(&message, &mut each).is_err());
        message[0] = 20;
        assert!(parse(&message, &mut each).is_err());
        message[4] = 3;
        assert!(parse(&message, &mut each).unwrap());
    }
}
