//! Connections that netfilter tracks: forgetting those of published UDP ports, and those of a container
//! that moves.
//!
//! Translation is decided by a flow's first packet and kept as long as packets come. A UDP client
//! that goes on sending from one port would be sent to a container's former address for ever, or
//! past a port that was published since its first packet. TCP needs none of this: a new connection
//! is a new flow. Numbers are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;

use crate::netlink::{DUMP, Family, Socket, find};
use crate::passage::Flow;
use crate::ports::{PortMapping, Protocol};

/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte of a message type.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const MARK: u16 = 8;
const ID: u16 = 12;
/// `struct nfgenmsg` for IPv4 and for IPv6.
const FAMILIES: [[u8; 4]; 2] = [[2, 0, 0, 0], [10, 0, 0, 0]];

/// Forgets every UDP flow to a host port of `ports`. Without UDP ports nothing is read.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn forget_udp(ports: &[PortMapping]) -> io::Result<()> {
    let udp: Vec<&PortMapping> = ports.iter().filter(|p| p.protocol == Protocol::Udp).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open(Family::Netfilter)?;
    FAMILIES.iter().try_for_each(|family| forget_udp_of(&mut socket, family, &udp))
}

fn forget_udp_of(socket: &mut Socket, family: &[u8; 4], udp: &[&PortMapping]) -> io::Result<()> {
    for flow in socket.request(GET, DUMP, family, |_| ())? {
        let attributes = flow.body.get(4..).unwrap_or_default();
        let Some(tuple) = find(attributes, TUPLE_ORIG) else { continue };
        let to_us = udp_port(tuple)
            .is_some_and(|port| udp.iter().any(|m| m.pairs().any(|(host, _)| host == port)));
        if to_us {
            forget(socket, family, attributes)?;
        }
    }
    Ok(())
}

/// Forgets one connection.
fn forget(socket: &mut Socket, family: &[u8; 4], attributes: &[u8]) -> io::Result<()> {
    let deleted = socket.request(DELETE, 0, family, |m| {
        let nest = m.nest(TUPLE_ORIG);
        m.raw(find(attributes, TUPLE_ORIG).unwrap_or_default());
        m.end(nest);
        if let Some(id) = find(attributes, ID) {
            m.attr(ID, id);
        }
    });
    match deleted {
        // It ended by itself.
        Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other.map(drop),
    }
}

/// The mark of a connection.
fn mark_of(attributes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(find(attributes, MARK)?.try_into().ok()?))
}

/// Forgets every IPv4 connection with this mark.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn forget_marked(mark: u32) -> io::Result<()> {
    let mut socket = Socket::open(Family::Netfilter)?;
    for flow in socket.request(GET, DUMP, &FAMILIES[0], |_| ())? {
        let attributes = flow.body.get(4..).unwrap_or_default();
        if mark_of(attributes) == Some(mark) {
            forget(&mut socket, &FAMILIES[0], attributes)?;
        }
    }
    Ok(())
}

/// The destination port of a UDP flow's first direction.
fn udp_port(tuple: &[u8]) -> Option<u16> {
    let protocol = find(tuple, TUPLE_PROTO)?;
    if find(protocol, PROTO_NUM)? != [Protocol::Udp.number()] {
        return None;
    }
    Some(u16::from_be_bytes(find(protocol, PROTO_DST_PORT)?.try_into().ok()?))
}

/// TCP and UDP flows of an address as its owner sees them, but for those with this mark.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn flows_of(own: Ipv4Addr, except: u32) -> io::Result<Vec<Flow>> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let replies = socket.request(GET, DUMP, &FAMILIES[0], |_| ())?;
    let flows = replies.iter().filter_map(|reply| {
        let attributes = reply.body.get(4..)?;
        if mark_of(attributes) == Some(except) {
            return None;
        }
        // It has opened the connection, or it answers: then after translation.
        [TUPLE_ORIG, TUPLE_REPLY]
            .into_iter()
            .filter_map(|kind| from_tuple(find(attributes, kind)?))
            .find_map(|(source, flow)| (source == own).then_some(flow))
    });
    Ok(flows.collect())
}

/// A flow as the source of its packets sees it, and that source.
fn from_tuple(tuple: &[u8]) -> Option<(Ipv4Addr, Flow)> {
    let (ip, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTO)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(ip, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let flow = Flow {
        protocol: match find(protocol, PROTO_NUM)? {
            [6] => Protocol::Tcp,
            [17] => Protocol::Udp,
            _ => return None,
        },
        port: port(PROTO_SRC_PORT)?,
        peer: address(IP_V4_DESTINATION)?,
        peer_port: port(PROTO_DST_PORT)?,
    };
    Some((address(IP_V4_SOURCE)?, flow))
}
