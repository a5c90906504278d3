//! What a network remembers between commands: its subnet and who has which address and ports.
//!
//! One JSON file, replaced by rename under a lock file. Addresses and rules live in the kernel and
//! do not survive a reboot, so a file from before the last boot keeps its subnet and nothing else;
//! for the same reason it is not synced to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::lock::Lock;
use crate::mac::Mac;
use crate::passage::Back;
use crate::ports::PortMapping;

/// A container's share of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// The hardware address of its interface.
    pub mac: Mac,
    /// The name of its interface.
    pub ifname: String,
    /// The host's end of its veth pair; empty for macvlan.
    pub host_veth: String,
    /// Its host name, for other containers' `/etc/hosts`.
    #[serde(default)]
    pub hostname: String,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

impl Lease {
    /// Its addresses of both kinds.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(self.ip.into()), self.ip6.map(IpAddr::from)].into_iter().flatten()
    }
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub version: u32,
    /// The boot in which the leases were given.
    pub boot: String,
    pub subnet: Option<Ipv4Net>,
    /// The address given last: the next search begins after it, so that an address is not used
    /// again at once.
    pub last: Option<Ipv4Addr>,
    #[serde(default)]
    pub last6: Option<Ipv6Addr>,
    /// By container id.
    pub leases: BTreeMap<String, Lease>,
    /// Addresses whose packets are held.
    #[serde(default)]
    pub locks: BTreeMap<Ipv4Addr, Lock>,
    /// Addresses that are reserved for containers that went to other hosts.
    #[serde(default)]
    pub away: BTreeMap<Ipv4Addr, Lock>,
    /// What is returned to hosts that containers came from, by [`Back::key`].
    #[serde(default)]
    pub backs: BTreeMap<String, Back>,
}

/// What went wrong with the state file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The state file, locked.
#[derive(Debug)]
pub(crate) struct Locked {
    path: PathBuf,
    _lock: OwnedFd,
    pub state: State,
}

const VERSION: u32 = 1;

impl Locked {
    /// Locks and reads the state of the network `name` in `dir`.
    pub fn open(dir: &Path, name: &str) -> Result<Self, StateError> {
        let lock_path = dir.join(format!("{name}.lock"));
        let at = |action, path: &Path, source: io::Error| StateError {
            action,
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&lock_path, flags, Mode::from_raw_mode(0o600));
        let lock = match open() {
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(dir).map_err(|e| at("make", dir, e))?;
                open()
            }
            other => other,
        };
        let lock = lock.map_err(|e| at("open", &lock_path, e.into()))?;
        while let Err(e) = rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
            if e != Errno::INTR {
                return Err(at("lock", &lock_path, e.into()));
            }
        }
        let path = dir.join(format!("{name}.json"));
        let state = read(&path).map_err(|e| at("read", &path, e))?;
        Ok(Locked { path, _lock: lock, state })
    }

    /// Writes the state back.
    pub fn save(&self) -> Result<(), StateError> {
        let at = |source| StateError { action: "write", path: self.path.clone(), source };
        let text = serde_json::to_vec_pretty(&self.state).map_err(|e| at(e.into()))?;
        let new = self.path.with_extension("json.new");
        std::fs::write(&new, text).map_err(at)?;
        std::fs::rename(&new, &self.path).map_err(at)
    }
}

/// Reads a state file without the lock: renames make every version whole.
pub(crate) fn peek(dir: &Path, name: &str) -> Result<State, StateError> {
    let path = dir.join(format!("{name}.json"));
    read(&path).map_err(|source| StateError { action: "read", path, source })
}

fn read(path: &Path) -> io::Result<State> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let mut state = match std::fs::read(path) {
        // Empty after a power failure, since it is not synced: as good as absent.
        Ok(text) if text.is_empty() => State::default(),
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => State::default(),
        Err(e) => return Err(e),
    };
    if state.boot != boot {
        state.leases.clear();
        state.locks.clear();
        state.away.clear();
        state.backs.clear();
    }
    state.boot = boot;
    state.version = VERSION;
    Ok(state)
}

