//! The nf_tables rules of a network: one table `inet BRIDGE`.
//!
//! ```text
//! map by_port    { protocol . port           : address . port }   published on all addresses
//! map by_address { address . protocol . port : address . port }   published on one
//! map by_port6   { protocol . port           : address . port }   the same for IPv6, if there is any
//! chain guard       filter prerouting -300   from the bridge to 127.0.0.0/8: drop
//! chain prerouting  nat prerouting -100      dnat by the maps: from other hosts and containers
//! chain output      nat output -100          dnat by the maps: from this host
//! chain postrouting nat postrouting 100      masquerade, see below
//! ```
//!
//! Publishing a port adds an element whose comment is the container's id; unpublishing removes the
//! elements with that comment. No rule is ever changed, nothing of others is touched, and a lookup
//! costs the same with one container and with a thousand.
//!
//! Masqueraded are: what leaves the subnet; connections from the host's 127.0.0.0/8 that were
//! redirected to a container (it could not answer to 127.0.0.1); connections between two containers
//! by way of a published port (the answer would take the short way and not be translated back).
//! The second needs `route_localnet` on the bridge, which would let containers talk to services of
//! the host that are bound to 127.0.0.1: the guard forbids it before translation.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::claim::Foreign;
use crate::nft::{Batch, Element, Expr, Hook, MapType, Nft, REG, REG2, interface, meta};
use crate::ports::{PortMapping, Protocol};

/// nft's type numbers, six bits each in a concatenation.
const TYPE_ADDRESS: u32 = 7;
const TYPE_ADDRESS6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;

const BY_PORT: MapType = MapType {
    name: "by_port",
    id: 1,
    key_type: TYPE_PROTOCOL << 6 | TYPE_SERVICE,
    key_len: 8,
    data_type: TYPE_ADDRESS << 6 | TYPE_SERVICE,
    data_len: 8,
};

const BY_ADDRESS: MapType = MapType {
    name: "by_address",
    id: 2,
    key_type: TYPE_ADDRESS << 12 | TYPE_PROTOCOL << 6 | TYPE_SERVICE,
    key_len: 12,
    data_type: TYPE_ADDRESS << 6 | TYPE_SERVICE,
    data_len: 8,
};

const BY_PORT6: MapType = MapType {
    name: "by_port6",
    id: 3,
    key_type: TYPE_PROTOCOL << 6 | TYPE_SERVICE,
    key_len: 8,
    data_type: TYPE_ADDRESS6 << 6 | TYPE_SERVICE,
    data_len: 20,
};

/// All maps; the last one only where there is IPv6.
const MAPS: [&str; 3] = [BY_PORT.name, BY_ADDRESS.name, BY_PORT6.name];

/// `IPS_DST_NAT`, a bit of a connection's status.
const STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `NFPROTO_IPV4` as `meta nfproto` loads it.
const IPV4: [u8; 1] = [2];
/// `NFPROTO_IPV6`.
const IPV6: [u8; 1] = [10];
/// Offsets in the IPv6 header.
const SOURCE6: u32 = 8;
const DESTINATION6: u32 = 24;
/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Offset of the destination port in TCP and UDP headers.
const PORT: u32 = 2;

/// The parts of a rule as one.
fn joined<'a>(parts: &[&[Expr<'a>]]) -> Vec<Expr<'a>> {
    parts.concat()
}

