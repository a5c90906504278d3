//! What becomes of passages: made at a move, ended by time, by the user, or by the container's return.
//!
//! A passage of an old host stands in the place of its lock, as the reservation of an address that is
//! elsewhere ([`crate::Lock::onward`]); while the container is being restored here its packets are led to
//! the lock of that restore, and if nothing comes of it they are led on again.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::Kind;
use crate::conntrack;
use crate::error::{Doing, NetworkError};
use crate::lock::{Lock, now};
use crate::locks::hold;
use crate::network::Network;
use crate::nft::Nft;
use crate::passage::{Back, Onward, Passage, mark};
use crate::route::Route;
use crate::rules;
use crate::state::{Locked, State, peek};

impl Network {
    /// What a host that is about to take a container over has to know, so that connections by way of
    /// this host go on. `None` when there are none, and never can be: no port is published, and nothing is
    /// masqueraded. `to` is the other host's address.
    ///
    /// # Errors
    /// [`NetworkError::NoNeighbour`]; what the kernel says.
    pub fn passage(
        &self,
        container: &str,
        to: Ipv4Addr,
        limit: Option<Duration>,
    ) -> Result<Option<Passage>, NetworkError> {
        let state = peek(self.dir(), self.key())?;
        let (Kind::Managed, Some(lease)) = (self.kind, state.leases.get(container)) else {
            return Ok(None);
        };
        // What came by way of the other host will be at home there.
        let flows = conntrack::flows_of(lease.ip, mark(lease.ip, to));
        let mut flows = flows.doing("list the connections of", lease.ip)?;
        // Who is on the bridge, or is this host as containers see it, is not reached from elsewhere.
        flows.retain(|flow| state.subnet.is_none_or(|subnet| !subnet.contains(&flow.peer)));
        if lease.ports.is_empty() && flows.is_empty() {
            return Ok(None);
        }
        let hop = self.route()?.hop_to(to).doing("find the way to", to)?;
        let hop = hop.ok_or(NetworkError::NoNeighbour(to))?;
        let seconds = limit.map(|limit| limit.as_secs());
        Ok(Some(Passage { via: hop.source, mac: hop.mac, flows, seconds }))
    }

    /// The container of a kept lock runs on another host, which has its passage: what was held goes
    /// there, and what comes for it by way of this host, until the lock's limit. What it still has to say
    /// here is dropped until it is taken off the bridge. Gives what is not returned there any more, because
    /// it is at home there.
    ///
    /// # Errors
    /// [`NetworkError`]. What was not made is made by the next command that mends the network's rules.
    pub fn send_on(&self, container: &str, onward: &Onward) -> Result<Vec<Back>, NetworkError> {
        let mut locked = self.lock()?;
        let of_it = |(_, lock): &(&Ipv4Addr, &Lock)| lock.kept && lock.container == container;
        let Some(ip) = locked.state.locks.iter().find(of_it).map(|(ip, _)| *ip) else {
            return Ok(Vec::new());
        };
        let Some(lock) = locked.state.locks.remove(&ip) else { return Ok(Vec::new()) };
        let (publisher, ports) = match locked.state.leases.get(container) {
            Some(lease) => (container.to_owned(), lease.ports.clone()),
            None => (lock.publisher.clone(), lock.ports.clone()),
        };
        let to = Some(onward.clone());
        let away = Lock { elsewhere: true, publisher, ports, onward: to, ..lock.clone() };
        locked.state.away.insert(ip, away);
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        locked.save()?;
        let home =
            self.stop_backs(&mut locked, |back| back.ip == ip && back.passage.via == onward.via)?;
        onward.lead(&mut route, &mut nft, ip)?;
        if let Some(bridge) = self.bridge_link(&mut route)? {
            let hop = route.hop_to(onward.via).doing("find the way to", onward.via)?;
            let hold = hold(&bridge, lock.addresses(ip), lock.mac);
            if let Some(hop) = hop {
                hold.send_on(&mut route, &mut nft, hop.device, onward.via)?;
            }
            if !locked.state.is_leased(ip) {
                hold.forget(&mut route, &mut nft)?;
            }
        }
        Ok(home)
    }

