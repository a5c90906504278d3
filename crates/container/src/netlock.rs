//! The lock of a container's network, as the engine wants it.
//!
//! On a bridge everything for the container's address is held ([`arctern_net::ContainerLock`]); with
//! macvlan it is dropped inside of the container's namespace ([`arctern_net::InsideLock`]). A
//! container in the host's network has no address of its own: its connections are locked one by one,
//! and what is sent meanwhile is dropped. Without a network there is nobody outside.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use arctern_engine::options::{Connection, HookError, NetworkLock};
use arctern_net::{
    ConnectionLock, ContainerLock, InsideLock, Keep, Means, Network, NetworkError, netns,
};

use crate::config::{ContainerConfig, NetworkMode, short_id};
use crate::error::{Error, Result};
use crate::keeper::{self, Bell};
use crate::network;
use crate::paths::Paths;

/// The lock of one container.
#[derive(Debug)]
pub(crate) struct NetLock {
    way: Way,
    /// The address that the connections of a checkpoint belong to, when the container has another
    /// one now: with the one that it has.
    moved: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Who is to know when it is locked.
    bell: Option<Bell>,
}

#[derive(Debug)]
enum Way {
    Bridge(Box<ContainerLock>),
    Inside(Box<Inside>),
    Host(ConnectionLock),
    None,
}

/// The lock of a container on macvlan.
#[derive(Debug)]
struct Inside {
    lock: InsideLock,
    network: Network,
    container: String,
    /// [`Inside::open`] was here since it was locked.
    open: bool,
}

impl Inside {
    /// Opens the lock.
    fn open(&mut self) -> std::result::Result<(), NetworkError> {
        if !self.open {
            self.lock.unlock()?;
            self.open = true;
        }
        Ok(())
    }

    /// Opens the lock and says where the container is: what others have kept for it comes now.
    fn unlock(&mut self) -> std::result::Result<(), NetworkError> {
        self.open()?;
        self.network.announce(self.lock.namespace(), &self.container)
    }
}

impl NetLock {
    /// Makes ready to lock a container whose network stands.
    pub fn prepare(paths: &Paths, config: &ContainerConfig) -> Result<NetLock> {
        let way = match config.network {
            NetworkMode::Bridge => {
                let network = network::of(paths, config)?;
                if network.locks_inside() {
                    let namespace = netns::open(&paths.container(&config.id).netns);
                    let lock = InsideLock::new(namespace.map_err(Error::network)?);
                    let way = Way::Inside(Box::new(Inside {
                        lock,
                        network,
                        container: config.id.clone(),
                        open: false,
                    }));
                    return Ok(NetLock { way, moved: None, bell: None });
                }
                let lock = network.prepare_lock(&config.id, Means::Hold).map_err(Error::network)?;
                Way::Bridge(Box::new(lock))
            }
            NetworkMode::Host => Way::Host(of_host(&config.id)),
            NetworkMode::None => Way::None,
        };
        Ok(NetLock { way, moved: None, bell: None })
    }

    /// As [`NetLock::prepare`], for a container that had the address `had` at its checkpoint and has
    /// `has` now.
    pub fn of_restored(
        paths: &Paths,
        config: &ContainerConfig,
        had: Option<Ipv4Addr>,
        has: Option<Ipv4Addr>,
    ) -> Result<NetLock> {
        let lock = NetLock::prepare(paths, config)?;
        Ok(NetLock { moved: had.zip(has).filter(|(had, has)| had != has), ..lock })
    }

    /// Rings when it is locked.
    pub fn with_bell(self, bell: Option<Bell>) -> NetLock {
        NetLock { bell, ..self }
    }

    /// How long at most something is done for the container after it was stopped: the lock stays, or
    /// what arrives on its segment is kept. `None`: nothing is.
    pub fn outlives(&self, limit: Option<Duration>) -> Option<Option<Duration>> {
        /// Longer than any peer tries.
        const PEERS: Duration = Duration::from_secs(600);
        match &self.way {
            Way::Bridge(_) => Some(limit),
            Way::Inside(_) => Some(Some(limit.unwrap_or(PEERS).min(PEERS))),
            Way::Host(_) | Way::None => None,
        }
    }

    /// Lets the lock stay when the container is stopped.
    pub fn keep(&mut self, keep: Keep) -> Result<()> {
        match &mut self.way {
            Way::Bridge(lock) => lock.keep(keep).map_err(Error::network),
            Way::Inside(_) | Way::Host(_) | Way::None => Ok(()),
        }
    }

    /// Opens the lock if it stands, for a container that goes on.
    pub fn open(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Bridge(lock) => {
                lock.unlock().map_err(Error::network)?;
                lock.ended().into_iter().for_each(keeper::dismiss);
                Ok(())
            }
            Way::Inside(inside) => inside.unlock().map_err(Error::network),
            Way::Host(lock) => lock.unlock().map_err(Error::network),
            Way::None => Ok(()),
        }
    }

    /// Removes what is not needed any more; a lock that stands stays.
    pub fn finish(self) -> Result<()> {
        match self.way {
            Way::Bridge(lock) => lock.finish().map_err(Error::network),
            Way::Inside(_) | Way::Host(_) | Way::None => Ok(()),
        }
    }
}

impl NetworkLock for NetLock {
    fn lock(&mut self, connections: &[Connection]) -> std::result::Result<(), HookError> {
        if let Some((had, has)) = self.moved {
            let lost: Vec<String> = connections
                .iter()
                .filter(|c| c.local.ip().to_canonical() == IpAddr::V4(had))
                .map(|c| format!("{} -> {}", c.local, c.peer))
                .collect();
            if !lost.is_empty() {
                return Err(Box::new(Error::AddressChanged { had, has, connections: lost }));
            }
        }
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        match &mut self.way {
            Way::Bridge(lock) => Ok(lock.lock()?),
            Way::Inside(inside) => {
                inside.lock.lock()?;
                inside.open = false;
                Ok(())
            }
            Way::Host(lock) => {
                let ends: Vec<_> = connections.iter().map(|c| (c.local, c.peer)).collect();
                Ok(lock.lock(&ends)?)
            }
            Way::None => Ok(()),
        }
    }

    fn let_out(&mut self) -> std::result::Result<(), HookError> {
        match &mut self.way {
            Way::Bridge(lock) => Ok(lock.let_out()?),
            Way::Inside(inside) => Ok(inside.open()?),
            Way::Host(lock) => Ok(lock.unlock()?),
            Way::None => Ok(()),
        }
    }

    fn unlock(&mut self) -> std::result::Result<(), HookError> {
        Ok(self.open()?)
    }

    fn drops(&self) -> bool {
        matches!(self.way, Way::Host(_))
    }
}

/// The lock of a container in the host's network.
pub(crate) fn of_host(id: &str) -> ConnectionLock {
    ConnectionLock::new(None, &format!("arctern-{}", short_id(id)))
}
