//! The address data of a container, and Podman's `network.status` of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// How a container is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Length of the subnet's prefix, in bits.
    pub prefix: u8,
    /// Its default route; on a bridge of ours the bridge's address.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 address with the subnet's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Net>,
    /// Its default route for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// The hardware address of its interface.
    pub mac: Mac,
    /// The name of its interface.
    pub ifname: String,
    /// The host's end of the veth pair; empty for macvlan.
    pub host_veth: String,
    /// The bridge, or the device that the macvlan device shares.
    pub bridge: String,
    /// The network's name; Podman's default network is called `podman`.
    #[serde(default = "default_network")]
    pub network: String,
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_owned()
}

/// What the default network is called in archives.
pub const DEFAULT_NETWORK: &str = "podman";

/// What `network.status` of an archive says about one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedStatus {
    /// Name of the network.
    pub network: String,
    /// Name of the interface.
    pub ifname: String,
    /// The address with its prefix.
    pub address: Option<Ipv4Net>,
    /// The IPv6 address with its prefix.
    pub address6: Option<Ipv6Net>,
    /// The gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The hardware address.
    pub mac: Option<Mac>,
}

/// A `network.status` that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("network.status is damaged")]
pub struct BadStatus(#[from] serde_json::Error);

#[derive(Serialize, Deserialize)]
struct PodmanStatus {
    #[serde(default)]
    interfaces: BTreeMap<String, PodmanInterface>,
    #[serde(default)]
    dns_server_ips: Option<Vec<String>>,
    #[serde(default)]
    dns_search_domains: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct PodmanInterface {
    #[serde(default)]
    subnets: Option<Vec<PodmanSubnet>>,
    #[serde(default)]
    mac_address: String,
}

#[derive(Serialize, Deserialize)]
struct PodmanSubnet {
    ipnet: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
}

impl NetworkStatus {
    /// `network.status` of a container on this one network.
    ///
    /// # Errors
    /// None in practice: everything in it is text.
    pub fn to_podman(&self) -> Result<String, BadStatus> {
        let subnet = |ipnet: String, gateway: Option<IpAddr>| PodmanSubnet {
            ipnet,
            gateway: gateway.map(|gateway| gateway.to_string()),
        };
        let mut subnets =
            vec![subnet(format!("{}/{}", self.ip, self.prefix), self.gateway.map(IpAddr::from))];
        subnets.extend(self.ip6.map(|ip| subnet(ip.to_string(), self.gateway6.map(IpAddr::from))));
        let interface =
            PodmanInterface { subnets: Some(subnets), mac_address: self.mac.to_string() };
        let status = PodmanStatus {
            interfaces: BTreeMap::from([(self.ifname.clone(), interface)]),
            dns_server_ips: Some(Vec::new()),
            dns_search_domains: Some(Vec::new()),
        };
        Ok(serde_json::to_string(&BTreeMap::from([(&self.network, status)]))?)
    }
}

impl ArchivedStatus {
    /// Reads `network.status`: the first interface of each network, as Podman does, and its first
    /// address of each kind. What is no address counts as absent.
    ///
    /// # Errors
    /// [`BadStatus`] when it is not JSON of that shape.
    pub fn from_podman(json: &str) -> Result<Vec<Self>, BadStatus> {
        let networks: Option<BTreeMap<String, PodmanStatus>> = serde_json::from_str(json)?;
        let networks = networks.unwrap_or_default().into_iter();
        Ok(networks
            .filter_map(|(network, status)| {
                let (ifname, interface) = status.interfaces.into_iter().next()?;
                let subnets = interface.subnets.unwrap_or_default();
                let nets: Vec<(IpNet, &PodmanSubnet)> =
                    subnets.iter().filter_map(|s| Some((s.ipnet.parse().ok()?, s))).collect();
                let address = nets.iter().find_map(|(net, s)| match net {
                    IpNet::V4(net) => Some((*net, s)),
                    IpNet::V6(_) => None,
                });
                let address6 = nets.iter().find_map(|(net, _)| match net {
                    IpNet::V6(net) => Some(*net),
                    IpNet::V4(_) => None,
                });
                Some(ArchivedStatus {
                    network,
                    ifname,
                    address: address.map(|(net, _)| net),
                    address6,
                    gateway: address.and_then(|(_, s)| s.gateway.as_ref()?.parse().ok()),
                    mac: interface.mac_address.parse().ok(),
                })
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_network_status_round_trip() {
        let json = r#"{"podman":{"interfaces":{"eth0":{"subnets":[{"ipnet":"10.88.0.5/16","gateway":"10.88.0.1"},{"ipnet":"fd00::5/64","gateway":"fd00::1"}],"mac_address":"92:d0:c6:0a:29:33"}},"dns_server_ips":[],"dns_search_domains":[]}}"#;
        let archived = ArchivedStatus::from_podman(json).expect("read");
        let status = NetworkStatus {
            ip: Ipv4Addr::new(10, 88, 0, 5),
            prefix: 16,
            gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
            ip6: "fd00::5/64".parse().ok(),
            gateway6: "fd00::1".parse().ok(),
            mac: "92:d0:c6:0a:29:33".parse().expect("mac"),
            ifname: "eth0".into(),
            host_veth: "ve1".into(),
            bridge: "arctern0".into(),
            network: DEFAULT_NETWORK.into(),
        };
        let one = &archived[0];
        assert_eq!(one.address.map(|n| (n.addr(), n.prefix_len())), Some((status.ip, 16)));
        assert_eq!((one.gateway, one.mac), (status.gateway, Some(status.mac)));
        assert_eq!(one.address6, status.ip6);
        assert_eq!(status.to_podman().expect("written"), json);
        assert!(ArchivedStatus::from_podman("null").expect("read").is_empty());
        assert!(ArchivedStatus::from_podman("[1]").is_err());
    }
}
