//! UDP: puts unread datagrams back.
//!
//! They are sent again as whole packets, header included, through a raw socket of the same network
//! namespace, so that they come from their senders' addresses, whoever has these now. They go to an
//! address of the namespace and never leave it. Each is in the queue before the next is sent.
//!
//! After bind, before connect and before the options that would keep a datagram out: a queue may hold
//! datagrams from others than the peer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{DatagramEntry, InetSkEntry};
use arctern_sys::fd::{bind_socket, connect_socket, send_packet, socket_address, socket_option};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::inet;
use super::sockopts::Room;
use super::table::Opener;
use super::udp::{Datagram, SO_MEMINFO, is_broadcast};
use crate::error::RestoreError;

/// Unread datagrams by the id of their socket.
pub(super) type Datagrams = HashMap<u32, Vec<Datagram>>;

/// Reads the datagrams of a checkpoint.
pub(super) fn read(images: &ImageDir) -> Result<Datagrams, RestoreError> {
    let mut datagrams = Datagrams::new();
    let Some(mut reader) = images.reader(ImageKind::Datagrams, 0)? else { return Ok(datagrams) };
    while let Some(entry) = reader.next_record::<DatagramEntry>()? {
        let data = reader.payload(entry.length.into())?;
        let datagram = datagram(&entry, data).ok_or_else(|| {
            RestoreError::Inconsistent(format!("a datagram of socket {} is damaged", entry.id_for))
        })?;
        datagrams.entry(entry.id_for).or_default().push(datagram);
    }
    Ok(datagrams)
}

fn datagram(entry: &DatagramEntry, data: Vec<u8>) -> Option<Datagram> {
    let source = address(&entry.source)?;
    let destination = address(&entry.destination)?;
    let port = u16::try_from(entry.source_port).ok()?;
    let longest = 65535 - if source.is_ipv4() { 28 } else { 48 };
    if source.is_ipv4() != destination.is_ipv4() || data.len() > longest {
        return None;
    }
    let byte = |value: Option<u32>| value.and_then(|value| u8::try_from(value).ok());
    let (ttl, tos) = (byte(entry.ttl), byte(entry.tos));
    Some(Datagram { data, source: (source, port).into(), destination, ttl, tos })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(four).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into())
}

/// Fills the queue of socket `fd` of the stub, which is bound and not connected yet.
pub(super) fn deliver(
    o: &mut Opener<'_>,
    fd: i32,
    socket: &InetSkEntry,
    queue: &[Datagram],
) -> Result<(), RestoreError> {
    let device = socket.opts.so_bound_dev.as_deref().unwrap_or_default();
    if !device.is_empty() {
        bind_to_device(o, fd, b"");
    }
    let target = o.fetch(fd)?;
    let local = local_address(&target).map_err(o.failed_here("read its address"))?;
    let room = Room::make(&target, libc::SO_RCVBUF).map_err(o.failed_here("enlarge its buffer"))?;
    let echo = make(o, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let echo = Echo::new(echo).map_err(o.failed_here("watch the way of its datagrams"))?;
    let mut raw: HashMap<bool, OwnedFd> = HashMap::new();
    for datagram in queue {
        let v4 = datagram.source.is_ipv4();
        let raw = match raw.entry(v4) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => {
                let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
                place.insert(make(o, family, libc::SOCK_RAW, libc::IPPROTO_RAW)?)
            }
        };
        send_one(raw, &target, local, datagram, shared(socket), &echo)
            .map_err(o.failed_here("put an unread datagram back"))?;
    }
    room.give_back().map_err(o.failed_here("give its buffer its size"))?;
    if !device.is_empty() {
        bind_to_device(o, fd, device.as_bytes());
    }
    Ok(())
}

/// A socket of the stub's network namespace, here.
fn make(
    o: &mut Opener<'_>,
    family: i32,
    kind: i32,
    protocol: i32,
) -> Result<OwnedFd, RestoreError> {
    let args = [family.into(), kind.into(), protocol.into()];
    let number = o.create(libc::SYS_socket, &args, "make a socket for unread datagrams");
    let socket = o.fetch(number)?;
    o.close(number);
    Ok(socket)
}

