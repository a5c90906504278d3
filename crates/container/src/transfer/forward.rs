//! What the user sees of connections by way of other hosts: a list, and an end.

use std::net::Ipv4Addr;

use arctern_net::PortMapping;
use serde::Serialize;

use crate::config::short_id;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::keeper;

/// Which side of a passage this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The container has left: what comes for it is led on.
    To,
    /// The container is here, and answers by way of the host that it came from.
    From,
}

/// Connections by way of a host that a container has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Forward {
    /// The container's id.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where this host stands.
    pub direction: Direction,
    /// The other host's address.
    pub via: Ipv4Addr,
    /// The other host as the user called it; empty where it called us.
    pub host: String,
    /// Ports of this host that lead there.
    pub ports: Vec<PortMapping>,
    /// Seconds until it ends by itself; `None`: never.
    pub remaining_seconds: Option<u64>,
}

impl Host {
    /// All of them.
    ///
    /// # Errors
    /// The state of a network cannot be read.
    pub fn forwards(&mut self) -> Result<Vec<Forward>> {
        self.end_expired_locks()?;
        let mut all = Vec::new();
        for network in crate::network::all(&self.paths)? {
            for (ip, lock) in network.locks().map_err(Error::network)? {
                let remaining_seconds = lock.remaining();
                let Some(onward) = lock.onward else { continue };
                all.push(Forward {
                    container: lock.container,
                    name: lock.name,
                    address: ip,
                    direction: Direction::To,
                    via: onward.via,
                    host: onward.host,
                    ports: lock.ports,
                    remaining_seconds,
                });
            }
            for back in network.backs().map_err(Error::network)? {
                let remaining_seconds = back.remaining();
                all.push(Forward {
                    container: back.container,
                    name: back.name,
                    address: back.ip,
                    direction: Direction::From,
                    via: back.passage.via,
                    host: String::new(),
                    ports: Vec::new(),
                    remaining_seconds,
                });
            }
        }
        Ok(all)
    }

    /// Ends those of a container, by name, id or beginning of its id. Gives the id.
    ///
    /// # Errors
    /// [`Error::NoSuchForward`]; what the kernel says.
    pub fn end_forward(&mut self, name_or_id: &str) -> Result<String> {
        let all = self.forwards()?;
        let by_id = |f: &&Forward| !name_or_id.is_empty() && f.container.starts_with(name_or_id);
        let found = all.iter().find(|f| f.name == name_or_id).or_else(|| all.iter().find(by_id));
        let Some(Forward { container, .. }) = found else {
            return Err(Error::NoSuchForward(name_or_id.to_owned()));
        };
        for network in crate::network::all(&self.paths)? {
            let away = network.locks().map_err(Error::network)?;
            if away.values().any(|lock| lock.onward.is_some() && lock.container == *container) {
                let ended = network.end_lock(container).map_err(Error::network)?;
                ended.iter().for_each(keeper::dismiss);
            }
            let ended = network.give_up_backs(container).map_err(Error::network)?;
            ended.iter().for_each(|back| keeper::dismiss_process(back.keeper));
        }
        if self.store.is_empty()? {
            crate::network::remove_unused(&self.paths)?;
        }
        tracing::debug!("nothing is forwarded for {}", short_id(container));
        Ok(container.clone())
    }
}