/// The transaction that makes the table of a network.
fn table(bridge: &str, subnet: Ipv4Net, subnet6: Option<Ipv6Net>) -> Batch {
    let mut batch = Batch::new(bridge);
    batch
        .table()
        .map(&BY_PORT)
        .map(&BY_ADDRESS)
        .chain("guard", "filter", Hook::Prerouting, -300)
        .chain("prerouting", "nat", Hook::Prerouting, -100)
        .chain("output", "nat", Hook::Output, -100)
        .chain("postrouting", "nat", Hook::Postrouting, 100);
    let ipv4 = [Expr::Meta(REG, meta::NETWORK_PROTOCOL), Expr::Equal(REG, &IPV4)];
    let name = interface(bridge);
    let from_bridge = [Expr::Meta(REG, meta::INPUT_NAME), Expr::Equal(REG, &name)];
    let to_bridge = [Expr::Meta(REG, meta::OUTPUT_NAME), Expr::Equal(REG, &name)];
    let loopback = |offset| {
        [
            Expr::Network(REG, offset, 4),
            Expr::Mask(REG, &[255, 0, 0, 0]),
            Expr::Equal(REG, &[127, 0, 0, 0]),
        ]
    };

    batch.rule("guard", &joined(&[&ipv4, &from_bridge, &loopback(DESTINATION), &[Expr::Drop]]));

    let by_address = [
        Expr::Network(REG, DESTINATION, 4),
        Expr::Meta(REG2, meta::TRANSPORT_PROTOCOL),
        Expr::Transport(REG2 + 1, PORT, 2),
        Expr::Lookup(REG, BY_ADDRESS.name, BY_ADDRESS.id),
        Expr::DestinationNat(REG),
    ];
    let local = LOCAL.to_ne_bytes();
    let by_port = [
        Expr::DestinationType(REG),
        Expr::Equal(REG, &local),
        Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
        Expr::Transport(REG2, PORT, 2),
        Expr::Lookup(REG, BY_PORT.name, BY_PORT.id),
        Expr::DestinationNat(REG),
    ];
    for chain in ["prerouting", "output"] {
        batch.rule(chain, &joined(&[&ipv4, &by_address]));
        batch.rule(chain, &joined(&[&ipv4, &by_port]));
    }

    let (network, mask) = (subnet.network().octets(), subnet.netmask().octets());
    let from_subnet =
        [Expr::Network(REG, SOURCE, 4), Expr::Mask(REG, &mask), Expr::Equal(REG, &network)];
    let leaving = [
        // Multicast keeps its source.
        Expr::Network(REG, DESTINATION, 4),
        Expr::Mask(REG, &[240, 0, 0, 0]),
        Expr::Differs(REG, &[224, 0, 0, 0]),
        Expr::Meta(REG, meta::OUTPUT_NAME),
        Expr::Differs(REG, &name),
    ];
    batch.rule("postrouting", &joined(&[&ipv4, &from_subnet, &leaving, &[Expr::Masquerade]]));
    batch
        .rule("postrouting", &joined(&[&ipv4, &to_bridge, &loopback(SOURCE), &[Expr::Masquerade]]));
    let dnat = STATUS_DNAT.to_ne_bytes();
    let redirected =
        [Expr::CtStatus(REG), Expr::Mask(REG, &dnat), Expr::Equal(REG, &dnat), Expr::Masquerade];
    // By source address, not by interface: a bridged packet has no incoming one here.
    batch.rule("postrouting", &joined(&[&ipv4, &from_subnet, &to_bridge, &redirected]));
    if let Some(subnet) = subnet6 {
        ipv6(&mut batch, &name, subnet);
    }
    batch
}

/// The same for IPv6, but for ::1: the kernel has no `route_localnet` for it, and drops the answers
/// before any rule. Who asks for `localhost` is refused there, and goes on to 127.0.0.1.
fn ipv6(batch: &mut Batch, name: &[u8; 16], subnet: Ipv6Net) {
    batch.map(&BY_PORT6);
    let ipv6 = [Expr::Meta(REG, meta::NETWORK_PROTOCOL), Expr::Equal(REG, &IPV6)];
    let to_bridge = [Expr::Meta(REG, meta::OUTPUT_NAME), Expr::Equal(REG, name)];
    let local = LOCAL.to_ne_bytes();
    let by_port = [
        Expr::DestinationType(REG),
        Expr::Equal(REG, &local),
        Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
        Expr::Transport(REG2, PORT, 2),
        Expr::Lookup(REG, BY_PORT6.name, BY_PORT6.id),
        Expr::DestinationNat6(REG),
    ];
    let loopback = Ipv6Addr::LOCALHOST.octets();
    let elsewhere = [Expr::Network(REG, DESTINATION6, 16), Expr::Differs(REG, &loopback)];
    for chain in ["prerouting", "output"] {
        batch.rule(chain, &joined(&[&ipv6, &elsewhere, &by_port]));
    }
    let (network, mask) = (subnet.network().octets(), subnet.netmask().octets());
    let from_subnet =
        [Expr::Network(REG, SOURCE6, 16), Expr::Mask(REG, &mask), Expr::Equal(REG, &network)];
    let leaving = [
        // Multicast keeps its source.
        Expr::Network(REG, DESTINATION6, 1),
        Expr::Differs(REG, &[0xff]),
        Expr::Meta(REG, meta::OUTPUT_NAME),
        Expr::Differs(REG, name),
    ];
    batch.rule("postrouting", &joined(&[&ipv6, &from_subnet, &leaving, &[Expr::Masquerade]]));
    let dnat = STATUS_DNAT.to_ne_bytes();
    let redirected =
        [Expr::CtStatus(REG), Expr::Mask(REG, &dnat), Expr::Equal(REG, &dnat), Expr::Masquerade];
    batch.rule("postrouting", &joined(&[&ipv6, &from_subnet, &to_bridge, &redirected]));
}

/// Makes the table unless it is there. Says whether it was made.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn ensure(
    nft: &mut Nft,
    bridge: &str,
    subnet: Ipv4Net,
    subnet6: Option<Ipv6Net>,
) -> io::Result<bool> {
    if nft.has_table(bridge)? {
        return Ok(false);
    }
    nft.commit(table(bridge, subnet, subnet6))?;
    Ok(true)
}

/// Removes the table. Absence is no error.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn remove(nft: &mut Nft, bridge: &str) -> io::Result<()> {
    let mut batch = Batch::new(bridge);
    batch.delete_table();
    match nft.commit(batch) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The elements of the maps that publish `ports` of a container with these addresses.