/// Whether other sockets may have the same address, and get the datagram instead.
fn shared(socket: &InetSkEntry) -> bool {
    socket.opts.reuseaddr() || socket.opts.so_reuseport()
}

fn bind_to_device(o: &mut Opener<'_>, fd: i32, device: &[u8]) {
    let name = o.c_string(device);
    let level = libc::SOL_SOCKET;
    let args =
        [fd.into(), level.into(), libc::SO_BINDTODEVICE.into(), name.into(), name.len().into()];
    o.call(libc::SYS_setsockopt, &args, "bind it to its device");
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    inet::parse(&socket_address(socket, false)?)
        .ok_or_else(|| io::Error::other("the socket has no address"))
}

/// Sends one datagram and waits until it is in the queue of `target`. `shared`: the target is
/// connected to the sender for the moment, so that no other socket of its address is preferred.
fn send_one(
    raw: &OwnedFd,
    target: &OwnedFd,
    local: SocketAddr,
    datagram: &Datagram,
    shared: bool,
    echo: &Echo,
) -> io::Result<()> {
    let mut to = SocketAddr::new(way(raw, local.ip(), datagram)?, local.port());
    if shared {
        let peer = match (local, datagram.source) {
            (SocketAddr::V6(_), SocketAddr::V4(source)) => {
                SocketAddr::new(source.ip().to_ipv6_mapped().into(), source.port())
            }
            (_, source) => source,
        };
        connect_socket(target, &inet::raw_address(peer))?;
        to = SocketAddr::new(local_address(target)?.ip().to_canonical(), local.port());
    }
    let before = queued(target)?;
    let packet = packet(datagram, to);
    let sent = send_packet(raw, &packet, &inet::raw_address(SocketAddr::new(to.ip(), 0)));
    let arrived = sent.and_then(|_| echo.until(|| Ok(queued(target)? > before)));
    if shared {
        connect_socket(target, &[0; 16])?;
    }
    if arrived? {
        return Ok(());
    }
    Err(io::Error::other("it did not arrive; a filter of the network may have dropped it"))
}

/// Memory that unread datagrams take: grows with each (SO_MEMINFO).
fn queued(socket: &OwnedFd) -> io::Result<u32> {
    let mut memory = [0; 4];
    socket_option(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut memory)?;
    Ok(u32::from_ne_bytes(memory))
}

/// A socket that sends to itself: what was sent before it on this processor has arrived.
struct Echo(OwnedFd);

impl Echo {
    /// How often it is asked: a datagram may be on its way on another processor.
    const TIMES: usize = 200;

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let here = inet::raw_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        bind_socket(&socket, &here)?;
        connect_socket(&socket, &inet::raw_address(local_address(&socket)?))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Echo(socket))
    }

    /// Whether `holds` after what was sent had time to arrive.
    fn until(&self, holds: impl Fn() -> io::Result<bool>) -> io::Result<bool> {
        for _ in 0..Self::TIMES {
            if holds()? {
                return Ok(true);
            }
            send(self.0.as_raw_fd(), b"e", MsgFlags::empty())?;
            recv(self.0.as_raw_fd(), &mut [0], MsgFlags::empty())?;
        }
        holds()
    }
}

