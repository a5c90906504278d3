//! The lock of a container's network: from the instant a capture looks at its sockets until a restore
//! has made them again, here or on another host.
//!
//! A lock belongs to an address. It is written down with the network's leases before the kernel is
//! touched, and is one of two kinds:
//! - *working*: a command holds it. If that command is killed the next one opens it, because the
//!   container goes on;
//! - *kept*: the container was stopped by a checkpoint. It stays, with the container's address and
//!   published ports, until a restore takes it over (under any name), until it is given up
//!   ([`Network::end_lock`]), until its limit has passed, or until the container is seen on another
//!   host ([`Network::departed`]). Then only its address stays reserved, until the limit.
//!
//! How packets are held is in [`crate::hold`]. A flush of the machine's nf_tables rules leaves held
//! packets held, and ends published ports as it does for running containers; the next command makes
//! the rules again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, NetworkError};
use crate::hold::{Hold, Means, Released};
use crate::locks::hold;
use crate::mac::Mac;
use crate::network::Network;
use crate::nft::Nft;
use crate::passage::Onward;
use crate::ports::PortMapping;
use crate::route::Route;
use crate::rules;
use crate::state::Lease;

/// A lock as it is written down, by its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The container that it is for.
    pub container: String,
    /// The hardware address behind the locked one.
    pub mac: Mac,
    /// The IPv6 address behind the same hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// What happens to packets.
    pub means: Means,
    /// The container's name, for messages.
    pub name: String,
    /// It outlives the command that made it.
    pub kept: bool,
    /// What it waits for is in an archive, and not only with the container.
    #[serde(default)]
    pub archived: bool,
    /// The process that ends it in time: pid and start time.
    #[serde(default)]
    pub keeper: Option<(i32, u64)>,
    /// When it was made, in seconds since boot.
    pub since: u64,
    /// When it ends by itself, in seconds since boot; `None`: never.
    pub until: Option<u64>,
    /// The container whose id the ports below carry.
    #[serde(default)]
    pub publisher: String,
    /// Published ports that stay while the container is gone.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// The container is on another host: nothing is locked, its address is reserved.
    #[serde(default)]
    pub elsewhere: bool,
    /// Where packets for it go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onward: Option<Onward>,
}

/// How a lock is kept when its command has ended.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// The container's name.
    pub name: String,
    /// How long at most; `None`: for ever.
    pub limit: Option<Duration>,
    /// See [`Lock::archived`].
    pub archived: bool,
    /// See [`Lock::keeper`].
    pub keeper: Option<(i32, u64)>,
}

impl Lock {
    /// Seconds until it ends by itself; `None`: never.
    pub fn remaining(&self) -> Option<u64> {
        self.until.map(|until| until.saturating_sub(now()))
    }

    pub(crate) fn working(container: &str, lease: &Lease, means: Means) -> Self {
        Lock {
            container: container.to_owned(),
            mac: lease.mac,
            ip6: lease.ip6,
            means,
            name: lease.hostname.clone(),
            kept: false,
            archived: false,
            keeper: None,
            since: now(),
            until: None,
            publisher: String::new(),
            ports: Vec::new(),
            elsewhere: false,
            onward: None,
        }
    }

    pub(crate) fn addresses(&self, ip: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(ip.into()), self.ip6.map(IpAddr::from)].into_iter().flatten()
    }

    /// Whether it has ended by itself.
    pub fn expired(&self) -> bool {
        self.remaining() == Some(0)
    }
}

/// Seconds since boot, with the time in which the machine slept.
pub(crate) fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

/// The lock of one attached container, in the hands of a command.
#[derive(Debug)]
pub struct ContainerLock {
    network: Network,
    container: String,
    hold: Hold,
    means: Means,
    ip: Ipv4Addr,
    /// The container's port of the bridge.
    veth: String,
    engaged: bool,
    released: Option<Released>,
    ended: Option<Lock>,
    route: Route,
    nft: Nft,
}

