//! UDP: what is unread in a socket, and what it has not sent yet. Capture; the restore is in
//! [`super::udp_restore`], the socket itself in [`super::inet`].
//!
//! Datagrams are peeked at with SO_PEEK_OFF, with the sender's address, the address that they were
//! sent to (IP_RECVORIGDSTADDR), TTL and type of service; the options for that are put back. CRIU's
//! images have no place for them: they are in a file of our own.
//!
//! Refused: data that was sent in parts and waits for the last (UDP_CORK, MSG_MORE), datagrams of
//! UDP-Lite, of link-local or unspecified senders, to a group or broadcast address that the socket is
//! bound to, and those too long for one packet. Not kept: an ICMP error that nobody read, and an
//! empty datagram that was peeked at before, which the kernel does not show a second time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::DatagramEntry;
use arctern_sys::fd::{set_socket_int, socket_int, socket_option};
use arctern_sys::message::{Received, receive};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::capture::FileCollector;
use super::descriptor::Descriptor;
use super::inet;
use crate::error::{CaptureError, Refusal, Remedy};
use crate::tree::FrozenTree;

const SO_PEEK_OFF: i32 = 42;
pub(super) const SO_MEMINFO: i32 = 55;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_RECVTCLASS: i32 = 66;
const IPV6_RECVORIGDSTADDR: i32 = 74;
const UDP_GRO: i32 = 104;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// The longest datagram that one packet of a local connection holds, by family: 65535 bytes without
/// the headers.
const LONGEST: [usize; 2] = [65535 - 20 - 8, 65535 - 40 - 8];

/// A UDP socket that has something unread.
#[derive(Debug)]
pub(super) struct Member {
    id: u32,
    index: usize,
    fd: i32,
    passed: bool,
    part: String,
    v6: bool,
    /// The address that it is bound to, if it is one.
    local: Option<IpAddr>,
}

/// An unread datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub data: Vec<u8>,
    pub source: SocketAddr,
    pub destination: IpAddr,
    pub ttl: Option<u8>,
    pub tos: Option<u8>,
}

impl FileCollector {
    /// Looks at a UDP socket that will be entry `id`, bound to `local`. False: it was refused.
    pub(super) fn udp(
        &mut self,
        d: &Descriptor<'_>,
        id: u32,
        v6: bool,
        local: Option<SocketAddr>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<bool, CaptureError> {
        // SK_MEMINFO_RMEM_ALLOC, RCVBUF, WMEM_ALLOC.
        let mut memory = [0; 12];
        socket_option(&d.file, libc::SOL_SOCKET, SO_MEMINFO, &mut memory)
            .map_err(d.failed("ask for its memory"))?;
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| memory[at + i]));
        if word(8) != 0 {
            refusals.push(d.refuse(
                "data waits to be sent: the last part is missing (UDP_CORK, MSG_MORE)",
                Remedy::try_again("when the program has sent it"),
            ));
            return Ok(false);
        }
        if word(0) == 0 {
            return Ok(true);
        }
        let lite = socket_int(&d.file, libc::SOL_SOCKET, libc::SO_PROTOCOL)
            .is_ok_and(|protocol| protocol == libc::IPPROTO_UDPLITE);
        // Receiving would take the error away.
        let mut polled = [PollFd::new(d.file.as_fd(), PollFlags::POLLIN)];
        let error = poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        if lite || error {
            let what = if lite { "UDP-Lite datagrams" } else { "datagrams and an ICMP error" };
            refusals.push(d.refuse(
                format!("{what} wait to be read"),
                Remedy::try_again("when the program has read them"),
            ));
            return Ok(false);
        }
        let (index, fd, passed, part) = (d.index, d.fd, d.passed, d.part());
        let local = local.map(|local| local.ip().to_canonical()).filter(|ip| !ip.is_unspecified());
        self.udp.push(Member { id, index, fd, passed, part, v6, local });
        Ok(true)
    }

    /// Writes what is unread in the UDP sockets.
    ///
    /// # Errors
    /// The kernel does not show it, or it cannot be carried.
    pub(super) fn write_datagrams(
        &self,
        tree: &FrozenTree,
        images: &ImageDir,
    ) -> Result<(), CaptureError> {
        let mut writer = None;
        let mut refusals = Vec::new();
        for member in &self.udp {
            let task = &tree.tasks[member.index];
            let queue = self
                .again(task, member.fd, member.passed)
                .and_then(|file| peek(&file, member.v6))
                .map_err(task.failed(&member.part, "peek at its unread datagrams"))?;
            for datagram in queue {
                if let Some(cause) = obstacle(&datagram, member.local) {
                    let remedy = Remedy::try_again("when the program has read it");
                    refusals.push(task.refuse(member.part.clone(), cause, remedy));
                    continue;
                }
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(images.writer(ImageKind::Datagrams, 0)?),
                };
                writer.record(&DatagramEntry {
                    id_for: member.id,
                    length: datagram.data.len() as u32,
                    source: octets(datagram.source.ip()),
                    source_port: datagram.source.port().into(),
                    destination: octets(datagram.destination),
                    ttl: datagram.ttl.map(u32::from),
                    tos: datagram.tos.map(u32::from),
                })?;
                writer.payload(&datagram.data)?;
            }
        }
        if !refusals.is_empty() {
            return Err(CaptureError::Refused(refusals));
        }
        match writer {
            Some(writer) => drop(writer.finish()?),
            None => images.remove(ImageKind::Datagrams, 0)?,
        }
        Ok(())
    }
}

