//! Holding everything that is sent to a container, while there is nobody to receive it.
//!
//! ```text
//!   hosts, other containers ──► bridge ──► port HOLD   a queue that stands still (tc-tbf)
//!                                             │ veth
//!                                           end HELD   nf_tables: send it to HOLD again; after the
//!                                                      unlock to the container's own port
//!   container ──► bridge: dropped by source (nf_tables, bridge prerouting)
//! ```
//!
//! The bridge's forwarding table leads the container's hardware address to HOLD. Nothing above the
//! frames changes: translations, routes and tracked connections stay as they are, IPv6 and other
//! containers of the bridge are held as well. The bridge's neighbour entry is permanent meanwhile, so
//! that this host reports no unreachable address, and the bridge answers for the container when
//! others ask for it. All of it is the bridge's and lives on when the container's interface and
//! namespace go.
//!
//! A token bucket begins full, and what passes it comes back by way of HELD: so it is emptied
//! beforehand, by a frame that goes round until it waits itself, in front of everything that is held
//! later. The same happens when the byte a second that it is refilled with is enough for that frame.
//!
//! To lock: first the forwarding table leads to HOLD, then what the container sends is dropped. The
//! other way round the container's kernel would go on receiving, and answer in vain: a connection
//! whose second half was lost so is tried again only after a second.
//!
//! To release: HELD sends to the container's port, the queue gets a rate, and a frame that means
//! nothing ([`Marker`]) is sent through it, because only a new frame makes a queue look at its new
//! rate. When it has arrived all that waited before it has; then the forwarding table leads to the
//! container's port again, and a second such frame says that nothing is in the queue any more.
//! `docs/adr/0005-held-packets.md` has what else was tried.
//!
//! Where the kernel has no such queue, frames to the container are dropped in the bridge; where it
//! has no nf_tables for bridges, packets are dropped by address in the IP hooks.

use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

use crate::connect::index;
use crate::error::{Doing, NetworkError};
use crate::mac::Mac;
use crate::marker::Marker;
use crate::nft::{Batch, Expr, Hook, Nft, REG, REG2, TableFamily, Way, is_unsupported, meta};
use crate::route::Route;
use crate::segment::{Rate, neighbour};

/// Before everybody else's chains.
const FIRST: i32 = -1000;

/// Most bytes that wait for one container.
const ROOM: u32 = 32 << 20;

/// Longer than any frame with its overhead; longer segments are split by the queue.
const BURST: u32 = 90_000;

const STILL: Rate = Rate { bytes: 1, overhead: 0, burst: BURST, limit: ROOM };

/// Slow enough for the kernel's receive backlog, which holds a thousand frames: ten microseconds a
/// frame and more. Of 3000 small frames without that, 945 were lost.
const FLOWING: Rate = Rate { bytes: 1_250_000_000, overhead: 12_500, burst: BURST, limit: ROOM };

/// What happens to packets for a locked container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// They wait, 32 MiB of them at most, and arrive when the lock is opened.
    #[default]
    Hold,
    /// They are dropped, and sent again by their senders when a timer of theirs fires.
    Drop,
}

/// The container whose packets are held, and the bridge it is or was on.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    bridge: u32,
    mtu: u32,
    mac: Mac,
    addresses: Vec<IpAddr>,
    port: String,
    end: String,
}

impl Hold {
    /// About the container that has these addresses on a bridge.
    pub fn new(bridge: &str, index: u32, mtu: u32, mac: Mac, addresses: Vec<IpAddr>) -> Self {
        let digest = Sha256::new().chain_update(bridge).chain_update(mac.0).finalize();
        let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
        let (port, end) = (format!("hold{}", &hex[..11]), format!("held{}", &hex[..11]));
        Hold { bridge: index, mtu, mac, addresses, port, end }
    }

