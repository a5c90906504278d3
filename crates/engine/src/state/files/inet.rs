//! TCP and UDP sockets: listening, bound, closed, UDP, and what a live TCP connection shares with them.
//!
//! State comes from the socket itself: TCP_INFO, getsockname(2), getpeername(2) and options. What
//! makes a TCP connection live is the room [`super::tcp`]'s, what is unread in UDP sockets that of
//! [`super::udp`]. Refused: connections that wait to be accepted, other protocols (raw, ICMP, SCTP,
//! MPTCP), sockets of another network namespace. Options that CRIU's images do not know are kept in
//! fields of our own, which it passes over. Not kept: memberships of multicast groups, which the
//! kernel does not tell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use arctern_image::messages::{
    FdTypes, FileEntry, InetSkEntry, IpOptsEntry, SkShutdown, SocketOption, TcpOptsEntry,
};
use arctern_sys::fd::{socket_address, socket_int};

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::sockopts::{self, set};
use super::table::Opener;
use super::tcp;
use super::udp::Datagram;
use super::udp_restore;
use crate::error::{CaptureError, Refusal, RestoreError};

pub(super) const ESTABLISHED: u32 = 1;
pub(super) const CLOSE: u32 = 7;
pub(super) const LISTEN: u32 = 10;

const IPV6_V6ONLY: i32 = 26;
const IPV6_FREEBIND: i32 = 78;
const IPV6_RECVPKTINFO: i32 = 49;
const IP_FREEBIND: i32 = 15;
const IP_PKTINFO: i32 = 8;

impl FileCollector {
    /// A descriptor of an IPv4 or IPv6 socket.
    pub(super) fn inet(
        &mut self,
        d: &Descriptor<'_>,
        family: i32,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let option = |level, name| socket_int(&d.file, level, name);
        let failed = |e| d.failed("read the socket")(e);
        let kind = option(libc::SOL_SOCKET, libc::SO_TYPE).map_err(failed)?;
        let proto = option(libc::SOL_SOCKET, libc::SO_PROTOCOL).map_err(failed)?;
        let source = address(d, false)?;
        let target = address(d, true)?;
        let mut both = (source, target);
        let (state, backlog) = match (kind, proto) {
            (libc::SOCK_STREAM, libc::IPPROTO_TCP) => {
                match self.tcp_socket(d, &mut both, refusals)? {
                    Some(state) => state,
                    None => return Ok(None),
                }
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE) => {
                (if target.is_some() { ESTABLISHED } else { CLOSE }, 0)
            }
            _ => {
                refusals.push(d.refuse(
                    format!("sockets of type {kind}, protocol {proto} cannot be carried"),
                    "close it before the checkpoint",
                ));
                return Ok(None);
            }
        };
        let (source, target) = both;
        if let Some(SocketAddr::V6(v6)) = source
            && v6.scope_id() != 0
        {
            refusals.push(d.refuse(
                "its address is valid on one network device only (link-local)",
                "bind it to another address",
            ));
            return Ok(None);
        }
        let Some(opts) = sockopts::capture(d, false, refusals)? else { return Ok(None) };
        let id = self.new_id();
        let v6 = family == libc::AF_INET6;
        if kind == libc::SOCK_DGRAM && !self.udp(d, id, v6, source, refusals)? {
            return Ok(None);
        }
        let (src_addr, src_port) = words(source, v6);
        let (dst_addr, dst_port) = words(target, v6);
        let on = |level, name| option(level, name).is_ok_and(|v| v != 0).then_some(true);
        let number = |level, name| option(level, name).ok().map(|v| v as u32);
        let ip_opts = if v6 {
            IpOptsEntry {
                freebind: on(libc::IPPROTO_IPV6, IPV6_FREEBIND),
                pktinfo: on(libc::IPPROTO_IPV6, IPV6_RECVPKTINFO),
                ..IpOptsEntry::default()
            }
        } else {
            IpOptsEntry {
                freebind: on(libc::IPPROTO_IP, IP_FREEBIND),
                pktinfo: on(libc::IPPROTO_IP, IP_PKTINFO),
                tos: number(libc::IPPROTO_IP, libc::IP_TOS).filter(|tos| *tos != 0),
                ttl: number(libc::IPPROTO_IP, libc::IP_TTL),
                ..IpOptsEntry::default()
            }
        };
        let tcp_opts = if proto == libc::IPPROTO_TCP {
            tcp::options(&d.file)
        } else {
            TcpOptsEntry::default()
        };
        let v6only = option(libc::IPPROTO_IPV6, IPV6_V6ONLY).ok().map(|v| v != 0);
        Ok(Some(FileEntry {
            isk: Some(Box::new(InetSkEntry {
                id,
                ino: d.stat.st_ino as u32,
                family: family as u32,
                r#type: kind as u32,
                proto: proto as u32,
                state,
                src_port: src_port.into(),
                dst_port: dst_port.into(),
                flags: d.flags(),
                backlog,
                src_addr,
                dst_addr,
                fown: d.fown.clone(),
                opts,
                v6only: v6only.filter(|_| v6),
                ip_opts: Some(ip_opts),
                ifname: None,
                ns_id: Some(self.options.net_ns_id),
                shutdown: None,
                tcp_opts: Some(tcp_opts),
                more_opts: more_options(&d.file, proto, v6),
                congestion_control: (proto == libc::IPPROTO_TCP)
                    .then(|| arctern_sys::tcp::congestion_control(&d.file).ok())
                    .flatten(),
            })),
            ..entry(FdTypes::Inetsk, id)
        }))
    }
}

