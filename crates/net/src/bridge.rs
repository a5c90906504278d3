//! A bridge of ours: made when the first container needs it, with its address, forwarding and rules.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::error::{Doing, NetworkError};
use crate::mac::Mac;
use crate::network::Network;
use crate::nft::Nft;
use crate::route::{Link, Route};
use crate::rules;
use crate::state::{Locked, gateway};
use crate::store::free_subnet;

/// The bridge as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Its own address: the containers' default route.
    pub gateway: Ipv4Addr,
    /// Its hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Network {
    pub(crate) fn ensure(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<Bridge, NetworkError> {
        let name = &self.link;
        let existing = route.link(name).doing("look up", name)?;
        let link = match existing {
            Some(link) if link.kind != "bridge" => {
                return Err(NetworkError::NotABridge { name: name.clone(), kind: link.kind });
            }
            Some(link) if link.up && locked.state.subnet.is_some() => link,
            other => self.build(locked, route, other)?,
        };
        let subnet = locked.state.subnet.ok_or(NetworkError::NoFreeSubnet)?;
        set_sysctl("net/ipv4/ip_forward", "1")?;
        set_sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        if self.plan.subnet6.is_some() {
            forward_ipv6(name)?;
        }
        if rules::ensure(nft, name, subnet, self.plan.subnet6)
            .doing("make nf_tables table", name)?
        {
            // The rules were flushed by somebody, or the host's tables are new: ports come back.
            for (container, lease) in &locked.state.leases {
                rules::publish(nft, name, None, container, lease.addresses(), &lease.ports)
                    .doing("publish ports of container", container)?;
            }
            self.mend_locks(&locked.state, &link, route, nft)?;
            self.mend_passages(&locked.state, route, nft, None)?;
        }
        let gateway = self.plan.gateway.unwrap_or(gateway(subnet));
        Ok(Bridge {
            name: name.clone(),
            index: link.index,
            subnet,
            gateway,
            mac: link.mac.unwrap_or(Mac::of_gateway(gateway)),
            mtu: link.mtu,
        })
    }

    /// Makes what is missing of bridge and address.
    fn build(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        existing: Option<Link>,
    ) -> Result<Link, NetworkError> {
        let name = &self.link;
        let subnet = match (locked.state.subnet, &existing) {
            (Some(subnet), _) => subnet,
            (None, Some(link)) => {
                let addresses = route.addresses(link.index).doing("read addresses of", name)?;
                match addresses.first() {
                    Some(address) => address.trunc(),
                    None => self.choose_subnet(route)?,
                }
            }
            (None, None) => self.choose_subnet(route)?,
        };
        if existing.is_none() {
            // Packets that fit into the containers' links then fit on the way out too.
            let out = route.default_device().doing("read", "the default route of this host")?;
            let mac = Mac::of_gateway(self.plan.gateway.unwrap_or(gateway(subnet)));
            let mtu = self.plan.mtu.or(out.map(|link| link.mtu)).unwrap_or(1500);
            route.add_bridge(name, mac, mtu).doing("make bridge", name)?;
        }
        let found = route.link(name).doing("look up", name)?;
        let link = found.ok_or_else(|| NetworkError::Kernel {
            action: "look up",
            object: name.clone(),
            source: Errno::NODEV.into(),
        })?;
        if !link.up {
            route.set_up(link.index).doing("bring up", name)?;
        }
        let own = self.plan.gateway.unwrap_or(gateway(subnet));
        let address = Ipv4Net::new(own, subnet.prefix_len())
            .map_err(|_| NetworkError::SubnetTooSmall(subnet))?;
        route.add_address(link.index, IpNet::from(address)).doing("give an address to", name)?;
        let address6 = self.plan.gateway6.zip(self.plan.subnet6);
        if let Some(Ok(address)) = address6.map(|(ip, net)| Ipv6Net::new(ip, net.prefix_len())) {
            route
                .add_address(link.index, IpNet::from(address))
                .doing("give an address to", name)?;
        }
        locked.state.subnet = Some(subnet);
        locked.save()?;
        Ok(link)
    }

    fn choose_subnet(&self, route: &mut Route) -> Result<Ipv4Net, NetworkError> {
        if let Some(subnet) = self.plan.subnet {
            return Ok(subnet);
        }
        let taken = route.destinations().doing("read", "the routes of this host")?;
        free_subnet(&taken).ok_or(NetworkError::NoFreeSubnet)
    }
}

/// Lets the host forward IPv6 for a bridge. A host that forwards no longer listens to routers by
/// itself: devices that did go on doing so (`accept_ra` 2), and the bridge does not begin to.
fn forward_ipv6(bridge: &str) -> Result<(), NetworkError> {
    set_sysctl(&format!("net/ipv6/conf/{bridge}/accept_ra"), "0")?;
    let forwarding = "net/ipv6/conf/all/forwarding";
    let path = Path::new("/proc/sys").join(forwarding);
    if std::fs::read_to_string(&path).doing("read", path.display())?.trim() == "1" {
        return Ok(());
    }
    let devices = Path::new("/proc/sys/net/ipv6/conf");
    for device in std::fs::read_dir(devices).doing("list", devices.display())?.flatten() {
        let listens = std::fs::read_to_string(device.path().join("accept_ra")).unwrap_or_default();
        if listens.trim() == "1" {
            let name = device.file_name();
            set_sysctl(&format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy()), "2")?;
        }
    }
    set_sysctl(forwarding, "1")
}

/// Sets a value below `/proc/sys` of the current network namespace, if it differs.
fn set_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    let current = std::fs::read_to_string(&path).doing("read", path.display())?;
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).doing("set", path.display())
}
