//! TCP sockets, IPv4 and IPv6, with those that no descriptor leads to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::{half, list, word};

/// One TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Inode number: the one of `socket:[INO]`; 0 when the program has closed it, or has not accepted
    /// it yet.
    pub ino: u32,
    /// See [`crate::tcp::state`].
    pub state: u8,
    /// Its own address; IPv4 addresses are plain, also of IPv6 sockets.
    pub local: SocketAddr,
    /// Its peer's; unspecified without one.
    pub peer: SocketAddr,
    /// Bytes that can be read; listening: connections that wait.
    pub receive_queue: u32,
    /// Bytes that are not acknowledged; listening: the backlog.
    pub send_queue: u32,
    /// It has keys for MD5 signatures (shown to CAP_NET_ADMIN only).
    pub signed: bool,
}

const INET_DIAG_INFO: u8 = 2;
const INET_DIAG_MD5SIG: u16 = 18;

/// Lists the TCP sockets of a network namespace in all states but TIME_WAIT; None: our own.
pub fn tcp_sockets(namespace: Option<BorrowedFd<'_>>) -> io::Result<Vec<TcpSocket>> {
    let requests = [libc::AF_INET, libc::AF_INET6].map(|family| {
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states, then an empty
        // struct inet_diag_sockid.
        // Keys are told to those only who ask for INET_DIAG_INFO, too.
        let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0];
        request.extend((0xfff_u32 & !(1 << crate::tcp::state::TIME_WAIT)).to_ne_bytes());
        request.extend([0; 48]);
        request
    });
    let mut sockets = Vec::new();
    list(namespace, &requests, |message| {
        sockets.push(tcp_socket(message)?);
        Some(())
    })?;
    Ok(sockets)
}

/// struct inet_diag_msg: family, state, timer, retransmissions, struct inet_diag_sockid (ports and
/// addresses in network order, interface, cookie), then expiry, queues, uid, inode; attributes.
fn tcp_socket(message: &[u8]) -> Option<TcpSocket> {
    let family = i32::from(*message.first()?);
    let address = |port: usize, ip: usize| {
        let ip = match family {
            libc::AF_INET6 => {
                let bytes: [u8; 16] = message.get(ip..ip + 16)?.try_into().ok()?;
                IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
            }
            _ => {
                let bytes: [u8; 4] = message.get(ip..ip + 4)?.try_into().ok()?;
                IpAddr::V4(Ipv4Addr::from(bytes))
            }
        };
        let port: [u8; 2] = message.get(port..port + 2)?.try_into().ok()?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
    };
    let mut socket = TcpSocket {
        state: *message.get(1)?,
        local: address(4, 8)?,
        peer: address(6, 24)?,
        receive_queue: word(message, 56)?,
        send_queue: word(message, 60)?,
        ino: word(message, 68)?,
        signed: false,
    };
    let mut rest = message.get(72..)?;
    while rest.len() >= 4 {
        let length = half(rest, 0)? as usize;
        rest.get(4..length)?;
        socket.signed |= half(rest, 2)? == INET_DIAG_MD5SIG;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn both_ends_are_listed_with_their_queues() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"hello").unwrap();
        let ino = nix::sys::stat::fstat(client.as_fd()).unwrap().st_ino as u32;
        let sockets = tcp_sockets(None).unwrap();
        let ours = sockets.iter().find(|s| s.ino == ino).unwrap();
        assert_eq!(ours.local, client.local_addr().unwrap());
        assert_eq!(ours.peer, client.peer_addr().unwrap());
        assert_eq!((ours.state, ours.signed), (1, false));
        let theirs = sockets.iter().find(|s| s.local == ours.peer && s.peer == ours.local);
        // Waits to be accepted: nobody's descriptor yet.
        assert_eq!(theirs.map(|s| (s.ino, s.receive_queue)), Some((0, 5)));
    }

    #[test]
    fn damaged_answers_are_not_understood() {
        assert_eq!(tcp_socket(&[2; 71]), None);
        assert_eq!(tcp_socket(&[2; 76]), None);
    }
}
