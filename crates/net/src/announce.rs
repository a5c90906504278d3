//! Telling a segment which hardware address an IP address has now: peers that cached another one,
//! and switches that learned another port, would go on sending into the void.
//!
//! IPv4: one ARP request and one reply, both for the address itself (RFC 5227, section 3), since some
//! hosts believe only one of the two. IPv6: an unsolicited neighbour advertisement that overrides
//! (RFC 4861, section 7.2.6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use arctern_sys::packet::PacketSocket;

use crate::mac::Mac;

const BROADCAST: Mac = Mac([0xff; 6]);
/// Where a frame for all nodes (`ff02::1`) goes.
const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

/// Announces addresses behind a hardware address by way of a device, in another network namespace if
/// one is given.
///
/// # Errors
/// Those of `setns(2)`, `socket(2)` and `sendto(2)`.
pub(crate) fn announce(
    netns: Option<BorrowedFd<'_>>,
    device: u32,
    mac: Mac,
    addresses: impl Iterator<Item = IpAddr>,
) -> io::Result<()> {
    let socket = match netns {
        Some(netns) => crate::netns::run_in(netns, PacketSocket::sender)??,
        None => PacketSocket::sender()?,
    };
    for address in addresses {
        match address {
            IpAddr::V4(ip) => {
                socket.send(device, &arp(ARP_REQUEST, mac, ip))?;
                socket.send(device, &arp(ARP_REPLY, mac, ip))?;
            }
            IpAddr::V6(ip) => socket.send(device, &advertisement(mac, ip))?,
        }
    }
    Ok(())
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

/// An ARP packet about one's own address.
fn arp(operation: u8, mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, 0x0806);
    // Ethernet, IPv4, the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac.0);
    frame.extend(ip.octets());
    frame.extend(match operation {
        ARP_REPLY => BROADCAST.0,
        _ => [0; 6],
    });
    frame.extend(ip.octets());
    frame
}

/// A neighbour advertisement to all nodes: flags «override», option «target link-layer address».
fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    const NEXT_ICMP: u8 = 58;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    let length = u16::try_from(message.len()).unwrap_or(0);
    let pseudo_header =
        [&ip.octets()[..], &all_nodes.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0]];
    let summed = [&pseudo_header.concat()[..], &[NEXT_ICMP], &message].concat();
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());

    let mut frame = ethernet(ALL_NODES, mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // Neighbour discovery is believed only with a hop limit that no router has lowered.
    frame.extend([NEXT_ICMP, 255]);
    frame.extend(ip.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(u16::try_from(sum).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_have_the_form_of_the_standards() {
        let mac: Mac = "02:00:00:00:00:05".parse().expect("mac");
        let request = arp(ARP_REQUEST, mac, Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(request.len(), 42);
        assert_eq!((&request[28..32], &request[38..42]), (&[10, 0, 0, 5][..], &[10, 0, 0, 5][..]));
        let ip: Ipv6Addr = "fd00::5".parse().expect("ip");
        let frame = advertisement(mac, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let (header, message) = frame[14..].split_at(40);
        let pseudo = [&header[8..40], &[0, 0, 0, 32, 0, 0, 0, 58], message].concat();
        assert_eq!(checksum(&pseudo), 0, "a sum over its own checksum is 0");
    }
}
