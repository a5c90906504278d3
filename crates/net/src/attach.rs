//! How a container comes to a network and goes from it: address, interface, lock.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::config::Kind;
use crate::connect::{self, Way};
use crate::conntrack;
use crate::error::{Doing, NetworkError};
use crate::hold::Means;
use crate::mac::Mac;
use crate::network::Network;
use crate::route::Route;
use crate::rules;
use crate::state::{Lease, State};
use crate::status::NetworkStatus;

/// What a container's interface is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// Its address; `None` for a free one.
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address; `None` for a free one, if the network has any.
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address; `None` for one derived from container and address.
    pub mac: Option<Mac>,
    /// Its name inside, usually `eth0`.
    pub ifname: String,
    /// Host name of the container.
    pub hostname: String,
    /// It is restored: a lock that is kept for its address is taken over. Otherwise such a lock
    /// of the same container is given up.
    pub resumes: bool,
    /// It appears under a lock of its own, if there is none that is kept.
    pub lock: Option<Means>,
}

impl Default for AttachSpec {
    fn default() -> Self {
        AttachSpec {
            ip: None,
            ip6: None,
            mac: None,
            ifname: "eth0".into(),
            hostname: String::new(),
            resumes: false,
            lock: None,
        }
    }
}

impl Network {
    /// Attaches a container: its device, address and default route; loopback comes up, and the
    /// segment is told. A container that is attached already is attached anew, with the same address
    /// unless another one is asked for. On failure nothing stays behind.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn attach(
        &self,
        netns: BorrowedFd<'_>,
        container: &str,
        spec: &AttachSpec,
    ) -> Result<NetworkStatus, NetworkError> {
        if !spec.resumes {
            self.end_lock(container)?;
        }
        let status = self.attach_hidden(netns, container, spec)?;
        match self.appear(netns, container, spec.lock) {
            Ok(()) => Ok(status),
            Err(error) => {
                self.give_back(netns, container)?;
                Err(error)
            }
        }
    }

    /// The first part of [`Network::attach`], which nobody notices: the address is the container's, its
    /// device has addresses and routes, and no frame comes or goes. What a lock needs is prepared.
    /// [`Network::appear`] is the other part; on failure nothing stays behind.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn attach_hidden(
        &self,
        netns: BorrowedFd<'_>,
        container: &str,
        spec: &AttachSpec,
    ) -> Result<NetworkStatus, NetworkError> {
        let mut route = self.route()?;
        let mut nft = self.nft()?;
        let mut locked = self.lock()?;
        let ground = self.ground(&mut locked, &mut route, &mut nft)?;
        let ip = self.choose_address(&locked.state, container, spec, ground.subnet)?;
        let ip6 = self.choose_address6(&locked.state, container, spec.ip6)?;
        if let Some(old) = locked.state.leases.get(container)
            && !old.ports.is_empty()
        {
            rules::unpublish(&mut nft, &self.link, container)
                .doing("unpublish ports of container", container)?;
        }
        let lease = Lease {
            ip,
            ip6,
            mac: spec.mac.unwrap_or_else(|| Mac::of_container(container, ip)),
            ifname: spec.ifname.clone(),
            host_veth: self.veth_name(container),
            hostname: spec.hostname.clone(),
            ports: Vec::new(),
        };
        locked.state.last = Some(ip);
        locked.state.last6 = ip6.or(locked.state.last6);
        locked.state.leases.insert(container.to_owned(), lease.clone());
        let needs_lock = !self.locks_inside() && locked.state.kept_lock(ip).is_none();
        // Before the kernel is touched: who kills us now leaves a record to clean up by.
        locked.save()?;
        // Others need not wait while it is connected; the address is its own by now.
        drop(locked);
        let connected = match spec.lock {
            Some(Means::Hold) if needs_lock => self.prepare_hold(&lease, &mut route, &mut nft),
            _ => Ok(()),
        }
        .and_then(|()| match self.kind {
            Kind::Managed | Kind::Plain => connect::veth(&mut route, netns, &ground, &lease),
            Kind::Macvlan(mode) => {
                let is_locked = spec.lock.is_some();
                connect::macvlan(&mut route, netns, &ground, &lease, mode, is_locked)
            }
        });
        if let Err(error) = connected {
            self.give_back(netns, container)?;
            return Err(error);
        }
        Ok(self.status_of(&lease, ground.subnet))
    }

    /// The other part of [`Network::attach`]: packets pass from here on, or are held by a lock of its
    /// own if there is none that is kept, and the segment is told.
    ///
    /// # Errors
    /// [`NetworkError`]; it stays attached.
    pub fn appear(
        &self,
        netns: BorrowedFd<'_>,
        container: &str,
        lock: Option<Means>,
    ) -> Result<(), NetworkError> {
        let mut route = self.route()?;
        let mut nft = self.nft()?;
        let mut locked = self.lock()?;
        let ground = self.ground(&mut locked, &mut route, &mut nft)?;
        let lease = locked.state.leases.get(container).cloned();
        let lease = lease.ok_or_else(|| NetworkError::NotAttached(container.to_owned()))?;
        let ahead = match lock {
            Some(means) if !self.locks_inside() => {
                self.note_lock(&mut locked.state, container, &lease, means).then_some(means)
            }
            _ => None,
        };
        let is_locked = locked.state.standing_lock(lease.ip, container).is_some();
        if let Some(onward) = locked.state.onward(lease.ip) {
            // It comes back: packets are for the lock of its restore from here on.
            onward.stop(&mut route, &mut nft, lease.ip)?;
        }
        locked.save()?;
        drop(locked);
        if let Some(means) = ahead {
            self.lock_ahead(&lease, &mut route, &mut nft, means)?;
        }
        match self.kind {
            Kind::Managed | Kind::Plain => {
                let way = Way { ours: self.kind == Kind::Managed, is_locked };
                connect::veth_appears(&mut route, netns, &ground, &lease, way)
            }
            Kind::Macvlan(_) => connect::macvlan_appears(netns, &ground, &lease, lock.is_some()),
        }
    }

    /// Undoes what was begun of an attachment. What cannot be undone is left to [`Network::detach`].
    fn give_back(&self, netns: BorrowedFd<'_>, container: &str) -> Result<(), NetworkError> {
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        let mut locked = self.lock()?;
        let Some(lease) = locked.state.leases.get(container).cloned() else { return Ok(()) };
        if locked.state.kept_lock(lease.ip).is_none() {
            let _ = self.drop_lock(&mut locked, &mut route, &mut nft, container);
        }
        let _ = self.drop_link(&mut route, &lease, Some(netns), Route::delete_link);
        locked.state.leases.remove(container);
        locked.save()?;
        let _ = self.mend_passages(&locked.state, &mut route, &mut nft, Some(container));
        Ok(())
    }

    /// Takes back ports, interface and address of a container. Absence is no error. Every step is
    /// tried; the address is only given back when all went well. Takes some 30 ms, in which the
    /// kernel waits for everybody who may still see the interface. `netns` is the container's
    /// namespace if it is still there: a macvlan device can only be seen in it.
    ///
    /// # Errors
    /// [`NetworkError::Several`], or the one error.
    pub fn detach(
        &self,
        container: &str,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetworkError> {
        self.take_down(container, netns, Route::delete_link)
    }

    /// As [`Network::detach`], for a container whose namespace is deleted next: its interface is
    /// taken off the bridge, down and renamed, which takes 2 ms, and goes with the namespace.
    ///
    /// # Errors
    /// As [`Network::detach`].
    pub fn disconnect(
        &self,
        container: &str,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetworkError> {
        self.take_down(container, netns, Route::strand)
    }

    fn drop_link(
        &self,
        route: &mut Route,
        lease: &Lease,
        netns: Option<BorrowedFd<'_>>,
        how: impl Fn(&mut Route, &str) -> io::Result<bool>,
    ) -> io::Result<()> {
        match (self.kind, netns) {
            // Down at least, while the namespace goes away in its own time: no two devices that are
            // up share a hardware address.
            (Kind::Macvlan(_), Some(netns)) => {
                how(&mut Route::open_in(netns)?, &lease.ifname).map(drop)
            }
            (Kind::Macvlan(_), None) => Ok(()),
            _ => how(route, &lease.host_veth).map(drop),
        }
    }

    fn take_down(
        &self,
        container: &str,
        netns: Option<BorrowedFd<'_>>,
        how: impl Fn(&mut Route, &str) -> io::Result<bool>,
    ) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        let mut route = self.route()?;
        let mut errors = Vec::new();
        let mut note = |result: Result<(), NetworkError>| errors.extend(result.err());
        let kept = locked.state.leave_to_lock(container);
        let goes_on = locked.state.goes_on(container);
        note(self.nft().and_then(|mut nft| {
            if kept || goes_on || self.is_lan() {
                return Ok(());
            }
            rules::unpublish(&mut nft, &self.link, container)
                .doing("unpublish ports of container", container)
        }));
        if let Some(lease) = locked.state.leases.get(container) {
            let dropped = self.drop_link(&mut route, lease, netns, how);
            note(dropped.doing("remove the interface of container", container));
        } else if let veth = self.veth_name(container)
            && !veth.is_empty()
        {
            note(how(&mut route, &veth).map(drop).doing("remove", &veth));
        }
        if goes_on || !kept {
            // Its connections are somebody else's, or of a checkpoint: it is cut off before the lock ends,
            // so that nothing of them reaches a namespace that knows none and refuses them.
            note(
                self.nft().and_then(|mut nft| {
                    self.drop_lock(&mut locked, &mut route, &mut nft, container)
                }),
            );
        }
        if let Some(lease) = locked.state.leases.get(container).filter(|_| !kept) {
            if !goes_on {
                let forgotten = conntrack::forget_udp(&lease.ports);
                note(forgotten.doing("end the flows to ports of", container));
            }
            if let Ok(Some(link)) = route.link(&self.link) {
                for ip in lease.addresses() {
                    note(route.delete_neighbour(link.index, ip).doing("forget", ip));
                }
            }
        }
        match errors.len() {
            0 => {
                if locked.state.leases.remove(container).is_some() {
                    locked.save()?;
                }
                if goes_on {
                    // Its ports lead to where it is.
                    let (state, mut nft) = (&locked.state, self.nft()?);
                    self.mend_passages(state, &mut route, &mut nft, Some(container))?;
                }
                Ok(())
            }
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Several(errors)),
        }
    }

    fn choose_address(
        &self,
        state: &State,
        container: &str,
        spec: &AttachSpec,
        subnet: Ipv4Net,
    ) -> Result<Ipv4Addr, NetworkError> {
        let gateway = self.gateway(subnet);
        if let Some(ip) = spec.ip {
            let usable = subnet.contains(&ip)
                && ![subnet.network(), subnet.broadcast()].contains(&ip)
                && gateway != Some(ip);
            if !usable {
                return Err(NetworkError::AddressOutside { ip: ip.into(), subnet: subnet.into() });
            }
            if let Some(holder) = state.holder(ip)
                && holder != container
            {
                let holder = holder.to_owned();
                return Err(NetworkError::AddressInUse { ip: ip.into(), holder });
            }
            return match state.keeps_for(ip) {
                Some(holder) if !spec.resumes => {
                    let holder = holder.to_owned();
                    Err(NetworkError::AddressInUse { ip: ip.into(), holder })
                }
                _ => Ok(ip),
            };
        }
        match state.leases.get(container) {
            Some(lease) if subnet.contains(&lease.ip) => Ok(lease.ip),
            _ => state
                .free_address(subnet, gateway, self.plan.range)
                .ok_or(NetworkError::NoFreeAddress(subnet.into())),
        }
    }

    fn choose_address6(
        &self,
        state: &State,
        container: &str,
        wanted: Option<Ipv6Addr>,
    ) -> Result<Option<Ipv6Addr>, NetworkError> {
        let Some(subnet) = self.plan.subnet6 else {
            return match wanted {
                Some(_) => Err(NetworkError::NoIpv6(self.name.clone())),
                None => Ok(None),
            };
        };
        if let Some(ip) = wanted {
            let usable =
                subnet.contains(&ip) && ip != subnet.network() && self.plan.gateway6 != Some(ip);
            if !usable {
                return Err(NetworkError::AddressOutside { ip: ip.into(), subnet: subnet.into() });
            }
            return match state.holder(ip) {
                Some(holder) if holder != container => {
                    Err(NetworkError::AddressInUse { ip: ip.into(), holder: holder.to_owned() })
                }
                _ => Ok(Some(ip)),
            };
        }
        match state.leases.get(container).and_then(|lease| lease.ip6) {
            Some(ip) if subnet.contains(&ip) => Ok(Some(ip)),
            _ => state
                .free_address6(subnet, self.plan.gateway6, self.plan.range6)
                .map(Some)
                .ok_or(NetworkError::NoFreeAddress(subnet.into())),
        }
    }

    /// The name of the host's end, if there is one: at most 15 bytes, always the same for the same container, and
    /// different between networks.
    fn veth_name(&self, container: &str) -> String {
        if let Kind::Macvlan(_) = self.kind {
            return String::new();
        }
        let digest = Sha256::new().chain_update(&self.key).chain_update(container).finalize();
        let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
        format!("veth{}", &hex[..11])
    }
}