fn elements(
    container: &str,
    addresses: impl Iterator<Item = IpAddr>,
    ports: &[PortMapping],
) -> [Vec<Element>; 3] {
    let [mut by_port, mut by_address, mut by_port6] = [const { Vec::new() }; 3];
    let padded = |port: u16| [port.to_be_bytes(), [0, 0]].concat();
    for address in addresses {
        for mapping in ports {
            let protocol = [mapping.protocol.number(), 0, 0, 0];
            for (host, inner) in mapping.pairs() {
                let mut key = [&protocol[..], &padded(host)].concat();
                let (ip, list) = match (address, mapping.host_ip) {
                    (IpAddr::V4(ip), None) => (ip.octets().to_vec(), &mut by_port),
                    (IpAddr::V4(ip), Some(on)) => {
                        key = [&on.octets()[..], &key].concat();
                        (ip.octets().to_vec(), &mut by_address)
                    }
                    (IpAddr::V6(ip), None) => (ip.octets().to_vec(), &mut by_port6),
                    // Published on an IPv4 address only.
                    (IpAddr::V6(_), Some(_)) => continue,
                };
                let data = [&ip[..], &padded(inner)].concat();
                list.push(Element { key, data, comment: container.to_owned() });
            }
        }
    }
    [by_port, by_address, by_port6]
}

/// Publishes ports in one transaction, in place of those of container `instead_of`.
///
/// # Errors
/// The kernel's answer; `EBUSY` or `EEXIST` when a port leads elsewhere.
pub(crate) fn publish(
    nft: &mut Nft,
    bridge: &str,
    instead_of: Option<&str>,
    container: &str,
    addresses: impl Iterator<Item = IpAddr>,
    ports: &[PortMapping],
) -> io::Result<()> {
    let mut batch = Batch::new(bridge);
    if let Some(old) = instead_of {
        remove_elements(nft, &mut batch, bridge, old)?;
    }
    for (map, elements) in MAPS.iter().zip(elements(container, addresses, ports)) {
        batch.add_elements(map, &elements);
    }
    nft.commit(batch)
}

/// Removes every published port of a container. Absence is no error.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn unpublish(nft: &mut Nft, bridge: &str, container: &str) -> io::Result<()> {
    let mut batch = Batch::new(bridge);
    remove_elements(nft, &mut batch, bridge, container)?;
    nft.commit(batch)
}

/// Takes what a container publishes out of the maps that there are.
fn remove_elements(
    nft: &mut Nft,
    batch: &mut Batch,
    bridge: &str,
    container: &str,
) -> io::Result<()> {
    for map in MAPS {
        let mut elements = match nft.elements(bridge, map) {
            Ok(elements) => elements,
            // No table, no ports; a network without IPv6 has no map for it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        elements.retain(|e| e.comment == container);
        batch.delete_elements(map, &elements);
    }
    Ok(())
}

/// The containers that publish ports.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn publishers(nft: &mut Nft, bridge: &str) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for map in MAPS {
        match nft.elements(bridge, map) {
            Ok(elements) => found.extend(elements.into_iter().map(|e| e.comment)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The ports that other networks of this network namespace publish.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn published_elsewhere(nft: &mut Nft, bridge: &str) -> io::Result<Foreign> {
    let mut ports = Vec::new();
    for table in nft.tables_with(BY_PORT.name)? {
        if table == bridge {
            continue;
        }
        for map in [BY_PORT.name, BY_ADDRESS.name] {
            let elements = match nft.elements(&table, map) {
                Ok(elements) => elements,
                // Gone meanwhile, or not one of ours.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            ports.extend(elements.iter().filter_map(|e| Some((e.comment.clone(), mapping(e)?))));
        }
    }
    Ok(ports)
}

/// The published port that an element stands for.
fn mapping(element: &Element) -> Option<PortMapping> {
    let (host_ip, key) = match element.key.len() {
        8 => (None, &element.key[..]),
        12 => {
            let (ip, key) = element.key.split_first_chunk::<4>()?;
            (Some(Ipv4Addr::from(*ip)), key)
        }
        _ => return None,
    };
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?));
    let protocol = match key[0] {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(PortMapping {
        host_ip,
        container_port: port(&element.data)?,
        host_port: port(key)?,
        range: 1,
        protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_stands_for_its_port() {
        for text in ["8080:80", "127.0.0.1:53:53/udp"] {
            let port: PortMapping = text.parse().expect("port");
            let addresses = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().expect("ip"));
            let all = elements("c", addresses.into_iter(), std::slice::from_ref(&port));
            let one = all.iter().flatten().next().expect("element");
            let for_ipv6 = usize::from(port.host_ip.is_none());
            assert_eq!(all[2].len(), for_ipv6, "one address of the host is of one kind");
            assert_eq!(mapping(one), Some(port));
        }
    }
}