/// Options that CRIU's images have no place for: who has them, level, name, value of a new socket.
const MORE: [(Family, i32, i32, i32); 36] = [
    (Family::Any, libc::SOL_SOCKET, libc::SO_TIMESTAMP, 0),
    (Family::Any, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0),
    (Family::Any, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, 0),
    (Family::Any, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 0),
    (Family::Any, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1),
    (Family::Any, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 6),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_LINGER2, 60),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 0),
    (Family::Udp, libc::IPPROTO_UDP, UDP_CORK, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 0),
    (Family::Tcp, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 0),
    (Family::Tcp, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 0),
    (Family::Tcp, libc::IPPROTO_TCP, TCP_INQ, 0),
    (Family::Udp, libc::IPPROTO_UDP, UDP_SEGMENT, 0),
    (Family::Udp, libc::IPPROTO_UDP, UDP_GRO, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 1),
    (Family::V4, libc::IPPROTO_IP, libc::IP_RECVERR, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_RECVTTL, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_RECVTOS, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 0),
    (Family::V4, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0),
    (Family::MulticastV4, libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 1),
    (Family::MulticastV4, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 1),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 1),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 0),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0),
    (Family::V6, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 0),
    (Family::MulticastV6, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 1),
    (Family::MulticastV6, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 1),
];
const UDP_CORK: i32 = 1;
const TCP_FASTOPEN_CONNECT: i32 = 30;
const TCP_INQ: i32 = 36;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

/// Which sockets have an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    Tcp,
    Udp,
    MulticastV4,
    MulticastV6,
    V4,
    V6,
}

/// Whether an option of the images is one that a capture reads.
pub(super) fn is_carried(option: &SocketOption) -> bool {
    MORE.iter().any(|&(_, level, name, _)| (level, name) == (option.level, option.name))
}

fn more_options(socket: &OwnedFd, proto: i32, v6: bool) -> Vec<SocketOption> {
    let tcp = proto == libc::IPPROTO_TCP;
    let options = MORE.iter().filter(|(family, ..)| match family {
        Family::Any => true,
        Family::Tcp => tcp,
        Family::Udp => proto == libc::IPPROTO_UDP,
        // What an accepted socket has there cannot be set, and means nothing.
        Family::MulticastV4 => !v6 && !tcp,
        Family::MulticastV6 => v6 && !tcp,
        Family::V4 => !v6,
        Family::V6 => v6,
    });
    options
        .filter_map(|&(_, level, name, default)| {
            let value = socket_int(socket, level, name).ok()?;
            (value != default).then_some(SocketOption { level, name, value })
        })
        .collect()
}

/// `10.0.0.2:80 -> 10.0.0.9:51514`.
pub(super) fn ends(source: Option<SocketAddr>, target: Option<SocketAddr>) -> String {
    let text = |a: Option<SocketAddr>| a.map_or_else(|| "?".to_owned(), |a| a.to_string());
    match target {
        Some(_) => format!("{} -> {}", text(source), text(target)),
        None => text(source),
    }
}

