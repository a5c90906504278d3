//! A bridge network: attaching containers and publishing their ports.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::claim;
use crate::conntrack;
use crate::error::{Doing, NetworkError};
use crate::hold::Means;
use crate::mac::Mac;
use crate::nft::Nft;
use crate::ports::PortMapping;
use crate::route::{Link, Route, Veth};
use crate::rules;
use crate::state::{Lease, Locked, State, gateway, peek};
use crate::status::NetworkStatus;

/// What a container's interface is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// Its address; `None` for a free one.
    pub ip: Option<Ipv4Addr>,
    /// Its hardware address; `None` for one derived from container and address.
    pub mac: Option<Mac>,
    /// Its name inside, usually `eth0`.
    pub ifname: String,
    /// Host name of the container.
    pub hostname: String,
    /// It is restored: a lock that is kept for its address is taken over. Otherwise such a lock
    /// of the same container is given up.
    pub resumes: bool,
    /// It is attached under a lock of its own, if there is none that is kept.
    pub lock: Option<Means>,
}

impl Default for AttachSpec {
    fn default() -> Self {
        AttachSpec {
            ip: None,
            mac: None,
            ifname: "eth0".into(),
            hostname: String::new(),
            resumes: false,
            lock: None,
        }
    }
}

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

/// A bridge network of the network namespace that the calling thread is in.
#[derive(Clone, Debug)]
pub struct Network {
    dir: PathBuf,
    bridge: String,
    wanted: Option<Ipv4Net>,
}

/// The bridge of the default network.
pub const DEFAULT_BRIDGE: &str = "arctern0";

