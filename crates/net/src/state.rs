//! What a network remembers between commands: its subnet and who has which address and ports.
//!
//! One JSON file, replaced by rename under a lock file. Addresses and rules live in the kernel and
//! do not survive a reboot, so a file from before the last boot keeps its subnet and nothing else;
//! for the same reason it is not synced to disk.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::lock::Lock;
use crate::mac::Mac;
use crate::ports::PortMapping;

/// A container's share of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its address.
    pub ip: Ipv4Addr,
    /// The hardware address of its interface.
    pub mac: Mac,
    /// The name of its interface.
    pub ifname: String,
    /// The host's end of its veth pair.
    pub host_veth: String,
    /// Its host name, for other containers' `/etc/hosts`.
    #[serde(default)]
    pub hostname: String,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
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
    /// By container id.
    pub leases: BTreeMap<String, Lease>,
    /// Addresses whose packets are held.
    #[serde(default)]
    pub locks: BTreeMap<Ipv4Addr, Lock>,
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
    }
    state.boot = boot;
    state.version = VERSION;
    Ok(state)
}

impl State {
    /// An address of the subnet that nobody has; `None` when all are taken.
    pub fn free_address(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        let taken: std::collections::BTreeSet<Ipv4Addr> =
            self.leases.values().map(|l| l.ip).chain([gateway(subnet)]).collect();
        let taken = &taken | &self.locks.keys().copied().collect();
        let (first, last) = (u32::from(subnet.network()) + 1, u32::from(subnet.broadcast()) - 1);
        let after = self.last.map_or(first, u32::from).clamp(first, last);
        let candidates = (after + 1..=last).chain(first..=after);
        candidates.map(Ipv4Addr::from).find(|ip| !taken.contains(ip))
    }

    /// The container that has an address.
    pub fn holder(&self, ip: Ipv4Addr) -> Option<&str> {
        self.leases.iter().find(|(_, l)| l.ip == ip).map(|(id, _)| id.as_str())
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
        while let Some(ip) = state.free_address(subnet) {
            state.last = Some(ip);
            state.leases.insert(ip.to_string(), lease(ip));
            given.push(ip.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        state.leases.remove("10.1.2.3");
        state.leases.remove("10.1.2.5");
        state.last = Some(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(state.free_address(subnet), Some(Ipv4Addr::new(10, 1, 2, 5)));
        assert_eq!(state.holder(Ipv4Addr::new(10, 1, 2, 2)), Some("10.1.2.2"));
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
