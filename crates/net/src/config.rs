//! What a network that the user made is like: Podman's JSON of it, and what of it is possible.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How containers are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// By a veth pair to a bridge: one of ours, with masquerade and published ports, or with the
    /// option `mode=unmanaged` one that is there, on whose segment the containers are machines.
    #[default]
    Bridge,
    /// By a macvlan device on a device of the host (option `parent`), on whose segment the
    /// containers are machines.
    Macvlan,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Bridge => "bridge",
            Driver::Macvlan => "macvlan",
        })
    }
}

/// A range of addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRange {
    /// First address.
    pub start_ip: IpAddr,
    /// Last address.
    pub end_ip: IpAddr,
}

/// A subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet.
    pub subnet: IpNet,
    /// The containers' default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Where free addresses are taken from; the whole subnet without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_range: Option<LeaseRange>,
}

/// A network that the user made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Its name.
    pub name: String,
    /// Its id: SHA-256 of its name.
    pub id: String,
    /// How containers are connected.
    pub driver: Driver,
    /// The bridge, or the device that macvlan devices share.
    pub network_interface: String,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// Its subnets: one of IPv4, at most one of IPv6.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// Whether containers get IPv6 addresses.
    #[serde(default)]
    pub ipv6_enabled: bool,
    /// Always false: containers reach other networks.
    #[serde(default)]
    pub internal: bool,
    /// Always false: there is no name server for containers.
    #[serde(default)]
    pub dns_enabled: bool,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Options of the driver: `mode`, `mtu`, `no_default_route`, `parent`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Who gives out addresses: `host-local`, by us.
    #[serde(default)]
    pub ipam_options: BTreeMap<String, String>,
}

/// What was asked of a network cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadNetwork(String);

impl BadNetwork {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        BadNetwork(text.into())
    }
}

impl FromStr for Driver {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        match text {
            "bridge" => Ok(Driver::Bridge),
            "macvlan" => Ok(Driver::Macvlan),
            _ => Err(BadNetwork::new(format!("driver {text}: there are bridge and macvlan"))),
        }
    }
}

/// How containers are connected, with what that needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bridge of ours.
    Managed,
    /// A bridge of somebody else.
    Plain,
    /// macvlan devices in a mode (`MACVLAN_MODE_*`).
    Macvlan(u32),
}

/// The addresses of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub subnet: Option<Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    pub subnet6: Option<Ipv6Net>,
    pub gateway6: Option<Ipv6Addr>,
    pub range6: Option<(Ipv6Addr, Ipv6Addr)>,
    pub mtu: Option<u32>,
    /// Whether containers have no default route.
    pub no_default_route: bool,
}