impl Network {
    /// The network with the bridge `bridge`, whose state is kept in `dir`. Nothing is made yet.
    /// `subnet` is used when the network is made; without it one is chosen that collides with no
    /// route of the host.
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
        Ok(Network { dir: dir.to_owned(), bridge, wanted: subnet.map(|s| s.trunc()) })
    }

    /// The bridge's name.
    pub fn bridge_name(&self) -> &str {
        &self.bridge
    }

    /// Makes bridge, address, forwarding and rules unless they are there.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn ensure_bridge(&self) -> Result<Bridge, NetworkError> {
        let mut locked = self.lock()?;
        self.ensure(&mut locked, &mut self.route()?, &mut self.nft()?)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> Result<Locked, NetworkError> {
        Ok(Locked::open(&self.dir, &self.bridge)?)
    }

    pub(crate) fn route(&self) -> Result<Route, NetworkError> {
        Route::open().doing("open", "a route netlink socket")
    }

    pub(crate) fn nft(&self) -> Result<Nft, NetworkError> {
        Nft::open().doing("open", "a netfilter netlink socket")
    }

    fn ensure(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<Bridge, NetworkError> {
        let name = &self.bridge;
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
        if rules::ensure(nft, name, subnet).doing("make nf_tables table", name)? {
            // The rules were flushed by somebody, or the host's tables are new: ports come back.
            for (container, lease) in &locked.state.leases {
                rules::publish(nft, name, None, container, lease.ip, &lease.ports)
                    .doing("publish ports of container", container)?;
            }
            self.mend_locks(&locked.state, &link, route, nft)?;
        }
        let gateway = gateway(subnet);
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
        let name = &self.bridge;
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
            let out = route.default_mtu().doing("read", "the default route of this host")?;
            let mac = Mac::of_gateway(gateway(subnet));
            route.add_bridge(name, mac, out.unwrap_or(1500)).doing("make bridge", name)?;
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
        let address = Ipv4Net::new(gateway(subnet), subnet.prefix_len())
            .map_err(|_| NetworkError::SubnetTooSmall(subnet))?;
        route.add_address(link.index, address).doing("give an address to", name)?;
        locked.state.subnet = Some(subnet);
        locked.save()?;
        Ok(link)
    }

    fn choose_subnet(&self, route: &mut Route) -> Result<Ipv4Net, NetworkError> {
        if let Some(subnet) = self.wanted {
            return Ok(subnet);
        }
        let taken = route.destinations().doing("read", "the routes of this host")?;
        let overlaps = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
        let candidates = (88..=255u8)
            .filter_map(|n| Ipv4Net::new(Ipv4Addr::new(10, n, 0, 0), 16).ok())
            .chain((16..=31u8).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(172, n, 0, 0), 16).ok()))
            .chain(
                (0..=255u8).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(192, 168, n, 0), 24).ok()),
            );
        candidates
            .into_iter()
            .find(|candidate| !taken.iter().any(|t| overlaps(candidate, t)))
            .ok_or(NetworkError::NoFreeSubnet)
    }

    /// Attaches a container: a veth pair between the bridge and its network namespace, its address
    /// and default route; loopback comes up. A container that is attached already is attached anew,
    /// with the same address unless another one is asked for. On failure nothing stays behind.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn attach(
        &self,
        netns: BorrowedFd<'_>,
        container: &str,
        spec: &AttachSpec,
    ) -> Result<NetworkStatus, NetworkError> {
        let mut locked = self.lock()?;
        let mut route = self.route()?;
        let mut nft = self.nft()?;
        let bridge = self.ensure(&mut locked, &mut route, &mut nft)?;
        if !spec.resumes {
            self.end(&mut locked, &mut route, &mut nft, container)?;
        }
        let ip = self.choose_address(&locked.state, container, spec, bridge.subnet)?;
        if let Some(old) = locked.state.leases.get(container)
            && !old.ports.is_empty()
        {
            rules::unpublish(&mut nft, &self.bridge, container)
                .doing("unpublish ports of container", container)?;
        }
        let lease = Lease {
            ip,
            mac: spec.mac.unwrap_or_else(|| Mac::of_container(container, ip)),
            ifname: spec.ifname.clone(),
            host_veth: self.veth_name(container),
            hostname: spec.hostname.clone(),
            ports: Vec::new(),
        };
        locked.state.last = Some(ip);
        locked.state.leases.insert(container.to_owned(), lease.clone());
        // Before the kernel is touched: who kills us now leaves a record to clean up by.
        locked.save()?;
        let connected = match spec.lock {
            Some(means) => self.lock_ahead(&mut locked, &mut route, &mut nft, container, means),
            None => Ok(()),
        }
        .and_then(|()| {
            let is_locked = locked.state.standing_lock(ip, container).is_some();
            connect(&mut route, netns, &bridge, &lease, is_locked)
        });
        if let Err(error) = connected {
            if locked.state.kept_lock(ip).is_none() {
                let _ = self.end(&mut locked, &mut route, &mut nft, container);
            }
            let _ = route.delete_link(&lease.host_veth);
            locked.state.leases.remove(container);
            locked.save()?;
            return Err(error);
        }
        Ok(status(&lease, bridge.subnet, &self.bridge))
    }

    fn choose_address(
        &self,
        state: &State,
        container: &str,
        spec: &AttachSpec,
        subnet: Ipv4Net,
    ) -> Result<Ipv4Addr, NetworkError> {
        if let Some(ip) = spec.ip {
            let usable = subnet.contains(&ip)
                && ![subnet.network(), subnet.broadcast(), gateway(subnet)].contains(&ip);
            if !usable {
                return Err(NetworkError::AddressOutside { ip, subnet });
            }
            if let Some(holder) = state.holder(ip)
                && holder != container
            {
                return Err(NetworkError::AddressInUse { ip, holder: holder.to_owned() });
            }
            return match state.kept_lock(ip) {
                Some(lock) if !spec.resumes => {
                    Err(NetworkError::AddressInUse { ip, holder: lock.name.clone() })
                }
                _ => Ok(ip),
            };
        }
        match state.leases.get(container) {
            Some(lease) if subnet.contains(&lease.ip) => Ok(lease.ip),
            _ => state.free_address(subnet).ok_or(NetworkError::NoFreeAddress(subnet)),
        }
    }

    /// The name of the host's end: at most 15 bytes, always the same for the same container, and
    /// different between networks.
    fn veth_name(&self, container: &str) -> String {
        let digest = Sha256::new().chain_update(&self.bridge).chain_update(container).finalize();
        let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
        format!("veth{}", &hex[..11])
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
        let mut locked = self.lock()?;
        let not_attached = || NetworkError::NotAttached(container.to_owned());
        let lease = locked.state.leases.get(container).ok_or_else(not_attached)?.clone();
        let mut nft = self.nft()?;
        let foreign = rules::published_elsewhere(&mut nft, &self.bridge)
            .doing("read", "the ports that other networks publish")?;
        // Ports of a lock that was taken over are this container's now.
        let kept = locked.state.kept_lock(lease.ip).filter(|l| !l.ports.is_empty()).cloned();
        if let Some(lock) = locked.state.locks.get_mut(&lease.ip) {
            lock.ports.clear();
        }
        let mut chosen: Vec<PortMapping> = Vec::new();
        for mapping in ports {
            let mapping = claim::settle(mapping, &chosen, &locked.state, &foreign)?;
            claim::check(&mapping, &chosen, &locked.state, &foreign)?;
            chosen.push(mapping);
        }
        let subnet = locked.state.subnet.ok_or_else(not_attached)?;
        rules::ensure(&mut nft, &self.bridge, subnet)
            .doing("make nf_tables table", &self.bridge)?;
        let mut all = lease.ports.clone();
        all.extend(chosen.iter().cloned());
        if let Some(lease) = locked.state.leases.get_mut(container) {
            lease.ports = all.clone();
        }
        locked.save()?;
        let before = kept.as_ref().map(|lock| lock.publisher.as_str());
        let published =
            rules::publish(&mut nft, &self.bridge, before, container, lease.ip, &chosen)
                .doing("publish ports of container", container);
        if let Err(error) = published {
            if let Some(lock) = kept {
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
        rules::unpublish(&mut self.nft()?, &self.bridge, container)
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

    /// Takes back ports, interface and address of a container. Absence is no error. Every step is
    /// tried; the address is only given back when all went well. Takes some 30 ms, in which the
    /// kernel waits for everybody who may still see the interface.
    ///
    /// # Errors
    /// [`NetworkError::Several`], or the one error.
    pub fn detach(&self, container: &str) -> Result<(), NetworkError> {
        self.take_down(container, Route::delete_link)
    }

    /// As [`Network::detach`], for a container whose namespace is deleted next: its interface is
    /// taken off the bridge and renamed, which takes 2 ms, and goes with the namespace.
    ///
    /// # Errors
    /// As [`Network::detach`].
    pub fn disconnect(&self, container: &str) -> Result<(), NetworkError> {
        self.take_down(container, Route::strand)
    }

    fn take_down(
        &self,
        container: &str,
        drop_link: impl Fn(&mut Route, &str) -> io::Result<bool>,
    ) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        let mut route = self.route()?;
        let mut errors = Vec::new();
        let mut note = |result: Result<(), NetworkError>| errors.extend(result.err());
        let kept = locked.state.leave_to_lock(container);
        note(self.nft().and_then(|mut nft| {
            if kept {
                return Ok(());
            }
            self.end(&mut locked, &mut route, &mut nft, container)?;
            if let Some(lease) = locked.state.leases.get(container) {
                self.sweep(lease, &mut route, &mut nft)?;
            }
            rules::unpublish(&mut nft, &self.bridge, container)
                .doing("unpublish ports of container", container)
        }));
        let veth = self.veth_name(container);
        note(drop_link(&mut route, &veth).map(drop).doing("remove", &veth));
        if let Some(lease) = locked.state.leases.get(container).filter(|_| !kept) {
            let forgotten = conntrack::forget_udp(&lease.ports);
            note(forgotten.doing("end the flows to ports of", container));
            if let Ok(Some(bridge)) = route.link(&self.bridge) {
                note(route.delete_neighbour(bridge.index, lease.ip).doing("forget", lease.ip));
            }
        }
        match errors.len() {
            0 => {
                if locked.state.leases.remove(container).is_some() {
                    locked.save()?;
                }
                Ok(())
            }
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Several(errors)),
        }
    }

    /// Removes bridge, rules and memory of the network. Absence is no error.
    ///
    /// # Errors
    /// [`NetworkError`]; [`NetworkError::AddressInUse`] while a container is attached.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        if let Some((holder, lease)) = locked.state.leases.iter().next() {
            return Err(NetworkError::AddressInUse { ip: lease.ip, holder: holder.clone() });
        }
        if let Some((ip, lock)) = locked.state.locks.iter().next() {
            return Err(NetworkError::AddressInUse { ip: *ip, holder: lock.name.clone() });
        }
        rules::remove(&mut self.nft()?, &self.bridge)
            .doing("remove nf_tables table", &self.bridge)?;
        self.route()?.delete_link(&self.bridge).doing("remove", &self.bridge)?;
        locked.state.subnet = None;
        locked.state.last = None;
        Ok(locked.save()?)
    }

    /// Who is attached, by container id.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn leases(&self) -> Result<BTreeMap<String, Lease>, NetworkError> {
        Ok(peek(&self.dir, &self.bridge)?.leases)
    }

    /// How a container is attached; `None` when it is not.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn status(&self, container: &str) -> Result<Option<NetworkStatus>, NetworkError> {
        let state = peek(&self.dir, &self.bridge)?;
        Ok(state
            .subnet
            .zip(state.leases.get(container))
            .map(|(subnet, lease)| status(lease, subnet, &self.bridge)))
    }
}

