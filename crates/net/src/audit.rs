//! What the kernel has of a network that neither a lease nor a lock accounts for.
//!
//! Read under the lock of the network's state, so that an attachment in progress is seen before or
//! after what it does. The port that a checkpoint prepares for its lock stands without a record until
//! it is needed: it is told with its container, and whether that one's command is at work is for the
//! caller to know.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Doing, NetworkError};
use crate::hold::Hold;
use crate::network::Network;
use crate::nft::{Batch, TableFamily};
use crate::rules;

/// Something that stays behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// A port of the bridge.
    Port {
        /// Its name.
        name: String,
        /// The container for which it holds packets.
        container: Option<String>,
    },
    /// Ports of the host that lead to nowhere, published by this container.
    Published(String),
}

impl Network {
    /// Looks for what stays behind. Only on bridges that are ours.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn strays(&self) -> Result<Vec<Stray>, NetworkError> {
        let mut strays = Vec::new();
        if self.is_lan() {
            return Ok(strays);
        }
        let locked = self.lock()?;
        let state = &locked.state;
        let locks = || state.locks.values().chain(state.away.values());
        let mut route = self.route()?;
        if let Some(bridge) = route.link(&self.link).doing("look up", &self.link)? {
            let hold = |mac, addresses| {
                let hold = Hold::new(&bridge.name, bridge.index, bridge.mtu, mac, addresses);
                hold.port().to_owned()
            };
            let own: BTreeSet<&str> =
                state.leases.values().map(|lease| lease.host_veth.as_str()).collect();
            let held: BTreeSet<String> = locks().map(|lock| hold(lock.mac, Vec::new())).collect();
            let prepared: BTreeMap<String, &String> = state
                .leases
                .iter()
                .map(|(container, lease)| (hold(lease.mac, Vec::new()), container))
                .collect();
            for port in route.ports(bridge.index).doing("list the ports of", &self.link)? {
                if is_our_name(&port.name)
                    && !own.contains(port.name.as_str())
                    && !held.contains(&port.name)
                {
                    let container = prepared.get(&port.name).map(|&id| id.clone());
                    strays.push(Stray::Port { name: port.name, container });
                }
            }
        }
        let known: BTreeSet<&str> = state
            .leases
            .keys()
            .chain(locks().map(|lock| &lock.publisher))
            .map(String::as_str)
            .collect();
        let publishers = rules::publishers(&mut self.nft()?, &self.link)
            .doing("read the published ports of", &self.link)?;
        let gone = publishers.into_iter().filter(|id| !known.contains(id.as_str()));
        strays.extend(gone.map(Stray::Published));
        Ok(strays)
    }

    /// Removes what stays behind.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn remove_stray(&self, stray: &Stray) -> Result<(), NetworkError> {
        let _locked = self.lock()?;
        let mut nft = self.nft()?;
        match stray {
            Stray::Port { name, .. } => {
                self.route()?.delete_link(name).doing("remove", name)?;
                for family in [TableFamily::Bridge, TableFamily::Inet, TableFamily::Netdev] {
                    if nft.has(family, name).unwrap_or(false) {
                        let mut batch = Batch::new(name);
                        batch.on(family, name).delete_table();
                        nft.commit(batch).doing("remove table", name)?;
                    }
                }
                Ok(())
            }
            Stray::Published(container) => rules::unpublish(&mut nft, &self.link, container)
                .doing("unpublish ports of container", container),
        }
    }
}

/// Whether a port has a name as this program gives them; others may have put theirs on the bridge.
fn is_our_name(name: &str) -> bool {
    ["veth", "hold"].iter().any(|prefix| {
        name.strip_prefix(prefix).is_some_and(|hex| {
            hex.len() == 11 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_left_alone() {
        assert!(is_our_name("veth0123456789a") && is_our_name("hold0123456789a"));
        assert!(!is_our_name("veth0") && !is_our_name("eth0") && !is_our_name("veth0123456789X"));
    }
}
