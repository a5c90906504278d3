//! The locks of a network: what becomes of them when no command holds them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::error::{Doing, NetworkError};
use crate::hold::{Hold, Means, Released};
use crate::lock::Lock;
use crate::mac::Mac;
use crate::network::Network;
use crate::nft::Nft;
use crate::passage::Back;
use crate::route::{Link, Route};
use crate::rules;
use crate::state::{Lease, Locked, State, peek};

impl Network {
    /// The locks of this network, those whose time is over included; and the reservations that are
    /// left of locks ([`Lock::elsewhere`]).
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn locks(&self) -> Result<BTreeMap<Ipv4Addr, Lock>, NetworkError> {
        let state = peek(self.dir(), self.key())?;
        // A container that comes back has both.
        let mut all = state.away;
        all.extend(state.locks);
        Ok(all)
    }

    /// Gives up the lock of a container, with what is held, and the reservation of its address. One
    /// that is attached is reachable again; the ports of one that is gone go too. Gives what there
    /// was.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn end_lock(&self, container: &str) -> Result<Vec<Lock>, NetworkError> {
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        let mut locked = self.lock()?;
        let has = locked.state.leases.get(container).map(|lease| lease.ip);
        let of_it =
            |(ip, lock): (&Ipv4Addr, &Lock)| lock.container == container || Some(*ip) == has;
        let reservations = locked.state.reservations_of(container);
        for (ip, lock) in &reservations {
            self.stop_onward(&locked, &mut route, &mut nft, *ip, lock)?;
        }
        let mut ended: Vec<Lock> = reservations.into_iter().map(|(_, lock)| lock).collect();
        let ip = locked.state.locks.iter().find(|entry| of_it(*entry)).map(|(ip, _)| *ip);
        let mut released = None;
        if let Some(ip) = ip {
            let (lock, on_its_way) = self.open_lock(&mut locked, &mut route, &mut nft, ip)?;
            ended.push(lock);
            released = on_its_way;
        } else if !ended.is_empty() {
            locked.save()?;
        }
        // What is held takes its time, which others need not wait for.
        drop(locked);
        if let Some(released) = released {
            released.finish(&mut route, &mut nft)?;
        }
        Ok(ended)
    }

    /// Gives up every lock and reservation whose time is over. A container that is just being
    /// restored under its lock keeps it.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn end_expired_locks(&self) -> Result<(), NetworkError> {
        let over = self.locks()?.values().any(Lock::expired);
        if !over && !self.backs()?.iter().any(Back::expired) {
            return Ok(());
        }
        let mut locked = self.lock()?;
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        let over = locked.state.away.extract_if(.., |_, lock| lock.expired());
        let over: Vec<(Ipv4Addr, Lock)> = over.collect();
        locked.save()?;
        for (ip, lock) in over {
            self.stop_onward(&locked, &mut route, &mut nft, ip, &lock)?;
        }
        self.stop_backs(&mut locked, Back::expired)?;
        let state = &locked.state;
        let over = state.locks.iter().filter(|(ip, lock)| lock.expired() && !state.is_leased(**ip));
        for ip in over.map(|(ip, _)| *ip).collect::<Vec<_>>() {
            self.open_lock(&mut locked, &mut route, &mut nft, ip)?;
        }
        Ok(())
    }

    /// The container of a kept lock was seen on another host: nothing is held any more, this host
    /// sends to it as to anybody else. Its address stays reserved as long as the lock would have
    /// stayed. Does nothing when the container has come back.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn departed(&self, container: &str) -> Result<(), NetworkError> {
        let mut locked = self.lock()?;
        let state = &locked.state;
        let gone = |(ip, lock): &(&Ipv4Addr, &Lock)| {
            lock.kept && lock.container == container && !state.is_leased(**ip)
        };
        let Some(ip) = state.locks.iter().find(gone).map(|(ip, _)| *ip) else { return Ok(()) };
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        let (lock, _) = self.open_lock(&mut locked, &mut route, &mut nft, ip)?;
        locked.state.away.insert(ip, Lock { elsewhere: true, ports: Vec::new(), ..lock });
        Ok(locked.save()?)
    }

    /// An attached container is here for good: its address is no longer reserved for it beside its
    /// lease. Gives the reservation.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn returned(&self, container: &str) -> Result<Option<Lock>, NetworkError> {
        let has = |state: &State| state.leases.get(container).map(|lease| lease.ip);
        let state = peek(self.dir(), self.key())?;
        if has(&state).is_none_or(|ip| !state.away.contains_key(&ip)) {
            return Ok(None);
        }
        let mut locked = self.lock()?;
        let Some(ip) = has(&locked.state) else { return Ok(None) };
        let reservation = locked.state.away.remove(&ip);
        locked.save()?;
        if let Some(lock) = &reservation {
            let (mut route, mut nft) = (self.route()?, self.nft()?);
            self.stop_onward(&locked, &mut route, &mut nft, ip, lock)?;
        }
        Ok(reservation)
    }

    /// Removes what a command that was killed between preparing a lock and locking has left. The
    /// caller knows that no other command is at work on the container.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn sweep(&self, container: &str) -> Result<(), NetworkError> {
        let locked = self.lock()?;
        let Some(lease) = locked.state.leases.get(container) else { return Ok(()) };
        match locked.state.locks.contains_key(&lease.ip) || self.locks_inside() {
            true => Ok(()),
            false => self.sweep_lease(lease, &mut self.route()?, &mut self.nft()?),
        }
    }

    /// As [`Network::sweep`], of the container with this lease, whose lock is open.
    pub(crate) fn sweep_lease(
        &self,
        lease: &Lease,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<(), NetworkError> {
        let Some(bridge) = self.bridge_link(route)? else { return Ok(()) };
        let hold = hold(&bridge, lease.addresses(), lease.mac);
        if hold.is_there(route)? { hold.remove(route, nft) } else { Ok(()) }
    }

    /// Writes down the lock of a container that is about to be attached, unless its address is locked
    /// already. Says whether it was not.
    pub(crate) fn note_lock(
        &self,
        state: &mut State,
        container: &str,
        lease: &Lease,
        means: Means,
    ) -> bool {
        let is_new = state.kept_lock(lease.ip).is_none();
        if is_new {
            state.locks.insert(lease.ip, Lock::working(container, lease, means));
        }
        is_new
    }

    /// Prepares the lock of a container that is about to be attached: what takes time.
    pub(crate) fn prepare_hold(
        &self,
        lease: &Lease,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<(), NetworkError> {
        match self.bridge_link(route)? {
            Some(bridge) => {
                hold(&bridge, lease.addresses(), lease.mac).prepare(route, nft).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Makes the lock that was noted: nothing reaches the container's interface from the beginning.
    pub(crate) fn lock_ahead(
        &self,
        lease: &Lease,
        route: &mut Route,
        nft: &mut Nft,
        wanted: Means,
    ) -> Result<(), NetworkError> {
        let Some(bridge) = self.bridge_link(route)? else { return Ok(()) };
        let hold = hold(&bridge, lease.addresses(), lease.mac);
        let means = match wanted {
            Means::Hold if hold.is_there(route)? => Means::Hold,
            Means::Hold => hold.prepare(route, nft)?,
            Means::Drop => Means::Drop,
        };
        if means != wanted {
            let mut locked = self.lock()?;
            if let Some(lock) = locked.state.locks.get_mut(&lease.ip) {
                lock.means = means;
            }
            locked.save()?;
        }
        hold.engage(route, nft, means)
    }

    /// Opens the lock of an address. What was held is on its way if its container is attached, and
    /// dropped if not.
    fn open_lock(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        nft: &mut Nft,
        ip: Ipv4Addr,
    ) -> Result<(Lock, Option<Released>), NetworkError> {
        let lock = locked.state.locks.get(&ip).cloned();
        let lock = lock.ok_or_else(|| NetworkError::NotAttached(ip.to_string()))?;
        if !lock.ports.is_empty() {
            rules::unpublish(nft, self.link_name(), &lock.publisher)
                .doing("unpublish ports of container", &lock.publisher)?;
        }
        let mut released = None;
        if let Some(bridge) = self.bridge_link(route)? {
            let hold = hold(&bridge, lock.addresses(ip), lock.mac);
            match locked.state.leases.values().find(|lease| lease.ip == ip) {
                Some(lease) if route.link(&lease.host_veth).ok().flatten().is_some() => {
                    released = Some(hold.release(route, nft, &lease.host_veth)?);
                }
                _ => hold.forget(route, nft)?,
            }
        }
        locked.state.locks.remove(&ip);
        locked.save()?;
        Ok((lock, released))
    }

    /// Drops the lock of a container that goes, with what is held.
    pub(crate) fn drop_lock(
        &self,
        locked: &mut Locked,
        route: &mut Route,
        nft: &mut Nft,
        container: &str,
    ) -> Result<(), NetworkError> {
        let Some(lease) = locked.state.leases.get(container).cloned() else { return Ok(()) };
        let Some(lock) = locked.state.locks.get(&lease.ip) else {
            return if self.locks_inside() { Ok(()) } else { self.sweep_lease(&lease, route, nft) };
        };
        if let Some(bridge) = self.bridge_link(route)? {
            hold(&bridge, lock.addresses(lease.ip), lock.mac).forget(route, nft)?;
        }
        locked.state.locks.remove(&lease.ip);
        Ok(locked.save()?)
    }

    /// Makes rules of locks that somebody flushed again.
    pub(crate) fn mend_locks(
        &self,
        state: &State,
        bridge: &Link,
        route: &mut Route,
        nft: &mut Nft,
    ) -> Result<(), NetworkError> {
        for (ip, lock) in &state.locks {
            if !lock.ports.is_empty() {
                let to = lock.addresses(*ip);
                rules::publish(nft, self.link_name(), None, &lock.publisher, to, &lock.ports)
                    .doing("publish ports of container", &lock.name)?;
            }
            if lock.kept {
                hold(bridge, lock.addresses(*ip), lock.mac).mend(route, nft, lock.means)?;
            }
        }
        Ok(())
    }

    pub(crate) fn bridge_link(&self, route: &mut Route) -> Result<Option<Link>, NetworkError> {
        route.link(self.link_name()).doing("look up", self.link_name())
    }
}

impl State {
    /// The lock that is kept for an address, or that a container has on its own.
    pub fn standing_lock(&self, ip: Ipv4Addr, container: &str) -> Option<&Lock> {
        self.locks.get(&ip).filter(|lock| lock.kept || lock.container == container)
    }

    /// The lock that is kept for an address.
    pub fn kept_lock(&self, ip: Ipv4Addr) -> Option<&Lock> {
        self.locks.get(&ip).filter(|lock| lock.kept)
    }

    /// Who an address is kept for, though nobody is attached with it: the name.
    pub fn keeps_for(&self, ip: Ipv4Addr) -> Option<&str> {
        self.kept_lock(ip).or_else(|| self.away.get(&ip)).map(|lock| lock.name.as_str())
    }

    /// Whether somebody is attached with an address.
    pub fn is_leased(&self, ip: Ipv4Addr) -> bool {
        self.leases.values().any(|lease| lease.ip == ip)
    }

    /// Takes the reservations for a container out.
    fn reservations_of(&mut self, container: &str) -> Vec<(Ipv4Addr, Lock)> {
        self.away.extract_if(.., |_, lock| lock.container == container).collect()
    }

    /// A container goes. If a lock is kept for its address, its ports stay with the lock. Says
    /// whether there is one.
    pub fn leave_to_lock(&mut self, container: &str) -> bool {
        let Some(lease) = self.leases.get(container) else {
            return self.locks.values().any(|lock| lock.kept && lock.container == container);
        };
        match self.locks.get_mut(&lease.ip) {
            Some(lock) if lock.kept => {
                if !lease.ports.is_empty() {
                    lock.publisher = container.to_owned();
                    lock.ports.clone_from(&lease.ports);
                }
                true
            }
            _ => false,
        }
    }
}

/// What holds packets for these addresses.
pub(crate) fn hold(bridge: &Link, addresses: impl Iterator<Item = IpAddr>, mac: Mac) -> Hold {
    Hold::new(&bridge.name, bridge.index, bridge.mtu, mac, addresses.collect())
}