impl Network {
    /// Makes ready to lock an attached container: whatever takes time is done here. A lock that is
    /// kept for its address is taken over, and stands from the beginning; if the container had another
    /// hardware address then, what is held is dropped, since it carries that. `means` is what is wanted;
    /// [`Means::Hold`] becomes [`Means::Drop`] where the kernel cannot hold.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn prepare_lock(
        &self,
        container: &str,
        means: Means,
    ) -> Result<ContainerLock, NetworkError> {
        let mut locked = self.lock()?;
        let mut route = self.route()?;
        let mut nft = self.nft()?;
        let not_attached = || NetworkError::NotAttached(container.to_owned());
        let lease = locked.state.leases.get(container).ok_or_else(not_attached)?.clone();
        let bridge = self.bridge_link(&mut route)?.ok_or_else(not_attached)?;
        let ours = hold(&bridge, lease.addresses(), lease.mac);
        let standing = locked.state.standing_lock(lease.ip, container).cloned();
        let means = match (&standing, means) {
            (Some(lock), means) if lock.mac != lease.mac => {
                let means = match means {
                    Means::Hold => ours.prepare(&mut route, &mut nft)?,
                    Means::Drop => Means::Drop,
                };
                ours.engage(&mut route, &mut nft, means)?;
                let before = hold(&bridge, lock.addresses(lease.ip), lock.mac);
                before.remove(&mut route, &mut nft)?;
                if let Some(lock) = locked.state.locks.get_mut(&lease.ip) {
                    (lock.mac, lock.means) = (lease.mac, means);
                }
                locked.save()?;
                means
            }
            (Some(lock), _) => {
                ours.mend(&mut route, &mut nft, lock.means)?;
                lock.means
            }
            (None, Means::Hold) => ours.prepare(&mut route, &mut nft)?,
            (None, Means::Drop) => Means::Drop,
        };
        Ok(ContainerLock {
            network: self.clone(),
            container: container.to_owned(),
            hold: ours,
            means,
            ip: lease.ip,
            veth: lease.host_veth,
            engaged: standing.is_some(),
            released: None,
            ended: None,
            route,
            nft,
        })
    }
}

impl ContainerLock {
    /// What happens to packets.
    pub fn means(&self) -> Means {
        self.means
    }

    /// Locks: nothing reaches or leaves the container from here on. That it is locked already is no
    /// error.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn lock(&mut self) -> Result<(), NetworkError> {
        if self.engaged {
            return Ok(());
        }
        let mut locked = self.network.lock()?;
        let not_attached = || NetworkError::NotAttached(self.container.clone());
        let lease = locked.state.leases.get(&self.container).ok_or_else(not_attached)?;
        let lock = Lock::working(&self.container, lease, self.means);
        locked.state.locks.insert(self.ip, lock);
        locked.save()?;
        self.hold.engage(&mut self.route, &mut self.nft, self.means)?;
        self.engaged = true;
        Ok(())
    }

    /// Lets the lock stay when the container goes.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn keep(&mut self, keep: Keep) -> Result<(), NetworkError> {
        let mut locked = self.network.lock()?;
        if let Some(lock) = locked.state.locks.get_mut(&self.ip) {
            lock.kept = true;
            lock.name = keep.name;
            lock.until = keep.limit.map(|limit| now() + limit.as_secs());
            lock.archived = keep.archived;
            lock.keeper = keep.keeper;
            locked.save()?;
        }
        Ok(())
    }

    /// The lock that [`ContainerLock::unlock`] has ended.
    pub fn ended(&self) -> Option<&Lock> {
        self.ended.as_ref()
    }

    /// Lets out what the container sends; what is held waits for [`ContainerLock::unlock`]. A lock that
    /// drops packets drops none any more.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn let_out(&mut self) -> Result<(), NetworkError> {
        if !self.engaged {
            return Ok(());
        }
        self.hold.let_out(&mut self.nft)
    }

    /// Opens the lock: what was held arrives now. That it is open is no error.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn unlock(&mut self) -> Result<(), NetworkError> {
        if !self.engaged {
            return Ok(());
        }
        let mut locked = self.network.lock()?;
        self.released = Some(self.hold.release(&mut self.route, &mut self.nft, &self.veth)?);
        self.engaged = false;
        self.ended = locked.state.locks.remove(&self.ip);
        if let Some(lock) = &self.ended
            && !lock.ports.is_empty()
        {
            // Whoever took the lock over has not published them.
            rules::unpublish(&mut self.nft, self.network.link_name(), &lock.publisher)
                .doing("unpublish ports of container", &lock.publisher)?;
        }
        Ok(locked.save()?)
    }

    /// Removes what the lock needed, unless it stands. Takes some 30 ms, in which the container runs.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn finish(mut self) -> Result<(), NetworkError> {
        match self.released.take() {
            _ if self.engaged => Ok(()),
            Some(released) => released.finish(&mut self.route, &mut self.nft),
            None => self.hold.remove(&mut self.route, &mut self.nft),
        }
    }
}