impl NetworkConfig {
    /// The id of a network with this name.
    pub fn id_of(name: &str) -> String {
        Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether the containers are machines on a segment that is not ours: nothing is translated and
    /// no port is published.
    pub fn is_lan(&self) -> bool {
        !matches!(self.kind(), Ok(Kind::Managed))
    }

    pub(crate) fn kind(&self) -> Result<Kind, BadNetwork> {
        let mode = self.options.get("mode").map(String::as_str);
        match (self.driver, mode) {
            (Driver::Bridge, None | Some("managed")) => Ok(Kind::Managed),
            (Driver::Bridge, Some("unmanaged")) => Ok(Kind::Plain),
            (Driver::Macvlan, None | Some("bridge")) => Ok(Kind::Macvlan(4)),
            (Driver::Macvlan, Some("private")) => Ok(Kind::Macvlan(1)),
            (Driver::Macvlan, Some("vepa")) => Ok(Kind::Macvlan(2)),
            (driver, Some(mode)) => {
                Err(BadNetwork::new(format!("mode {mode} of driver {driver} is not known")))
            }
        }
    }

    pub(crate) fn plan(&self) -> Result<Plan, BadNetwork> {
        let mut plan = Plan::default();
        for (key, value) in &self.options {
            let bad = || BadNetwork::new(format!("option {key}={value} is not understood"));
            match key.as_str() {
                "mode" | "parent" => {}
                "mtu" => plan.mtu = Some(value.parse().map_err(|_| bad())?),
                "no_default_route" => {
                    plan.no_default_route = matches!(value.as_str(), "1" | "true" | "yes");
                }
                _ => return Err(bad()),
            }
        }
        for Subnet { subnet, gateway, lease_range } in &self.subnets {
            let outside = |what: &str, ip: &IpAddr| {
                BadNetwork::new(format!("{what} {ip} is not in subnet {subnet}"))
            };
            if let Some(gateway) = gateway.filter(|gateway| !subnet.contains(gateway)) {
                return Err(outside("gateway", &gateway));
            }
            for end in lease_range.iter().flat_map(|range| [range.start_ip, range.end_ip]) {
                if !subnet.contains(&end) {
                    return Err(outside("address", &end));
                }
            }
            let twice = || BadNetwork::new(format!("subnet {subnet}: one of each kind is enough"));
            match subnet {
                IpNet::V4(_) if plan.subnet.is_some() => return Err(twice()),
                IpNet::V6(_) if plan.subnet6.is_some() => return Err(twice()),
                IpNet::V4(net) => {
                    plan.subnet = Some(net.trunc());
                    plan.gateway = gateway.and_then(v4);
                    plan.range = lease_range.and_then(|r| v4(r.start_ip).zip(v4(r.end_ip)));
                }
                IpNet::V6(net) => {
                    plan.subnet6 = Some(net.trunc());
                    plan.gateway6 = gateway.and_then(v6);
                    plan.range6 = lease_range.and_then(|r| v6(r.start_ip).zip(v6(r.end_ip)));
                }
            }
        }
        if plan.subnet.is_some_and(|net| net.prefix_len() > 29) {
            return Err(BadNetwork::new("an IPv4 subnet needs 8 addresses at least (/29)"));
        }
        if plan.subnet6.is_some_and(|net| net.prefix_len() > 125) {
            return Err(BadNetwork::new("an IPv6 subnet needs 8 addresses at least (/125)"));
        }
        Ok(plan)
    }
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `podman network inspect` prints it.
    const PODMAN: &str = r#"{"name":"lan","id":"8ca25f5a0b3c","driver":"macvlan","network_interface":"eth0",
        "created":"2026-01-02T03:04:05Z","subnets":[{"subnet":"192.0.2.0/24","gateway":"192.0.2.1",
        "lease_range":{"start_ip":"192.0.2.32","end_ip":"192.0.2.47"}},{"subnet":"fd00:2::/64","gateway":"fd00:2::1"}],
        "ipv6_enabled":true,"internal":false,"dns_enabled":false,"options":{"mode":"bridge","mtu":"1400"},
        "ipam_options":{"driver":"host-local"}}"#;

    fn config() -> NetworkConfig {
        serde_json::from_str(PODMAN).expect("read")
    }

    #[test]
    fn podmans_configuration_is_understood() {
        let config = config();
        assert!(config.is_lan());
        assert_eq!(config.kind(), Ok(Kind::Macvlan(4)));
        let plan = config.plan().expect("plan");
        assert_eq!(plan.subnet, "192.0.2.0/24".parse().ok());
        assert_eq!(plan.gateway6, "fd00:2::1".parse().ok());
        assert_eq!(plan.range.map(|(first, _)| first), "192.0.2.32".parse().ok());
        assert_eq!(plan.mtu, Some(1400));
        let text = serde_json::to_string(&config).expect("written");
        assert_eq!(serde_json::from_str::<NetworkConfig>(&text).expect("read"), config);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut NetworkConfig)| {
            let mut config = config();
            change(&mut config);
            config.kind().and_then(|_| config.plan()).map(drop)
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|c| c.subnets[0].gateway = "10.0.0.1".parse().ok()).is_err());
        assert!(with(|c| c.subnets.push(c.subnets[0].clone())).is_err());
        assert!(with(|c| drop(c.options.insert("isolate".into(), "1".into()))).is_err());
        assert!(with(|c| drop(c.options.insert("mode".into(), "passthru".into()))).is_err());
        assert!(with(|c| c.subnets[0].subnet = "192.0.2.0/30".parse().expect("net")).is_err());
    }
}
