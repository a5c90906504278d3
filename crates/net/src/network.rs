//! A network: what it is, what it makes of the host, and publishing ports of containers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::bridge::Bridge;
use crate::claim;
use crate::config::{Kind, NetworkConfig, Plan};
use crate::connect::{self, Ground};
use crate::conntrack;
use crate::error::{Doing, NetworkError};
use crate::nft::Nft;
use crate::ports::PortMapping;
use crate::route::Route;
use crate::rules;
use crate::state::{Lease, Locked, gateway, peek};
use crate::status::{DEFAULT_NETWORK, NetworkStatus};

/// A network of the network namespace that the calling thread is in.
#[derive(Clone, Debug)]
pub struct Network {
    pub(crate) dir: PathBuf,
    /// Of its state's files.
    pub(crate) key: String,
    /// As archives call it.
    pub(crate) name: String,
    /// The bridge, or the device that macvlan devices share.
    pub(crate) link: String,
    pub(crate) kind: Kind,
    pub(crate) plan: Plan,
}

/// The bridge of the default network.
pub const DEFAULT_BRIDGE: &str = "arctern0";

impl Network {
    /// The default network, with the bridge `bridge`, whose state is kept in `dir`. Nothing is made
    /// yet. `subnet` is used when the network is made; without it one is chosen that collides with
    /// no route of the host.
    ///
    /// # Errors
    /// [`NetworkError::SubnetTooSmall`].
    pub fn open(dir: &Path, bridge: &str, subnet: Option<Ipv4Net>) -> Result<Self, NetworkError> {
        if let Some(subnet) = subnet
            && subnet.prefix_len() > 29
        {
            return Err(NetworkError::SubnetTooSmall(subnet));
        }
        let bridge: String = bridge.chars().take(15).collect();
        Ok(Network {
            dir: dir.to_owned(),
            key: bridge.clone(),
            name: DEFAULT_NETWORK.to_owned(),
            link: bridge,
            kind: Kind::Managed,
            plan: Plan { subnet: subnet.map(|s| s.trunc()), ..Plan::default() },
        })
    }