impl State {
    /// An address of the subnet, or of a range in it, that nobody has; `None` when all are taken.
    pub fn free_address(
        &self,
        subnet: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        range: Option<(Ipv4Addr, Ipv4Addr)>,
    ) -> Option<Ipv4Addr> {
        let taken: BTreeSet<Ipv4Addr> = self.leases.values().map(|l| l.ip).chain(gateway).collect();
        let reserved = self.locks.keys().chain(self.away.keys());
        // Of one that has stopped and will be started again.
        let reserved = reserved.chain(self.backs.values().map(|back| &back.ip));
        let taken = &taken | &reserved.copied().collect();
        let usable = (u32::from(subnet.network()) + 1, u32::from(subnet.broadcast()) - 1);
        let (first, last) = match range {
            Some((first, last)) => (u32::from(first).max(usable.0), u32::from(last).min(usable.1)),
            None => usable,
        };
        if first > last {
            return None;
        }
        // The search begins after the one given last.
        let begin = match self.last.map(u32::from) {
            Some(given) if (first..last).contains(&given) => given + 1,
            _ => first,
        };
        let candidates = (begin..=last).chain(first..begin);
        candidates.map(Ipv4Addr::from).find(|ip| !taken.contains(ip))
    }

    /// As [`State::free_address`], for IPv6.
    pub fn free_address6(
        &self,
        subnet: Ipv6Net,
        gateway: Option<Ipv6Addr>,
        range: Option<(Ipv6Addr, Ipv6Addr)>,
    ) -> Option<Ipv6Addr> {
        let taken: BTreeSet<Ipv6Addr> =
            self.leases.values().filter_map(|l| l.ip6).chain(gateway).collect();
        let kept = self.locks.values().chain(self.away.values()).filter_map(|lock| lock.ip6);
        let taken = &taken | &kept.collect();
        // The first address of a subnet is its routers' anycast address.
        let usable = (u128::from(subnet.network()) + 1, u128::from(subnet.broadcast()) - 1);
        let (first, last) = match range {
            Some((first, last)) => {
                (u128::from(first).max(usable.0), u128::from(last).min(usable.1))
            }
            None => usable,
        };
        if first > last {
            return None;
        }
        let begin = match self.last6.map(u128::from) {
            Some(given) if (first..last).contains(&given) => given + 1,
            _ => first,
        };
        let candidates = (begin..=last).chain(first..begin);
        candidates.map(Ipv6Addr::from).find(|ip| !taken.contains(ip))
    }

    /// The container that has an address.
    pub fn holder(&self, ip: impl Into<IpAddr>) -> Option<&str> {
        let ip = ip.into();
        self.leases.iter().find(|(_, l)| l.addresses().any(|a| a == ip)).map(|(id, _)| id.as_str())
    }
}

/// The bridge's own address: the first of the subnet.
pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(ip: Ipv4Addr) -> Lease {
        Lease {
            ip,
            ip6: None,
            mac: Mac::of_gateway(ip),
            ifname: "eth0".into(),
            host_veth: "v".into(),
            hostname: String::new(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn addresses_go_round_and_end() {
        let subnet: Ipv4Net = "10.1.2.0/29".parse().expect("subnet");
        let mut state = State::default();
        let mut given = Vec::new();
        let gateway = Some(gateway(subnet));
        while let Some(ip) = state.free_address(subnet, gateway, None) {
            state.last = Some(ip);
            state.leases.insert(ip.to_string(), lease(ip));
            given.push(ip.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        state.leases.remove("10.1.2.3");
        state.leases.remove("10.1.2.5");
        state.last = Some(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(state.free_address(subnet, gateway, None), Some(Ipv4Addr::new(10, 1, 2, 5)));
        assert_eq!(state.holder(Ipv4Addr::new(10, 1, 2, 2)), Some("10.1.2.2"));
    }

    #[test]
    fn addresses_come_from_the_range() {
        let state = State::default();
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("ip");
        let subnet = "192.0.2.0/24".parse().expect("subnet");
        let free = |first, last| state.free_address(subnet, None, Some((ip(first), ip(last))));
        assert_eq!(free("192.0.2.32", "192.0.2.40"), Some(ip("192.0.2.32")));
        assert_eq!(free("192.0.2.40", "192.0.2.32"), None);
        let subnet6: Ipv6Net = "fd00:2::/64".parse().expect("subnet");
        let gateway = "fd00:2::1".parse().ok();
        assert_eq!(state.free_address6(subnet6, gateway, None), "fd00:2::2".parse().ok());
    }

    #[test]
    fn leases_of_an_earlier_boot_are_void() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut locked = Locked::open(dir.path(), "n").expect("open");
        locked.state.leases.insert("c".into(), lease(Ipv4Addr::new(10, 0, 0, 2)));
        locked.state.subnet = "10.0.0.0/24".parse().ok();
        locked.save().expect("save");
        assert_eq!(peek(dir.path(), "n").expect("read").leases.len(), 1);
        locked.state.boot = "another".into();
        locked.save().expect("save");
        let state = peek(dir.path(), "n").expect("read");
        assert!(state.leases.is_empty() && state.subnet.is_some());
    }
}