    /// The name of the port, which depends on the bridge and the hardware address alone.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// Makes the port and its queue, which change nothing yet. Says what they can do.
    pub fn prepare(&self, route: &mut Route, nft: &mut Nft) -> Result<Means, NetworkError> {
        route.delete_link(&self.port).doing("remove", &self.port)?;
        route.add_pair(&self.port, &self.end, self.bridge, self.mtu).doing("make", &self.port)?;
        let (port, end) = (index(route, &self.port)?, index(route, &self.end)?);
        for link in [&self.port, &self.end] {
            // No frames of its own, which would leave by the bridge.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
        }
        if route.set_rate(port, STILL).is_err() || !self.close(route, nft, port)? {
            route.delete_link(&self.port).doing("remove", &self.port)?;
            return Ok(Means::Drop);
        }
        route.set_up(port).doing("bring up", &self.port)?;
        route.set_up(end).doing("bring up", &self.end)?;
        route.wait_running(end, None).doing("see the carrier of", &self.end)?;
        route.wait_running(port, None).doing("see the carrier of", &self.port)?;
        Marker::stop(port, self.mac, self.mtu).doing("empty the bucket of", &self.port)?;
        Ok(Means::Hold)
    }

    /// Lets what passes the queue go round, and makes the bridge answer for the container. Says
    /// whether the kernel can do it.
    fn close(&self, route: &mut Route, nft: &mut Nft, port: u32) -> Result<bool, NetworkError> {
        route.set_quiet_port(port, true).doing("set up", &self.port)?;
        let mut batch = Batch::new(&self.port);
        self.at_end(&mut batch, &port.to_ne_bytes());
        match nft.commit(batch) {
            Err(e) if is_unsupported(&e) => Ok(false),
            other => other.doing("lead back into", &self.port).map(|()| true),
        }
    }

    /// Locks what was prepared: nothing reaches or leaves the container from here on.
    pub fn engage(
        &self,
        route: &mut Route,
        nft: &mut Nft,
        means: Means,
    ) -> Result<(), NetworkError> {
        self.hold_neighbours(route)?;
        if means == Means::Hold {
            let port = index(route, &self.port)?;
            route.lead(self.mac, port, true).doing("hold packets for", self.mac)?;
        }
        match nft.commit(self.by_frame(means)) {
            // No nf_tables for bridges.
            Err(e) if is_unsupported(&e) => nft.commit(self.by_address()),
            other => other,
        }
        .doing("lock", &self.port)
    }

    /// Makes a lock whole of which something is missing: somebody flushed the rules, or a command
    /// that was killed had opened it half, and then frames would go in a circle.
    pub fn mend(&self, route: &mut Route, nft: &mut Nft, means: Means) -> Result<(), NetworkError> {
        if self.stands(nft)? {
            return Ok(());
        }
        if means == Means::Hold {
            let port = index(route, &self.port)?;
            route.set_rate(port, STILL).doing("stop", &self.port)?;
            self.close(route, nft, port)?;
        }
        self.engage(route, nft, means)
    }

    /// Makes this host go on sending to the container without asking for it.
    pub fn hold_neighbours(&self, route: &mut Route) -> Result<(), NetworkError> {
        for ip in &self.addresses {
            route.believe(self.bridge, *ip, self.mac, neighbour::PERMANENT).doing("keep", ip)?;
        }
        Ok(())
    }

    /// Lets packets from the container pass. Those for it are still led into the queue, if there is one.
    pub fn let_out(&self, nft: &mut Nft) -> Result<(), NetworkError> {
        let mut batch = Batch::new(&self.port);
        self.removed(nft, &mut batch, &[TableFamily::Bridge, TableFamily::Inet])?;
        nft.commit(batch).doing("let out what is behind", &self.port)
    }

