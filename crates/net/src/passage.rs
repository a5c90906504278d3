//! Connections by way of a host that a container has left.
//!
//! ```text
//!            client ──► old host: port, translated ──► route ──► new host ──► container
//!            client ◄── old host: translated back  ◄── rule  ◄── new host ◄── container
//! ```
//!
//! A connection through a published port, or one that the container's host masquerades, is known under
//! that host's address: only that host can translate it. So the old host keeps its ports and what it
//! tracks, and leads the container's address to the new host ([`Onward`], in the place of its lock); the
//! new host sends the answers of such connections back there ([`Back`]). Connections by the new host's
//! own ports know nothing of it.
//!
//! Old host: a route of the container's address, and a table that keeps this host from telling clients
//! that there is a shorter way (ICMP redirects), since only it translates.
//!
//! New host, one table `inet back` and eight digits for each host that it returns to:
//!
//! ```text
//! set flows { protocol . port . peer . peer's port }   what the old host tracked at the move
//! set own     { the same }                             what this host itself tracks
//! chain early filter prerouting -300  to the container from the old host's hardware address, of `own`:
//!                                     not tracked. Such packets were on their way to the container,
//!                                     translated, when it came back
//! chain in    filter prerouting -150  to the container from the old host's hardware address: the
//!                                     connection gets a mark; from the container, of such a connection
//!                                     or of `flows`: the packet gets it, too
//! chain out   nat postrouting 99      packets with the mark keep the container as their source: the
//!                                     container may be the first to speak, and would be masqueraded
//! ip rule     from the container, with the mark: a table whose default route is the old host
//! ```
//!
//! Both hosts must be neighbours. IPv4 only.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Doing, NetworkError};
use crate::lock::now;
use crate::mac::Mac;
use crate::nft::{Batch, Element, Expr, Hook, Nft, REG, TableFamily, meta};
use crate::ports::Protocol;
use crate::route::Route;

/// A connection as a container sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The container's port.
    pub port: u16,
    /// The other end's address.
    pub peer: Ipv4Addr,
    /// The other end's port.
    pub peer_port: u16,
}

/// What the new host has to know of the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The old host's address towards the new one.
    pub via: Ipv4Addr,
    /// The hardware address that its packets come from.
    pub mac: Mac,
    /// Connections that are open.
    pub flows: Vec<Flow>,
    /// For how many seconds; `None`: until it is removed.
    pub seconds: Option<u64>,
}

/// Where an old host sends packets for a container that has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    /// The new host's address, a neighbour's.
    pub via: Ipv4Addr,
    /// The new host, as the user calls it.
    pub host: String,
}

/// Which connections a new host returns to an old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// The container.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Where to, and what.
    pub passage: Passage,
    /// What is open and comes by way of this host itself.
    pub own: Vec<Flow>,
    /// When it ends by itself, in seconds since boot; `None`: never.
    pub until: Option<u64>,
    /// The process that ends it in time: pid and start time.
    pub keeper: Option<(i32, u64)>,
}

/// Marks connections that a container's `via` translates; also names the table of routes.
pub(crate) fn mark(ip: Ipv4Addr, via: Ipv4Addr) -> u32 {
    let digest = Sha256::new().chain_update(ip.octets()).chain_update(via.octets()).finalize();
    // Far from the small numbers that people use.
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) & 0x3fff_ffff | 0x4000_0000
}

/// nft's type numbers (see [`crate::rules`]), for listings.
const FLOW_TYPE: u32 = ((12 << 6 | 13) << 6 | 7) << 6 | 13;
const FLOW_LENGTH: u32 = 16;
const FLOWS: &str = "flows";
const FLOWS_ID: u32 = 1;
const OWN: &str = "own";
const OWN_ID: u32 = 2;

const IPV4: [u8; 1] = [2];
/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

fn of_ipv4() -> [Expr<'static>; 2] {
    [Expr::Meta(REG, meta::NETWORK_PROTOCOL), Expr::Equal(REG, &IPV4)]
}

fn remove_table(nft: &mut Nft, name: &str) -> Result<(), NetworkError> {
    if nft.has(TableFamily::Inet, name).doing("look up table", name)? {
        let mut batch = Batch::new(name);
        batch.delete_table();
        nft.commit(batch).doing("remove table", name)?;
    }
    Ok(())
}

impl Onward {
    fn table(ip: Ipv4Addr) -> String {
        format!("onward{:08x}", u32::from(ip))
    }

    /// Leads packets for the address there.
    pub(crate) fn lead(
        &self,
        route: &mut Route,
        nft: &mut Nft,
        ip: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        const ICMP: [u8; 1] = [1];
        const REDIRECT: [u8; 1] = [5];
        /// The header of the packet that an ICMP message is about.
        const ABOUT: u32 = 8;
        let name = Onward::table(ip);
        let octets = ip.octets();
        let mut batch = Batch::new(&name);
        batch.table().delete_table().table().chain("quiet", "filter", Hook::Output, -300);
        for offset in [ABOUT + SOURCE, ABOUT + DESTINATION] {
            let rule = [
                Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
                Expr::Equal(REG, &ICMP),
                Expr::Transport(REG, 0, 1),
                Expr::Equal(REG, &REDIRECT),
                Expr::Transport(REG, offset, 4),
                Expr::Equal(REG, &octets),
                Expr::Drop,
            ];
            batch.rule("quiet", &[&of_ipv4()[..], &rule].concat());
        }
        nft.commit(batch).doing("make table", &name)?;
        route.lead_address(ip, self.via).doing("lead on", ip)
    }

