//! Segments that come as if from the peer: a FIN, or an acknowledgement of ours. And acknowledgements
//! that go to it, as if our socket had sent them.
//!
//! They are sent through a raw socket of the tree's namespace. Those from the peer go to an address
//! that is local there, so they pass the loopback device and nothing else sees them. Their mark lets
//! them through the lock of the network (CRIU's lock knows it too).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use arctern_sys::fd::{send_packet, set_socket_int};

use crate::options::{Connection, PASSING_MARK};
use crate::state::files::inet;

const IPV6_HDRINCL: i32 = 36;
const FIN: u8 = 1;
const ACK: u8 = 16;

/// One segment, but for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledges: u32,
    /// The window as the header has it, not scaled.
    pub window: u16,
    /// Whether it ends its sender's direction.
    pub fin: bool,
    /// Its sender's clock, if it has the option.
    pub timestamp: Option<u32>,
}

/// Tells our packets from those of another capture or restore in the same namespace (SO_PRIORITY).
pub(super) fn tag() -> u32 {
    std::process::id()
}

/// Makes a raw socket fit: marked, and taking whole packets.
pub(super) fn prepare(socket: &OwnedFd, v6: bool) -> io::Result<()> {
    set_socket_int(socket, libc::SOL_SOCKET, libc::SO_MARK, PASSING_MARK as i32)?;
    set_socket_int(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, tag() as i32)?;
    match v6 {
        true => set_socket_int(socket, libc::IPPROTO_IPV6, IPV6_HDRINCL, 1),
        false => set_socket_int(socket, libc::IPPROTO_IP, libc::IP_HDRINCL, 1),
    }
}

/// Delivers a segment of the peer's to our end.
pub(super) fn deliver(
    socket: &OwnedFd,
    ends: &Connection,
    segment: Segment,
    data: &[u8],
) -> io::Result<()> {
    let packet = packet(ends, segment, data).ok_or(io::ErrorKind::InvalidInput)?;
    // A raw IPv6 socket takes the port for a protocol.
    let to = inet::raw_address(SocketAddr::new(ends.local.ip(), 0));
    // Succeeds with addresses of the namespace only: nothing leaves it, whatever the images say.
    arctern_sys::fd::bind_socket(socket, &to)?;
    send_packet(socket, &packet, &to)
}

/// Sends a segment of ours to the peer.
pub(super) fn answer(socket: &OwnedFd, ends: &Connection, segment: Segment) -> io::Result<()> {
    let theirs = Connection { local: ends.peer, peer: ends.local };
    let packet = packet(&theirs, segment, &[]).ok_or(io::ErrorKind::InvalidInput)?;
    let address = |ip| inet::raw_address(SocketAddr::new(ip, 0));
    arctern_sys::fd::bind_socket(socket, &address(ends.local.ip()))?;
    send_packet(socket, &packet, &address(ends.peer.ip()))
}

/// The whole packet, from `peer` to `local`; None if the addresses are of different kinds.
fn packet(ends: &Connection, segment: Segment, data: &[u8]) -> Option<Vec<u8>> {
    let mut options = Vec::new();
    if let Some(timestamp) = segment.timestamp {
        // Two of no meaning, so that words stay words; nothing of the other's clock is echoed.
        options.extend([1, 1, 8, 10]);
        options.extend(timestamp.to_be_bytes());
        options.extend([0; 4]);
    }
    let words = 5 + options.len() as u8 / 4;
    let mut tcp = Vec::with_capacity(32 + data.len());
    tcp.extend(ends.peer.port().to_be_bytes());
    tcp.extend(ends.local.port().to_be_bytes());
    tcp.extend(segment.sequence.to_be_bytes());
    tcp.extend(segment.acknowledges.to_be_bytes());
    tcp.extend([words << 4, if segment.fin { FIN | ACK } else { ACK }]);
    tcp.extend(segment.window.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(options);
    tcp.extend(data);
    let total = u16::try_from(20 + tcp.len()).ok()?.to_be_bytes();
    let length = u16::try_from(tcp.len()).ok()?.to_be_bytes();
    let protocol = libc::IPPROTO_TCP as u8;
    let (mut packet, pseudo) = match (ends.peer.ip(), ends.local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills identification and checksum in.
            let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
            ip.extend(from.octets());
            ip.extend(to.octets());
            let pseudo = [&from.octets()[..], &to.octets(), &[0, protocol], &length].concat();
            (ip, pseudo)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            ip.extend(from.octets());
            ip.extend(to.octets());
            let words = [&[0, 0][..], &length, &[0, 0, 0, protocol]].concat();
            (ip, [&from.octets()[..], &to.octets(), &words].concat())
        }
        _ => return None,
    };
    let sum = checksum(&[&pseudo[..], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    Some(packet)
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Segment =
        Segment { sequence: 7, acknowledges: 9, window: 512, fin: true, timestamp: None };

    #[test]
    fn a_segment_carries_a_right_checksum() {
        let ends = Connection {
            local: "10.0.0.1:80".parse().unwrap(),
            peer: "10.0.0.2:4711".parse().unwrap(),
        };
        let packet = packet(&ends, SEGMENT, b"odd").unwrap();
        assert_eq!((packet.len(), packet[3], packet[33]), (43, 43, FIN | ACK));
        // Over pseudo header and segment with its checksum the sum is zero.
        let pseudo = [&packet[12..20], &[0, 6, 0, 23], &packet[20..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn both_ends_are_of_one_kind() {
        let ends = Connection {
            local: "[::1]:80".parse().unwrap(),
            peer: "[2001:db8::1]:4711".parse().unwrap(),
        };
        assert_eq!(super::packet(&ends, SEGMENT, &[]).unwrap().len(), 60);
        let clock = Segment { timestamp: Some(5), ..SEGMENT };
        let packet = super::packet(&ends, clock, &[]).unwrap();
        assert_eq!(
            (packet.len(), packet[52] >> 4, &packet[60..68]),
            (72, 8, &[1, 1, 8, 10, 0, 0, 0, 5][..])
        );
        let mixed = Connection { peer: "10.0.0.2:1".parse().unwrap(), ..ends };
        assert_eq!(super::packet(&mixed, SEGMENT, &[]), None);
    }
}