/// Why a datagram cannot be put back into a socket that is bound to `local`.
fn obstacle(datagram: &Datagram, local: Option<IpAddr>) -> Option<String> {
    let source = datagram.source;
    let link_local = |ip: IpAddr| match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    // A socket that is bound to a group or to a broadcast address gets nothing else.
    let group = local.is_some_and(|local| local == datagram.destination)
        && (datagram.destination.is_multicast() || is_broadcast(datagram.destination));
    let from = if source.ip().is_unspecified() {
        "a sender without an address"
    } else if link_local(source.ip()) {
        "a sender whose address is valid on one network device only (link-local)"
    } else if group {
        return Some(format!("a datagram to the group {} waits to be read", datagram.destination));
    } else if datagram.data.len() > LONGEST[usize::from(source.is_ipv6())] {
        return Some(format!("a datagram of {} bytes waits to be read", datagram.data.len()));
    } else {
        return None;
    };
    Some(format!("a datagram of {from} waits to be read"))
}

pub(super) fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Copies the unread datagrams of a socket and leaves them there.
fn peek(socket: &OwnedFd, v6: bool) -> io::Result<Vec<Datagram>> {
    let four = [(IP, libc::IP_RECVTTL), (IP, libc::IP_RECVTOS), (IP, libc::IP_RECVORIGDSTADDR)];
    let six = [(IPV6, IPV6_RECVHOPLIMIT), (IPV6, IPV6_RECVTCLASS), (IPV6, IPV6_RECVORIGDSTADDR)];
    let wanted = four.iter().map(|&(level, name)| (level, name, 1));
    let wanted = wanted.chain(six.iter().filter(|_| v6).map(|&(level, name)| (level, name, 1)));
    let wanted = wanted.chain([(libc::SOL_SOCKET, SO_PEEK_OFF, 0)]);
    let mut before = Vec::new();
    let mut result = Ok(Vec::new());
    for (level, name, value) in wanted {
        let set = socket_int(socket, level, name).and_then(|old| {
            before.push((level, name, old));
            set_socket_int(socket, level, name, value)
        });
        if let Err(error) = set {
            result = Err(error);
            break;
        }
    }
    if result.is_ok() {
        result = peek_all(socket);
    }
    for (level, name, old) in before {
        set_socket_int(socket, level, name, old)?;
    }
    result
}