    /// Stops to lead packets there; the address is this host's to reach again.
    pub(crate) fn stop(
        &self,
        route: &mut Route,
        nft: &mut Nft,
        ip: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        route.forget_address(ip, self.via).doing("stop to lead on", ip)?;
        remove_table(nft, &Onward::table(ip))
    }
}

impl Back {
    /// Seconds until it ends by itself; `None`: never.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.until.map(|until| until.saturating_sub(now()))
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.remaining() == Some(0)
    }

    fn mark(&self) -> u32 {
        mark(self.ip, self.passage.via)
    }

    /// The name under which it is kept, and that of its table.
    pub(crate) fn key(&self) -> String {
        format!("back{:08x}", self.mark())
    }

    /// Returns the connections.
    pub(crate) fn lead(&self, route: &mut Route, nft: &mut Nft) -> Result<(), NetworkError> {
        let name = self.key();
        route
            .lead_marked(self.ip, self.mark(), self.passage.via)
            .doing("lead back to", self.passage.via)?;
        nft.commit(self.rules(&name)).doing("make table", &name)
    }

    /// Stops to return them.
    pub(crate) fn stop(&self, route: &mut Route, nft: &mut Nft) -> Result<(), NetworkError> {
        remove_table(nft, &self.key())?;
        route.forget_marked(self.ip, self.mark()).doing("stop to lead back to", self.passage.via)
    }

    fn rules(&self, name: &str) -> Batch {
        let (ip, mark) = (self.ip.octets(), self.mark().to_ne_bytes());
        let to = [Expr::Network(REG, DESTINATION, 4), Expr::Equal(REG, &ip)];
        let from = [Expr::Network(REG, SOURCE, 4), Expr::Equal(REG, &ip)];
        let mut batch = Batch::new(name);
        batch.table().delete_table().table();
        batch.set(FLOWS, FLOWS_ID, FLOW_TYPE, FLOW_LENGTH);
        batch.set(OWN, OWN_ID, FLOW_TYPE, FLOW_LENGTH);
        batch.chain("early", "filter", Hook::Prerouting, -300);
        batch.chain("in", "filter", Hook::Prerouting, -150);
        batch.chain("out", "nat", Hook::Postrouting, 99);
        let from_there = [Expr::Link(REG, 6, 6), Expr::Equal(REG, &self.passage.mac.0)];
        let own = [
            Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
            Expr::Transport(REG + 1, 2, 2),
            Expr::Network(REG + 2, SOURCE, 4),
            Expr::Transport(REG + 3, 0, 2),
            Expr::Member(REG, OWN, OWN_ID),
            Expr::Untracked,
        ];
        batch.rule("early", &[&of_ipv4()[..], &to, &from_there, &own].concat());
        let came_by = [Expr::Value(REG, &mark), Expr::SetCtMark(REG)];
        batch.rule("in", &[&of_ipv4()[..], &to, &from_there, &came_by].concat());
        let known = [
            Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
            Expr::Transport(REG + 1, 0, 2),
            Expr::Network(REG + 2, DESTINATION, 4),
            Expr::Transport(REG + 3, 2, 2),
            Expr::Member(REG, FLOWS, FLOWS_ID),
            Expr::Value(REG, &mark),
            Expr::SetCtMark(REG),
        ];
        batch.rule("in", &[&of_ipv4()[..], &from, &known].concat());
        let marked = [Expr::CtMark(REG), Expr::Equal(REG, &mark), Expr::SetMark(REG)];
        batch.rule("in", &[&of_ipv4()[..], &from, &marked].concat());
        let itself = [
            Expr::Meta(REG, meta::MARK),
            Expr::Equal(REG, &mark),
            Expr::Value(REG, &ip),
            Expr::SourceNat(REG),
        ];
        batch.rule("out", &[&of_ipv4()[..], &from, &itself].concat());
        for (set, flows) in [(FLOWS, &self.passage.flows), (OWN, &self.own)] {
            let elements: Vec<Element> = flows.iter().map(element).collect();
            batch.add_elements(set, &elements);
        }
        batch
    }
}

/// A flow as a key of the set.
fn element(flow: &Flow) -> Element {
    let padded = |port: u16| [port.to_be_bytes(), [0, 0]].concat();
    let key = [
        &[flow.protocol.number(), 0, 0, 0][..],
        &padded(flow.port),
        &flow.peer.octets(),
        &padded(flow.peer_port),
    ];
    Element { key: key.concat(), data: Vec::new(), comment: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_hosts_and_containers_apart() {
        let [a, b] = [[10, 88, 0, 2], [10, 88, 0, 3]].map(Ipv4Addr::from);
        let [x, y] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from);
        let marks = [mark(a, x), mark(a, y), mark(b, x), mark(b, y)];
        for (number, one) in marks.iter().enumerate() {
            assert!(!marks[number + 1..].contains(one));
            assert_eq!(one >> 30, 1, "{one:x} is one of the small numbers that people use");
        }
    }

    #[test]
    fn a_flow_is_sixteen_bytes_in_network_order() {
        let flow = Flow {
            protocol: Protocol::Tcp,
            port: 80,
            peer: [192, 0, 2, 9].into(),
            peer_port: 0x1234,
        };
        assert_eq!(element(&flow).key, [6, 0, 0, 0, 0, 80, 0, 0, 192, 0, 2, 9, 0x12, 0x34, 0, 0]);
    }
}
