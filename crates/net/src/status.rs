//! The address data of a container, and Podman's `network.status` of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// How a container is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Length of the subnet's prefix, in bits.
    pub prefix: u8,
    /// The bridge's address: its default route.
    pub gateway: Ipv4Addr,
    /// The hardware address of its interface.
    pub mac: Mac,
    /// The name of its interface.
    pub ifname: String,
    /// The host's end of the veth pair.
    pub host_veth: String,
    /// The bridge.
    pub bridge: String,
}

/// What `network.status` of an archive says about one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedStatus {
    /// Name of the network.
    pub network: String,
    /// Name of the interface.
    pub ifname: String,
    /// The address with its prefix.
    pub address: Option<Ipv4Net>,
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
    /// `network.status` of a container on the one network called `network`.
    ///
    /// # Errors
    /// None in practice: everything in it is text.
    pub fn to_podman(&self, network: &str) -> Result<String, BadStatus> {
        let subnet = PodmanSubnet {
            ipnet: format!("{}/{}", self.ip, self.prefix),
            gateway: Some(self.gateway.to_string()),
        };
        let interface =
            PodmanInterface { subnets: Some(vec![subnet]), mac_address: self.mac.to_string() };
        let status = PodmanStatus {
            interfaces: BTreeMap::from([(self.ifname.clone(), interface)]),
            dns_server_ips: Some(Vec::new()),
            dns_search_domains: Some(Vec::new()),
        };
        Ok(serde_json::to_string(&BTreeMap::from([(network, status)]))?)
    }
}

impl ArchivedStatus {
    /// Reads `network.status`: the first interface of each network, as Podman does, and its first
    /// IPv4 address. What is no address counts as absent.
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
                let subnet = subnets.iter().find_map(|s| Some((s.ipnet.parse().ok()?, s)));
                Some(ArchivedStatus {
                    network,
                    ifname,
                    address: subnet.map(|(net, _)| net),
                    gateway: subnet.and_then(|(_, s)| s.gateway.as_ref()?.parse().ok()),
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
        let json = r#"{"podman":{"interfaces":{"eth0":{"subnets":[{"ipnet":"10.88.0.5/16","gateway":"10.88.0.1"}],"mac_address":"92:d0:c6:0a:29:33"}},"dns_server_ips":[],"dns_search_domains":[]}}"#;
        let archived = ArchivedStatus::from_podman(json).expect("read");
        let status = NetworkStatus {
            ip: Ipv4Addr::new(10, 88, 0, 5),
            prefix: 16,
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            mac: "92:d0:c6:0a:29:33".parse().expect("mac"),
            ifname: "eth0".into(),
            host_veth: "ve1".into(),
            bridge: "arctern0".into(),
        };
        let one = &archived[0];
        assert_eq!(one.address.map(|n| (n.addr(), n.prefix_len())), Some((status.ip, 16)));
        assert_eq!((one.gateway, one.mac), (Some(status.gateway), Some(status.mac)));
        assert_eq!(status.to_podman("podman").expect("written"), json);
        assert!(ArchivedStatus::from_podman("null").expect("read").is_empty());
        assert!(ArchivedStatus::from_podman("[1]").is_err());
    }
}