fn peek_all(socket: &OwnedFd) -> io::Result<Vec<Datagram>> {
    let mut queue = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match receive(socket, &mut buffer, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(received) => queue.extend(datagrams(&received, &buffer)?),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(queue),
            Err(e) => return Err(e),
        }
    }
}

/// What was received as datagrams: those that the kernel put together (UDP_GRO) are taken apart.
fn datagrams(received: &Received, buffer: &[u8]) -> io::Result<Vec<Datagram>> {
    let bad = || io::Error::other("the kernel does not tell whence and whither a datagram came");
    let source = inet::parse(&received.name).ok_or_else(bad)?;
    let destination = received
        .control(IP, libc::IP_ORIGDSTADDR)
        .or_else(|| received.control(IPV6, IPV6_RECVORIGDSTADDR))
        .and_then(inet::parse)
        .ok_or_else(bad)?;
    // Addresses of IPv4 in an IPv6 socket.
    let ip = source.ip().to_canonical();
    let source = if ip.is_ipv4() { (ip, source.port()).into() } else { source };
    let number = |four: i32, six: i32| {
        received.number(IP, four).or_else(|| received.number(IPV6, six)).map(|n| n as u8)
    };
    let ttl = number(libc::IP_TTL, IPV6_HOPLIMIT);
    let tos = number(libc::IP_TOS, libc::IPV6_TCLASS);
    let destination = destination.ip().to_canonical();
    let one = |data: &[u8]| Datagram { data: data.to_vec(), source, destination, ttl, tos };
    let data = &buffer[..received.len];
    Ok(match received.number(libc::IPPROTO_UDP, UDP_GRO) {
        Some(size @ 1..) if data.len() > size as usize => {
            data.chunks(size as usize).map(one).collect()
        }
        _ => vec![one(data)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn datagrams_are_peeked_with_their_addresses() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let six = UdpSocket::bind("[::]:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.set_ttl(33).unwrap();
        let (source, to) = (sender.local_addr().unwrap(), socket.local_addr().unwrap());
        for data in [&b"one"[..], b"", &[7; 60_000]] {
            sender.send_to(data, to).unwrap();
        }
        sender.send_to(b"mapped", ("127.0.0.1", six.local_addr().unwrap().port())).unwrap();
        let fd = OwnedFd::from(socket);
        let queue = peek(&fd, false).unwrap();
        assert_eq!(queue.iter().map(|d| d.data.len()).collect::<Vec<_>>(), [3, 0, 60_000]);
        for datagram in &queue {
            assert_eq!((datagram.source, datagram.destination), (source, to.ip()));
            assert_eq!((datagram.ttl, datagram.tos), (Some(33), Some(0)));
        }
        assert_eq!(socket_int(&fd, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap(), -1);
        assert_eq!(socket_int(&fd, IP, libc::IP_RECVTTL).unwrap(), 0);
        let mut buffer = [0; 10];
        assert_eq!(UdpSocket::from(fd).recv(&mut buffer).unwrap(), 3);
        let queue = peek(&six.into(), true).unwrap();
        assert_eq!((queue[0].source, queue[0].destination), (source, to.ip()));
    }

    #[test]
    fn what_cannot_be_put_back_is_named() {
        let datagram = |source: &str, destination: &str, len: usize| Datagram {
            data: vec![0; len],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: None,
            tos: None,
        };
        let fine = datagram("10.0.0.9:7", "224.0.0.251", 65_507);
        assert_eq!(obstacle(&fine, None), None);
        assert!(obstacle(&fine, Some(fine.destination)).unwrap().contains("group"));
        let six = datagram("[2001:db8::1]:7", "2001:db8::2", 65_507);
        assert!(obstacle(&six, None).unwrap().contains("65507 bytes"));
        let local = datagram("[fe80::1]:7", "2001:db8::2", 1);
        assert!(obstacle(&local, None).unwrap().contains("link-local"));
        assert!(obstacle(&datagram("0.0.0.0:68", "10.0.0.1", 1), None).is_some());
    }
}