    /// A network that the user made, whose state is kept in `dir`.
    ///
    /// # Errors
    /// [`NetworkError::Bad`] when its configuration cannot be.
    pub fn of(dir: &Path, config: &NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Network {
            dir: dir.to_owned(),
            key: config.name.clone(),
            name: config.name.clone(),
            link: config.network_interface.clone(),
            kind: config.kind()?,
            plan: config.plan()?,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The name of the bridge, or of the device that macvlan devices share.
    pub fn link_name(&self) -> &str {
        &self.link
    }

    /// The name of the network, as archives have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether containers are machines on a segment that is not ours: nothing is translated.
    pub fn is_lan(&self) -> bool {
        self.kind != Kind::Managed
    }

    /// Whether a container's lock is inside of its network namespace ([`crate::InsideLock`]) and not
    /// on a bridge.
    pub fn locks_inside(&self) -> bool {
        matches!(self.kind, Kind::Macvlan(_))
    }

    /// Makes bridge, address, forwarding and rules unless they are there. On a network that is not
    /// ours nothing is made.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn ensure_bridge(&self) -> Result<Bridge, NetworkError> {
        let mut locked = self.lock()?;
        self.ensure(&mut locked, &mut self.route()?, &mut self.nft()?)
    }

    pub(crate) fn lock(&self) -> Result<Locked, NetworkError> {
        Ok(Locked::open(&self.dir, &self.key)?)
    }

    pub(crate) fn route(&self) -> Result<Route, NetworkError> {
        Route::open().doing("open", "a route netlink socket")
    }

    pub(crate) fn nft(&self) -> Result<Nft, NetworkError> {
        Nft::open().doing("open", "a netfilter netlink socket")
    }

    /// What containers are connected to; made if it is ours.
    pub(crate) fn ground(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<Ground, NetworkError> {
        if self.kind == Kind::Managed {
            let bridge = self.ensure(locked, route, nft)?;
            return Ok(Ground {
                index: bridge.index,
                name: bridge.name,
                mtu: self.plan.mtu.unwrap_or(bridge.mtu),
                subnet: bridge.subnet,
                gateway: Some(bridge.gateway).filter(|_| !self.plan.no_default_route),
                subnet6: self.plan.subnet6,
                gateway6: self.plan.gateway6.filter(|_| !self.plan.no_default_route),
                gateway_mac: Some(bridge.mac),
            });
        }
        let link = route.link(&self.link).doing("look up", &self.link)?;
        let link = link.ok_or_else(|| NetworkError::Kernel {
            action: "look up",
            object: self.link.clone(),
            source: Errno::NODEV.into(),
        })?;
        if self.kind == Kind::Plain && link.kind != "bridge" {
            return Err(NetworkError::NotABridge { name: link.name, kind: link.kind });
        }
        let subnet = self.plan.subnet.ok_or(NetworkError::NoFreeSubnet)?;
        locked.state.subnet = Some(subnet);
        Ok(Ground {
            index: link.index,
            name: link.name,
            mtu: self.plan.mtu.unwrap_or(link.mtu),
            subnet,
            gateway: self.plan.gateway.filter(|_| !self.plan.no_default_route),
            subnet6: self.plan.subnet6,
            gateway6: self.plan.gateway6.filter(|_| !self.plan.no_default_route),
            gateway_mac: None,
        })
    }

    /// Tells the segment where an attached container is.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn announce(&self, netns: BorrowedFd<'_>, container: &str) -> Result<(), NetworkError> {
        match self.leases()?.get(container) {
            Some(lease) => connect::announce_inside(netns, lease),
            None => Err(NetworkError::NotAttached(container.to_owned())),
        }
    }

    /// The default route of the containers.
    pub(crate) fn gateway(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        match self.kind {
            Kind::Managed => Some(self.plan.gateway.unwrap_or(gateway(subnet))),
            Kind::Plain | Kind::Macvlan(_) => self.plan.gateway,
        }
    }

    /// Publishes ports of an attached container, all or none, in addition to those it has. Host
    /// ports that are 0 are chosen. Returns the mappings as they are now.
    ///
    /// # Errors
    /// [`NetworkError::PortPublished`], [`NetworkError::PortInUse`], [`NetworkError::PortTwice`],
    /// [`NetworkError::NotAttached`].
    pub fn publish(
        &self,
        container: &str,
        ports: &[PortMapping],
    ) -> Result<Vec<PortMapping>, NetworkError> {
        if self.is_lan() {
            return Err(NetworkError::NoPorts(self.name.clone()));
        }
        let mut locked = self.lock()?;
        let not_attached = || NetworkError::NotAttached(container.to_owned());
        let lease = locked.state.leases.get(container).ok_or_else(not_attached)?.clone();
        let mut nft = self.nft()?;
        let foreign = rules::published_elsewhere(&mut nft, &self.link)
            .doing("read", "the ports that other networks publish")?;
        // Ports of a lock that was taken over are this container's now.
        let kept = locked.state.kept_lock(lease.ip).filter(|l| !l.ports.is_empty()).cloned();
        if let Some(lock) = locked.state.locks.get_mut(&lease.ip) {
            lock.ports.clear();
        }
        // Those of a passage are, too, unless nothing comes of this.
        let away = locked.state.away.remove(&lease.ip);
        let kept = kept.or_else(|| away.clone().filter(|lock| lock.onward.is_some()));
        let mut chosen: Vec<PortMapping> = Vec::new();
        for mapping in ports {
            let mapping = claim::settle(mapping, &chosen, &locked.state, &foreign)?;
            claim::check(&mapping, &chosen, &locked.state, &foreign)?;
            chosen.push(mapping);
        }
        locked.state.away.extend(away.map(|lock| (lease.ip, lock)));
        let subnet = locked.state.subnet.ok_or_else(not_attached)?;
        rules::ensure(&mut nft, &self.link, subnet, self.plan.subnet6)
            .doing("make nf_tables table", &self.link)?;
        let mut all = lease.ports.clone();
        all.extend(chosen.iter().cloned());
        if let Some(lease) = locked.state.leases.get_mut(container) {
            lease.ports = all.clone();
        }
        locked.save()?;
        let before = kept.as_ref().map(|lock| lock.publisher.as_str());
        let to = lease.addresses();
        let published = rules::publish(&mut nft, &self.link, before, container, to, &chosen)
            .doing("publish ports of container", container);
        if let Err(error) = published {
            if let Some(lock) = kept.filter(|lock| lock.onward.is_none()) {
                locked.state.locks.insert(lease.ip, lock);
            }
            locked.state.leases.insert(container.to_owned(), lease);
            locked.save()?;
            return Err(error);
        }
        if kept.is_some() {
            // Their flows lead to this address already.
            return Ok(all);
        }
        conntrack::forget_udp(&chosen).doing("redirect the flows to ports of", container)?;
        Ok(all)
    }

    /// Takes back every published port of a container. Absence is no error.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn unpublish(&self, container: &str) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        rules::unpublish(&mut self.nft()?, &self.link, container)
            .doing("unpublish ports of container", container)?;
        if let Some(lease) = locked.state.leases.get_mut(container)
            && !lease.ports.is_empty()
        {
            let ports = std::mem::take(&mut lease.ports);
            locked.save()?;
            conntrack::forget_udp(&ports).doing("end the flows to ports of", container)?;
        }
        Ok(())
    }