/// The address of the namespace that the datagram is sent to: the one that it was sent to, or, where
/// that is a group or is not here any more, another that leads to the same socket.
fn way(raw: &OwnedFd, local: IpAddr, datagram: &Datagram) -> io::Result<IpAddr> {
    let wanted = datagram.destination;
    let loopback: IpAddr = match wanted {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let local = Some(local.to_canonical()).filter(|ip| !ip.is_unspecified());
    let unicast = !wanted.is_multicast() && !is_broadcast(wanted) && !wanted.is_unspecified();
    let mut candidates = unicast.then_some(wanted).into_iter().chain([local.unwrap_or(loopback)]);
    // bind_socket(2) succeeds with addresses of the namespace.
    let here = |ip: &IpAddr| {
        let address = inet::raw_address(SocketAddr::new(*ip, 0));
        bind_socket(raw, &address).is_ok()
    };
    candidates.find(here).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// An IP packet with the datagram in it.
fn packet(datagram: &Datagram, to: SocketAddr) -> Vec<u8> {
    let Datagram { data, source, .. } = datagram;
    let length = (data.len() + 8) as u16;
    let (ttl, tos) = (datagram.ttl.unwrap_or(64), datagram.tos.unwrap_or(0));
    let protocol = libc::IPPROTO_UDP as u8;
    let mut packet = Vec::with_capacity(data.len() + 48);
    // What the checksum covers of the IP header.
    let mut covered = Vec::new();
    match (source.ip(), to.ip()) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend((6 << 28 | u32::from(tos) << 20).to_be_bytes());
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, ttl]);
            covered.extend(from.octets());
            covered.extend(to.octets());
            packet.extend(&covered);
        }
        (from, to) => {
            let four = |ip| match ip {
                IpAddr::V4(ip) => ip.octets(),
                IpAddr::V6(_) => [0; 4],
            };
            packet.extend([0x45, tos]);
            packet.extend((length + 20).to_be_bytes());
            // Identification and checksum are the kernel's.
            packet.extend([0, 0, 0, 0, ttl, protocol, 0, 0]);
            covered.extend(four(from));
            covered.extend(four(to));
            packet.extend(&covered);
        }
    }
    let mut head = Vec::with_capacity(8);
    head.extend(source.port().to_be_bytes());
    head.extend(to.port().to_be_bytes());
    head.extend(length.to_be_bytes());
    covered.extend([0, protocol]);
    covered.extend(length.to_be_bytes());
    covered.extend(&head);
    head.extend(checksum(&[&covered, data]).to_be_bytes());
    packet.extend(head);
    packet.extend(data);
    packet
}

/// The internet checksum (RFC 1071) of parts, of which only the last may have an odd length; UDP
/// sends 0 as 0xffff.
fn checksum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = pairs.map(|p| u64::from(p[0]) << 8 | u64::from(*p.get(1).unwrap_or(&0))).sum();
    let mut sum = sum;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(source: &str, destination: &str, data: &[u8]) -> Datagram {
        Datagram {
            data: data.to_vec(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: Some(9),
            tos: Some(0x10),
        }
    }

    #[test]
    fn packets_are_whole() {
        let four =
            packet(&waiting("10.0.0.9:7", "10.0.0.1", b"abc"), "10.0.0.1:53".parse().unwrap());
        assert_eq!(four.len(), 31);
        assert_eq!(four[..4], [0x45, 0x10, 0, 31]);
        assert_eq!(four[8..10], [9, 17]);
        assert_eq!(four[12..28], [10, 0, 0, 9, 10, 0, 0, 1, 0, 7, 0, 53, 0, 11, 0x27, 0x30]);
        let six = packet(&waiting("[::2]:7", "::1", b""), "[::1]:53".parse().unwrap());
        assert_eq!(six[..8], [0x61, 0, 0, 0, 0, 8, 17, 9]);
        assert_eq!(six.len(), 48);
    }

    #[test]
    fn checksums() {
        assert_eq!(checksum(&[&[0, 1, 0xf2, 3], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0x220d);
        assert_eq!(checksum(&[&[0xff, 0xff]]), 0xffff);
        assert_eq!(checksum(&[&[1]]), 0xfeff);
    }

    #[test]
    fn damaged_entries_are_refused() {
        let entry = |source: &[u8], destination: &[u8], source_port| DatagramEntry {
            source: source.to_vec(),
            destination: destination.to_vec(),
            source_port,
            ttl: Some(1000),
            ..DatagramEntry::default()
        };
        let fine = datagram(&entry(&[1; 4], &[2; 4], 7), vec![]);
        assert_eq!(fine.map(|d| (d.source.port(), d.ttl)), Some((7, None)));
        assert!(datagram(&entry(&[1; 4], &[2; 16], 7), vec![]).is_none());
        assert!(datagram(&entry(&[1; 5], &[2; 5], 7), vec![]).is_none());
        assert!(datagram(&entry(&[1; 4], &[2; 4], 70_000), vec![]).is_none());
        assert!(datagram(&entry(&[1; 4], &[2; 4], 7), vec![0; 65_508]).is_none());
    }
}