/// The socket's own address, or its peer's; None without one.
fn address(d: &Descriptor<'_>, peer: bool) -> Result<Option<SocketAddr>, CaptureError> {
    match socket_address(&d.file, peer) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        Err(e) => Err(d.failed("read the address of the socket")(e)),
    }
}

/// As [`address`], of a socket that no descriptor of a task leads to.
pub(super) fn address_of(socket: &OwnedFd, peer: bool) -> std::io::Result<Option<SocketAddr>> {
    Ok(parse(&socket_address(socket, peer)?))
}

/// Reads a sockaddr_in or sockaddr_in6.
pub(super) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some((IpAddr::V4(Ipv4Addr::from(ip)), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(std::net::SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Address as the images have it (words of network-order bytes) and port.
pub(super) fn words(address: Option<SocketAddr>, v6: bool) -> (Vec<u32>, u16) {
    let bytes = match address.map(|a| a.ip()) {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
        None => vec![0; if v6 { 16 } else { 4 }],
    };
    let word = |chunk: &[u8]| chunk.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    (bytes.chunks(4).map(word).collect(), address.map_or(0, |a| a.port()))
}

/// An address as the kernel takes it.
pub(super) fn raw_address(address: SocketAddr) -> Vec<u8> {
    let v6 = address.is_ipv6();
    let (addr, port) = words(Some(address), v6);
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    sockaddr(family as u32, &addr, port.into()).unwrap_or_default()
}

/// Both addresses of a connection's entry.
pub(super) fn ends_of(socket: &InetSkEntry) -> Option<(SocketAddr, SocketAddr)> {
    let read = |addr, port| parse(&sockaddr(socket.family, addr, port)?);
    Some((read(&socket.src_addr, socket.src_port)?, read(&socket.dst_addr, socket.dst_port)?))
}

/// The sockaddr of an entry's address.
pub(super) fn sockaddr(family: u32, addr: &[u32], port: u32) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = addr.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut out = (family as u16).to_ne_bytes().to_vec();
    out.extend(u16::try_from(port).ok()?.to_be_bytes());
    match (family as i32, bytes.len()) {
        (libc::AF_INET, 4) => {
            out.extend(&bytes);
            out.extend([0; 8]);
        }
        (libc::AF_INET6, 16) => {
            out.extend([0; 4]);
            out.extend(&bytes);
            out.extend([0; 4]);
        }
        _ => return None,
    }
    Some(out)
}

/// What cannot be restored of an entry.
pub(super) fn check(socket: &InetSkEntry) -> Option<(String, &'static str)> {
    let protocol = socket.proto as i32;
    let plain = matches!(protocol, libc::IPPROTO_TCP | libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
    if !plain || !matches!(socket.r#type as i32, libc::SOCK_STREAM | libc::SOCK_DGRAM) {
        return Some((
            format!("sockets of type {}, protocol {protocol} cannot be restored", socket.r#type),
            "restore the images with the program that wrote them",
        ));
    }
    None
}

/// Makes a socket with what is `unread` in it (UDP): its number.
pub(super) fn open(
    o: &mut Opener<'_>,
    socket: &InetSkEntry,
    unread: &[Datagram],
) -> Result<i32, RestoreError> {
    let bad = || RestoreError::Inconsistent(format!("socket {} has a damaged address", socket.id));
    let args = [socket.family.into(), socket.r#type.into(), socket.proto.into()];
    let fd = o.create(libc::SYS_socket, &args, "make the socket");
    let tcp = socket.proto == libc::IPPROTO_TCP as u32;
    let v6 = socket.family == libc::AF_INET6 as u32;
    if v6 && let Some(only) = socket.v6only {
        set(o, fd, libc::IPPROTO_IPV6, IPV6_V6ONLY, only.into());
    }
    let reuse = socket.opts.reuseaddr();
    // A connection gets its addresses, buffers and queues later, or not at all.
    let live = tcp::is_live(socket);
    // The connections of the tasks that were captured may linger in TIME_WAIT.
    let bound = socket.src_port != 0 && !live;
    if reuse || bound && tcp {
        set(o, fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    }
    sockopts::set_before_bind(o, fd, &socket.opts);
    // Some of them decide about bind and listen.
    for option in &socket.more_opts {
        if !(live && tcp::is_clamp(option.level, option.name)) {
            set(o, fd, option.level, option.name, option.value);
        }
    }
    let ip = socket.ip_opts.clone().unwrap_or_default();
    let level = if v6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    if ip.freebind() {
        set(o, fd, level, if v6 { IPV6_FREEBIND } else { IP_FREEBIND }, 1);
    }
    if !live {
        sockopts::set_buffers(o, fd, &socket.opts);
        if let Some(name) = &socket.congestion_control {
            sockopts::set_text(o, fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name);
        }
    }
    if bound {
        let address = sockaddr(socket.family, &socket.src_addr, socket.src_port).ok_or_else(bad)?;
        let len = address.len();
        let address = o.bytes(&address);
        o.call(libc::SYS_bind, &[fd.into(), address.into(), len.into()], "bind the socket");
    }
    if socket.state == LISTEN && tcp {
        o.call(libc::SYS_listen, &[fd.into(), socket.backlog.into()], "listen");
    }
    if !unread.is_empty() {
        udp_restore::deliver(o, fd, socket, unread)?;
    }
    if socket.state == ESTABLISHED && !tcp {
        let address = sockaddr(socket.family, &socket.dst_addr, socket.dst_port).ok_or_else(bad)?;
        let len = address.len();
        let address = o.bytes(&address);
        o.call(libc::SYS_connect, &[fd.into(), address.into(), len.into()], "connect the socket");
    }
    if bound && tcp && !reuse {
        set(o, fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 0);
    }
    let mut general = socket.opts.clone();
    if live {
        // It would meet packets of our own.
        general.so_filter.clear();
    }
    sockopts::set_after(o, fd, &general);
    if ip.pktinfo() {
        set(o, fd, level, if v6 { IPV6_RECVPKTINFO } else { IP_PKTINFO }, 1);
    }
    if let Some(tos) = ip.tos.filter(|tos| *tos != 0) {
        set(o, fd, level, libc::IP_TOS, tos as i32);
    }
    // 64 is what a namespace starts with.
    if let Some(ttl) = ip.ttl.filter(|ttl| *ttl != 64) {
        set(o, fd, level, libc::IP_TTL, ttl as i32);
    }
    if tcp && let Some(options) = &socket.tcp_opts {
        for (name, value, default) in [
            (libc::TCP_CORK, options.cork.map(u32::from).filter(|_| !live), 0),
            (libc::TCP_NODELAY, options.nodelay.map(u32::from).filter(|_| !live), 0),
            (libc::TCP_KEEPCNT, options.keepcnt, 9),
            (libc::TCP_KEEPIDLE, options.keepidle, 7200),
            (libc::TCP_KEEPINTVL, options.keepintvl, 75),
        ] {
            if let Some(value) = value.filter(|value| *value != default) {
                set(o, fd, libc::IPPROTO_TCP, name, value as i32);
            }
        }
    }
    let how = socket.shutdown.and_then(|how| SkShutdown::try_from(how).ok());
    if let Some(how) = how.filter(|how| *how != SkShutdown::None && !tcp) {
        o.call(libc::SYS_shutdown, &[fd.into(), (how as i32 - 1).into()], "shut it down");
    }
    o.set_status(fd, socket.flags);
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_convert_both_ways() {
        for text in ["127.0.0.1:80", "[2001:db8::7]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let (addr, port) = words(Some(address), address.is_ipv6());
            let family = if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
            let raw = sockaddr(family as u32, &addr, port.into()).unwrap();
            assert_eq!(parse(&raw), Some(address));
        }
        // As CRIU writes 127.0.0.1.
        assert_eq!(words(Some("127.0.0.1:1".parse().unwrap()), false), (vec![16777343], 1));
        assert_eq!(words(None, true), (vec![0; 4], 0));
        assert!(sockaddr(2, &[1, 2], 80).is_none() && sockaddr(2, &[1], 65536).is_none());
    }

    #[test]
    fn only_changed_options_are_kept() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = OwnedFd::from(socket);
        assert_eq!(more_options(&fd, libc::IPPROTO_TCP, false), []);
        arctern_sys::fd::set_socket_int(&fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 777)
            .unwrap();
        let kept = more_options(&fd, libc::IPPROTO_TCP, false);
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        assert_eq!(kept, [SocketOption { level, name, value: 777 }]);
    }
}