    /// Lets packets from the container pass, and those that were held, to its interface behind the
    /// bridge's port `to`. What arrives now takes the same way, in order, until [`Released::finish`].
    pub fn release(
        &self,
        route: &mut Route,
        nft: &mut Nft,
        to: &str,
    ) -> Result<Released, NetworkError> {
        let to = index(route, to)?;
        let held = route.link(&self.port).doing("look up", &self.port)?.map(|link| link.index);
        let marker = held.map(|port| Marker::new(port, to, self.mac));
        let marker = marker.transpose().doing("watch", &self.port)?;
        let mut batch = Batch::new(&self.port);
        if held.is_some() {
            self.at_end(&mut batch, &to.to_ne_bytes());
        }
        self.removed(nft, &mut batch, &[TableFamily::Bridge, TableFamily::Inet])?;
        nft.commit(batch).doing("unlock", &self.port)?;
        if let (Some(port), Some(marker)) = (held, &marker) {
            route.set_rate(port, FLOWING).doing("release", &self.port)?;
            marker.send().doing("push", &self.port)?;
            // Who asks for the container is answered by itself again.
            route.set_quiet_port(port, false).doing("set up", &self.port)?;
        }
        for ip in &self.addresses {
            route.believe(self.bridge, *ip, self.mac, neighbour::STALE).doing("believe", ip)?;
        }
        Ok(Released { hold: self.clone(), to, marker })
    }

    /// Sends what was held to a neighbour, out of a device, and waits until it has left.
    pub fn send_on(
        &self,
        route: &mut Route,
        nft: &mut Nft,
        device: u32,
        via: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let Some(port) = route.link(&self.port).doing("look up", &self.port)?.map(|l| l.index)
        else {
            return Ok(());
        };
        let marker = Marker::arriving(port, index(route, &self.end)?, self.mac);
        let marker = marker.doing("watch", &self.end)?;
        let mut batch = Batch::new(&self.port);
        batch.on(TableFamily::Netdev, &self.port).table().delete_table().table();
        batch.device_chain("held", &self.end, Way::In);
        let (device, via) = (device.to_ne_bytes(), via.octets());
        batch.rule(
            "held",
            &[Expr::Value(REG, &device), Expr::Value(REG2, &via), Expr::SendToNeighbour(REG, REG2)],
        );
        nft.commit(batch).doing("send on from", &self.port)?;
        route.set_rate(port, FLOWING).doing("release", &self.port)?;
        marker.send().doing("push", &self.port)?;
        marker.wait().doing("see what leaves", &self.port)?;
        marker.end();
        Ok(())
    }

    /// Removes every trace. What is held is dropped.
    pub fn remove(&self, route: &mut Route, nft: &mut Nft) -> Result<(), NetworkError> {
        // First: what is on its way through it still finds the rule.
        route.delete_link(&self.port).map(drop).doing("remove", &self.port)?;
        let mut batch = Batch::new(&self.port);
        let families = [TableFamily::Bridge, TableFamily::Inet, TableFamily::Netdev];
        self.removed(nft, &mut batch, &families)?;
        nft.commit(batch).doing("unlock", &self.port)
    }

    /// As [`Hold::remove`], for a container that is not there: this host forgets it too.
    pub fn forget(&self, route: &mut Route, nft: &mut Nft) -> Result<(), NetworkError> {
        for ip in &self.addresses {
            route.forget(self.bridge, *ip).doing("forget", ip)?;
        }
        self.remove(route, nft)
    }

    /// Whether the port is there.
    pub fn is_there(&self, route: &mut Route) -> Result<bool, NetworkError> {
        Ok(route.link(&self.port).doing("look up", &self.port)?.is_some())
    }