    /// Connections of an attached container that come by way of another host are returned there. Gives what
    /// was in place of it.
    ///
    /// # Errors
    /// [`NetworkError::NoNeighbour`]; what the kernel says.
    pub fn send_back(
        &self,
        container: &str,
        name: &str,
        passage: &Passage,
        keeper: Option<(i32, u64)>,
    ) -> Result<Option<Back>, NetworkError> {
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        let via = passage.via;
        if route.hop_to(via).doing("find the way to", via)?.is_none() {
            return Err(NetworkError::NoNeighbour(via));
        }
        let mut locked = self.lock()?;
        let not_attached = || NetworkError::NotAttached(container.to_owned());
        let ip = locked.state.leases.get(container).ok_or_else(not_attached)?.ip;
        // What is known here of such connections is from an earlier visit: their windows have moved on, and
        // their packets would be taken for strays.
        conntrack::forget_marked(mark(ip, via)).doing("forget the connections by way of", via)?;
        let own = conntrack::flows_of(ip, mark(ip, via)).doing("list the connections of", ip)?;
        let back = Back {
            container: container.to_owned(),
            name: name.to_owned(),
            ip,
            until: passage.seconds.map(|seconds| now() + seconds),
            keeper,
            own,
            passage: passage.clone(),
        };
        let before = locked.state.backs.insert(back.key(), back.clone());
        locked.save()?;
        let led = back.lead(&mut route, &mut nft);
        if led.is_err() {
            let _ = back.stop(&mut route, &mut nft);
            locked.state.backs.remove(&back.key());
            locked.save()?;
        }
        led.map(|()| before)
    }

    /// What is returned to other hosts, those whose time is over included.
    ///
    /// # Errors
    /// [`NetworkError::State`].
    pub fn backs(&self) -> Result<Vec<Back>, NetworkError> {
        Ok(peek(self.dir(), self.key())?.backs.into_values().collect())
    }

    /// Nothing of a container is returned to other hosts any more, unless it has gone on to a third one
    /// from here. Gives what was.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn end_backs(&self, container: &str) -> Result<Vec<Back>, NetworkError> {
        if !self.backs()?.iter().any(|back| back.container == container) {
            return Ok(Vec::new());
        }
        let mut locked = self.lock()?;
        let mut away = locked.state.away.values().filter(|lock| lock.container == container);
        let onward = away.find_map(|lock| lock.onward.clone());
        self.stop_backs(&mut locked, |back| {
            let home = onward.as_ref().is_none_or(|to| to.via == back.passage.via);
            back.container == container && home
        })
    }

    /// Nothing of a container is returned to other hosts any more, wherever it is. Gives what was.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn give_up_backs(&self, container: &str) -> Result<Vec<Back>, NetworkError> {
        let mut locked = self.lock()?;
        self.stop_backs(&mut locked, |back| back.container == container)
    }

    /// Ends what is returned and chosen, and gives it.
    pub(crate) fn stop_backs(
        &self,
        locked: &mut Locked,
        chosen: impl Fn(&Back) -> bool,
    ) -> Result<Vec<Back>, NetworkError> {
        let ended: BTreeMap<String, Back> =
            locked.state.backs.extract_if(.., |_, back| chosen(back)).collect();
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        locked.save()?;
        let (mut route, mut nft) = (self.route()?, self.nft()?);
        ended.values().try_for_each(|back| back.stop(&mut route, &mut nft))?;
        Ok(ended.into_values().collect())
    }

    /// Ends what a reservation that was taken out of the state did; its ports go, unless somebody who is
    /// attached publishes them.
    pub(crate) fn stop_onward(
        &self,
        locked: &Locked,
        route: &mut Route,
        nft: &mut Nft,
        ip: Ipv4Addr,
        lock: &Lock,
    ) -> Result<(), NetworkError> {
        let Some(onward) = &lock.onward else { return Ok(()) };
        onward.stop(route, nft, ip)?;
        if !locked.state.leases.contains_key(&lock.publisher) {
            rules::unpublish(nft, self.link_name(), &lock.publisher)
                .doing("unpublish ports of container", &lock.name)?;
        }
        Ok(())
    }

    /// Makes the passages that nobody stands in the way of: after somebody flushed the rules, and after a
    /// container that was to come back did not.
    pub(crate) fn mend_passages(
        &self,
        state: &State,
        route: &mut Route,
        nft: &mut Nft,
        instead_of: Option<&str>,
    ) -> Result<(), NetworkError> {
        for (ip, lock) in state.away.iter().filter(|(ip, _)| !state.is_leased(**ip)) {
            let Some(onward) = &lock.onward else { continue };
            onward.lead(route, nft, *ip)?;
            let to = lock.addresses(*ip);
            rules::publish(nft, self.link_name(), instead_of, &lock.publisher, to, &lock.ports)
                .doing("publish ports of container", &lock.name)?;
        }
        state.backs.values().try_for_each(|back| back.lead(route, nft))
    }
}

impl State {
    /// Whether what a container has or had leads on to another host when it goes.
    pub fn goes_on(&self, container: &str) -> bool {
        match self.leases.get(container) {
            Some(lease) => self.onward(lease.ip).is_some(),
            None => {
                self.away.values().any(|lock| lock.onward.is_some() && lock.publisher == container)
            }
        }
    }

    /// The passage of an address whose container is elsewhere.
    pub fn onward(&self, ip: Ipv4Addr) -> Option<&Onward> {
        self.away.get(&ip)?.onward.as_ref()
    }
}
