//! Connections that netfilter tracks: forgetting those of published UDP ports.
//!
//! Translation is decided by a flow's first packet and kept as long as packets come. A UDP client
//! that goes on sending from one port would be sent to a container's former address for ever, or
//! past a port that was published since its first packet. TCP needs none of this: a new connection
//! is a new flow. Numbers are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;

use rustix::io::Errno;

use crate::netlink::{DUMP, Family, Socket, find};
use crate::ports::{PortMapping, Protocol};

/// `NFNL_SUBSYS_CTNETLINK`, in the upper byte of a message type.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
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
        if !to_us {
            continue;
        }
        let deleted = socket.request(DELETE, 0, family, |m| {
            let nest = m.nest(TUPLE_ORIG);
            m.raw(tuple);
            m.end(nest);
            if let Some(id) = find(attributes, ID) {
                m.attr(ID, id);
            }
        });
        match deleted {
            // It ended by itself.
            Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            other => drop(other?),
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