    /// Whether the rules are there.
    pub fn stands(&self, nft: &mut Nft) -> Result<bool, NetworkError> {
        for family in [TableFamily::Bridge, TableFamily::Inet] {
            match nft.has(family, &self.port) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(e) if is_unsupported(&e) => {}
                Err(e) => return Err(e).doing("look up table", &self.port),
            }
        }
        Ok(false)
    }

    /// Takes the tables that exist out.
    fn removed(
        &self,
        nft: &mut Nft,
        batch: &mut Batch,
        families: &[TableFamily],
    ) -> Result<(), NetworkError> {
        for family in families {
            match nft.has(*family, &self.port) {
                Ok(true) => drop(batch.on(*family, &self.port).delete_table()),
                Ok(false) => {}
                Err(e) if is_unsupported(&e) => {}
                Err(e) => return Err(e).doing("look up table", &self.port),
            }
        }
        Ok(())
    }

    /// The lock as frames: drop by source, and, without a queue, by destination.
    fn by_frame(&self, means: Means) -> Batch {
        let mut batch = Batch::new(&self.port);
        let source = [Expr::Link(REG, 6, 6), Expr::Equal(REG, &self.mac.0), Expr::Drop];
        let destination = [Expr::Link(REG, 0, 6), Expr::Equal(REG, &self.mac.0), Expr::Drop];
        batch.on(TableFamily::Bridge, &self.port).table().delete_table().table();
        batch.chain("from", "filter", Hook::Prerouting, FIRST).rule("from", &source);
        if means == Means::Drop {
            batch.chain("to", "filter", Hook::Postrouting, FIRST).rule("to", &destination);
        }
        batch
    }

    /// What comes out at the end goes to the link `to`.
    fn at_end(&self, batch: &mut Batch, to: &[u8; 4]) {
        batch.on(TableFamily::Netdev, &self.port).table().delete_table().table();
        batch.device_chain("held", &self.end, Way::In);
        batch.rule("held", &[Expr::Value(REG, to), Expr::SendTo(REG)]);
    }

    /// The lock as packets: drop by address. Frames between containers of one bridge pass these
    /// hooks only where the module br_netfilter makes them.
    fn by_address(&self) -> Batch {
        let mut batch = Batch::new(&self.port);
        batch.table().delete_table().table();
        let hooks = [
            ("forward", Hook::Forward, true, true),
            ("input", Hook::Input, true, false),
            ("postrouting", Hook::Postrouting, false, true),
        ];
        for (name, hook, from, to) in hooks {
            batch.chain(name, "filter", hook, FIRST);
            for ip in &self.addresses {
                let (family, bytes, source, destination) = match ip {
                    IpAddr::V4(ip) => ([2], ip.octets().to_vec(), 12, 16),
                    IpAddr::V6(ip) => ([10], ip.octets().to_vec(), 8, 24),
                };
                let length = if family == [2] { 4 } else { 16 };
                for (wanted, offset) in [(from, source), (to, destination)] {
                    if wanted {
                        batch.rule(
                            name,
                            &[
                                Expr::Meta(REG, meta::NETWORK_PROTOCOL),
                                Expr::Equal(REG, &family),
                                Expr::Network(REG, offset, length),
                                Expr::Equal(REG, &bytes),
                                Expr::Drop,
                            ],
                        );
                    }
                }
            }
        }
        batch
    }
}

/// A lock that was opened; what was held is on its way.
#[derive(Debug)]
#[must_use = "the port that held packets stays until this is finished"]
pub(crate) struct Released {
    hold: Hold,
    to: u32,
    marker: Option<Marker>,
}

impl Released {
    /// Waits until everything held has arrived, leads new packets past the queue, and removes it when
    /// it is empty.
    pub fn finish(self, route: &mut Route, nft: &mut Nft) -> Result<(), NetworkError> {
        let Released { hold, to, marker } = self;
        let wait = |marker: &Marker| marker.wait().doing("see what arrives from", &hold.port);
        if let Some(marker) = &marker {
            wait(marker)?;
        }
        route.lead(hold.mac, to, false).doing("lead to the container", hold.mac)?;
        if let Some(marker) = marker {
            marker.send().doing("push", &hold.port)?;
            wait(&marker)?;
            marker.end();
        }
        hold.remove(route, nft)
    }
}