    /// Removes bridge, rules and memory of the network. Absence is no error.
    ///
    /// # Errors
    /// [`NetworkError`]; [`NetworkError::AddressInUse`] while a container is attached.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        if let Some((holder, lease)) = locked.state.leases.iter().next() {
            return Err(NetworkError::AddressInUse { ip: lease.ip.into(), holder: holder.clone() });
        }
        if let Some((ip, lock)) = locked.state.locks.iter().chain(&locked.state.away).next() {
            let holder = lock.name.clone();
            return Err(NetworkError::AddressInUse { ip: (*ip).into(), holder });
        }
        if self.kind == Kind::Managed {
            rules::remove(&mut self.nft()?, &self.link)
                .doing("remove nf_tables table", &self.link)?;
            self.route()?.delete_link(&self.link).doing("remove", &self.link)?;
        }
        locked.state.subnet = None;
        locked.state.last = None;
        locked.state.last6 = None;
        Ok(locked.save()?)
    }

    /// Subnet and gateway, if they are known: those of the default network are chosen when the first
    /// container is attached.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn subnet(&self) -> Result<Option<(Ipv4Net, Ipv4Addr)>, NetworkError> {
        let subnet = peek(&self.dir, &self.key)?.subnet.or(self.plan.subnet);
        Ok(subnet.and_then(|subnet| Some((subnet, self.gateway(subnet)?))))
    }

    /// Who is attached, by container id.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn leases(&self) -> Result<BTreeMap<String, Lease>, NetworkError> {
        Ok(peek(&self.dir, &self.key)?.leases)
    }

    /// How a container is attached; `None` when it is not.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn status(&self, container: &str) -> Result<Option<NetworkStatus>, NetworkError> {
        let state = peek(&self.dir, &self.key)?;
        Ok(state
            .subnet
            .zip(state.leases.get(container))
            .map(|(subnet, lease)| self.status_of(lease, subnet)))
    }

    pub(crate) fn status_of(&self, lease: &Lease, subnet: Ipv4Net) -> NetworkStatus {
        let prefix6 = self.plan.subnet6.map(|subnet| subnet.prefix_len());
        let routed = !self.plan.no_default_route;
        NetworkStatus {
            ip: lease.ip,
            prefix: subnet.prefix_len(),
            gateway: self.gateway(subnet).filter(|_| routed),
            ip6: lease.ip6.zip(prefix6).and_then(|(ip, prefix)| Ipv6Net::new(ip, prefix).ok()),
            gateway6: self.plan.gateway6.filter(|_| routed),
            mac: lease.mac,
            ifname: lease.ifname.clone(),
            host_veth: lease.host_veth.clone(),
            bridge: self.link.clone(),
            network: self.name.clone(),
        }
    }
}
