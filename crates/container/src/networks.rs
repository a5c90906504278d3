//! Networks as the user sees them: made, listed, removed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use arctern_net::{CreateNetwork, DEFAULT_NETWORK, Driver, Network, NetworkConfig, Subnet};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::network;
use crate::state::{Record, Status};
use crate::time::Timestamp;

impl Host {
    /// Makes a network. The kernel is touched when the first container is attached.
    ///
    /// # Errors
    /// What it cannot be, a name that is taken, no free subnet.
    pub fn create_network(&self, mut wanted: CreateNetwork) -> Result<NetworkConfig> {
        // Two that are made at a time have different subnets.
        let _births = self.births()?;
        wanted.created = Timestamp::now().rfc3339();
        network::store(&self.paths).create(wanted).map_err(Error::network)
    }

    /// All networks, the default one first.
    ///
    /// # Errors
    /// A description that cannot be read.
    pub fn networks(&self) -> Result<Vec<NetworkConfig>> {
        let mut networks = vec![self.default_network()?];
        networks.extend(network::store(&self.paths).list().map_err(Error::network)?);
        Ok(networks)
    }

    /// Names of the networks that containers are made for, or on which an address is taken or held for
    /// one that may come back; the default one is always among them.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn used_networks(&mut self) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::from([DEFAULT_NETWORK.to_owned()]);
        for record in self.list()? {
            used.extend(record.config.network_name().map(str::to_owned));
        }
        for config in network::store(&self.paths).list().map_err(Error::network)? {
            let network = Network::of(&network::leases(&self.paths), &config);
            let network = network.map_err(Error::network)?;
            let leases = network.leases().map_err(Error::network)?;
            if !leases.is_empty() || !network.locks().map_err(Error::network)?.is_empty() {
                used.insert(config.name);
            }
        }
        Ok(used)
    }

    /// A network by name, by id, or by the beginning of its id.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], also for a beginning that several ids have.
    pub fn network(&self, name: &str) -> Result<NetworkConfig> {
        let mut networks = self.networks()?;
        let by_name = networks.iter().position(|network| network.name == name);
        let mut by_id = networks.iter().enumerate().filter(|(_, n)| n.id.starts_with(name));
        let found = by_name.or_else(|| match (by_id.next(), by_id.next()) {
            (Some((index, _)), None) if !name.is_empty() => Some(index),
            _ => None,
        });
        found
            .map(|index| networks.swap_remove(index))
            .ok_or_else(|| Error::NoSuchNetwork(name.to_owned()))
    }

    /// The containers on a network that have an address on it, by id, as Podman shows them.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn containers_of(&mut self, network: &str) -> Result<Vec<(String, Value)>> {
        let mut found = Vec::new();
        for record in self.list()? {
            let Some(status) = network::parse_status(record.network.as_deref()) else { continue };
            if record.config.network_name().unwrap_or(DEFAULT_NETWORK) != network
                || record.status != Status::Running
            {
                continue;
            }
            let subnet = |ipnet: String, gateway: Option<IpAddr>| json!({ "ipnet": ipnet, "gateway": gateway });
            let mut subnets = vec![subnet(
                format!("{}/{}", status.ip, status.prefix),
                status.gateway.map(IpAddr::from),
            )];
            subnets.extend(
                status.ip6.map(|ip| subnet(ip.to_string(), status.gateway6.map(IpAddr::from))),
            );
            let interface = json!({ "subnets": subnets, "mac_address": status.mac });
            let container = json!({
                "name": record.config.name,
                "interfaces": { status.ifname: interface },
            });
            found.push((record.config.id, container));
        }
        Ok(found)
    }

    /// Removes a network; if `force` says so with its containers, and with locks that wait for the
    /// restore of an archive.
    ///
    /// # Errors
    /// [`Error::NoSuchNetwork`], [`Error::NetworkInUse`]; the default network stays.
    pub fn remove_network(&mut self, name: &str, force: bool) -> Result<()> {
        let network = self.network(name)?;
        if network.name == DEFAULT_NETWORK {
            return Err(Error::Invalid("the default network cannot be removed".to_owned()));
        }
        for record in self.list()? {
            if record.config.network_name() != Some(&network.name) {
                continue;
            }
            if !force {
                let container = record.config.name;
                return Err(Error::NetworkInUse { name: network.name, container });
            }
            self.remove(record.id(), true)?;
        }
        if force {
            network::end_locks(&self.paths, &network)?;
        }
        // No container begins to use it meanwhile.
        let _births = self.births()?;
        let used = |record: &Record| record.config.network_name() == Some(&network.name);
        if let Some(record) = self.store.list()?.into_iter().find(used) {
            let container = record.config.name;
            return Err(Error::NetworkInUse { name: network.name, container });
        }
        let removed = network::store(&self.paths)
            .remove(&network.name, &network::leases(&self.paths))
            .map_err(Error::network)?;
        match removed {
            true => Ok(()),
            false => Err(Error::NoSuchNetwork(network.name)),
        }
    }

    /// The network of containers for which none was named.
    fn default_network(&self) -> Result<NetworkConfig> {
        let (interface, known) = network::default_bridge(&self.paths)?;
        let subnets = known.map(|(subnet, gateway)| Subnet {
            subnet: subnet.into(),
            gateway: Some(gateway.into()),
            lease_range: None,
        });
        Ok(NetworkConfig {
            name: DEFAULT_NETWORK.to_owned(),
            id: NetworkConfig::id_of(DEFAULT_NETWORK),
            driver: Driver::Bridge,
            network_interface: interface,
            created: String::new(),
            subnets: subnets.into_iter().collect(),
            ipv6_enabled: false,
            internal: false,
            dns_enabled: false,
            labels: Default::default(),
            options: Default::default(),
            ipam_options: [("driver".to_owned(), "host-local".to_owned())].into(),
        })
    }
}