fn status(lease: &Lease, subnet: Ipv4Net, bridge: &str) -> NetworkStatus {
    NetworkStatus {
        ip: lease.ip,
        prefix: subnet.prefix_len(),
        gateway: gateway(subnet),
        mac: lease.mac,
        ifname: lease.ifname.clone(),
        host_veth: lease.host_veth.clone(),
        bridge: bridge.to_owned(),
    }
}

/// Makes the veth pair and sets up its inner end.
fn connect(
    route: &mut Route,
    netns: BorrowedFd<'_>,
    bridge: &Bridge,
    lease: &Lease,
    is_locked: bool,
) -> Result<(), NetworkError> {
    let veth = Veth {
        name: &lease.host_veth,
        master: bridge.index,
        peer_name: &lease.ifname,
        peer_mac: lease.mac,
        peer_netns: netns,
        mtu: bridge.mtu,
    };
    match route.add_veth(&veth) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a command that was killed: the name is derived from the container's id.
            route.delete_link(&lease.host_veth).doing("remove", &lease.host_veth)?;
            route.add_veth(&veth).doing("make veth pair", &lease.host_veth)?;
        }
        other => other.doing("make veth pair", &lease.host_veth)?,
    }
    if bridge_filters_ip() {
        // Translation then happens before the bridge decides, so a container that uses its own
        // published port gets its frames bridged back to itself instead of routed.
        route.set_hairpin(&lease.host_veth).doing("set hairpin mode of", &lease.host_veth)?;
    }
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    let loopback = index(&mut inside, "lo")?;
    let eth = index(&mut inside, &lease.ifname)?;
    let host_end = index(route, &lease.host_veth)?;
    inside.set_up(loopback).doing("bring up", "lo")?;
    inside.set_up(eth).doing("bring up", &lease.ifname)?;
    let address = Ipv4Net::new(lease.ip, bridge.subnet.prefix_len())
        .map_err(|_| NetworkError::SubnetTooSmall(bridge.subnet))?;
    inside.add_address(eth, address).doing("set address", lease.ip)?;
    // A route needs a link that is up, not one that runs.
    inside.set_default_route(bridge.gateway).doing("set default route", bridge.gateway)?;
    // One after the other: the bridge forwards to this end when that runs, and has a carrier itself
    // when it forwards to anything.
    inside.wait_running(eth, Some(netns)).doing("see the carrier of", &lease.ifname)?;
    route.wait_running(host_end, None).doing("see the carrier of", &lease.host_veth)?;
    route.wait_running(bridge.index, None).doing("see the carrier of", &bridge.name)?;
    if is_locked {
        // The lock has told it, for as long as it stands.
        return Ok(());
    }
    route.set_neighbour(bridge.index, lease.ip, lease.mac).doing("announce", lease.ip)
}

fn index(route: &mut Route, name: &str) -> Result<u32, NetworkError> {
    let link = route.link(name).doing("look up", name)?;
    link.map(|l| l.index).ok_or_else(|| NetworkError::Kernel {
        action: "look up",
        object: name.to_owned(),
        source: Errno::NODEV.into(),
    })
}

/// Brings up the loopback device of a network namespace that has nothing else (`--network none`).
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn bring_up_loopback(netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    match inside.link("lo").doing("look up", "lo")? {
        Some(loopback) => inside.set_up(loopback.index).doing("bring up", "lo"),
        None => Ok(()),
    }
}

/// Whether bridged IPv4 packets pass the IP hooks of netfilter (module br_netfilter).
fn bridge_filters_ip() -> bool {
    std::fs::read("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok_and(|v| v.starts_with(b"1"))
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
