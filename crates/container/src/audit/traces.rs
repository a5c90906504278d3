//! Where a container leaves traces: directories, mounts, processes, control groups, networks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::paths::Paths;
use crate::process::ProcessId;

/// What the kernel has of this host's containers, read once.
pub(super) struct Kernel {
    /// Shims, by container.
    pub shims: BTreeMap<String, Vec<ProcessId>>,
    /// Keepers of locks, by container.
    pub keepers: BTreeMap<String, Vec<ProcessId>>,
    pub groups: Hierarchies,
}

impl Kernel {
    pub fn read(paths: &Paths) -> Result<Kernel> {
        let mut kernel = Kernel {
            shims: BTreeMap::new(),
            keepers: BTreeMap::new(),
            groups: Hierarchies::of(paths)?,
        };
        let entries = fs::read_dir("/proc").map_err(Error::io("list", "/proc"))?.flatten();
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let Some((keeper, id)) = helper(&line, paths) else { continue };
            let Some(process) = ProcessId::of(pid) else { continue };
            let list = if keeper { &mut kernel.keepers } else { &mut kernel.shims };
            list.entry(id).or_default().push(process);
        }
        Ok(kernel)
    }
}

/// Whether a command line is that of a shim (false) or a keeper (true) of this host, and of which
/// container.
fn helper(line: &[u8], paths: &Paths) -> Option<(bool, String)> {
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let of_this_host = |root: &[u8], runroot: &[u8]| {
        root == paths.root.as_os_str().as_bytes() && runroot == paths.runroot.as_os_str().as_bytes()
    };
    let (keeper, id) = match arguments.as_slice() {
        [b"arctern-shim", b"--root", root, b"--runroot", run, b"internal", b"shim", _, id, ..]
            if of_this_host(root, run) =>
        {
            (false, id)
        }
        [b"arctern-keeper", b"--root", root, b"--runroot", run, b"internal", b"keeper", id, ..]
            if of_this_host(root, run) =>
        {
            (true, id)
        }
        _ => return None,
    };
    Some((keeper, String::from_utf8_lossy(id).into_owned()))
}

/// Every id that is somewhere outside of the database.
pub(super) fn ids(paths: &Paths, kernel: &Kernel) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    let storage = paths.storage();
    for dir in [
        paths.root.join("containers"),
        paths.runroot.join("containers"),
        storage.join("containers"),
        paths.runroot.join("storage/mounts"),
        paths.oci(),
        paths.netns_dir(),
    ] {
        match fs::read_dir(&dir) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(Error::io("list", &dir))?.file_name();
                    ids.insert(name.to_string_lossy().into_owned());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("list", &dir)(e)),
        }
    }
    ids.extend(kernel.groups.ids());
    ids.extend(kernel.shims.keys().chain(kernel.keepers.keys()).cloned());
    for network in crate::network::all(paths)? {
        ids.extend(network.leases().map_err(Error::network)?.into_keys());
    }
    // What is none of ours has other names.
    ids.retain(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    Ok(ids)
}

/// What there is of one container.
pub(super) struct Traces {
    pub directory: bool,
    pub run: bool,
    /// Its root file system in the store.
    pub root: bool,
    /// Where that is mounted, if it is, or is to be.
    pub mount: Option<PathBuf>,
    pub oci: bool,
    pub netns: bool,
    /// Its control groups.
    pub groups: Vec<PathBuf>,
    /// Processes in them.
    pub pids: Vec<i32>,
    /// Networks on which it has an address.
    pub leases: Vec<String>,
    /// Control socket.
    pub socket: bool,
    pub shims: Vec<ProcessId>,
    pub keepers: Vec<ProcessId>,
}

impl Traces {
    pub fn of(host: &Host, id: &str, kernel: &Kernel) -> Result<Traces> {
        let paths = host.paths.container(id);
        let mount = host.paths.runroot.join("storage/mounts").join(id);
        let mut leases = Vec::new();
        for network in crate::network::all(&host.paths)? {
            if network.leases().map_err(Error::network)?.contains_key(id) {
                leases.push(network.name().to_owned());
            }
        }
        let running = |list: &BTreeMap<String, Vec<ProcessId>>| -> Vec<ProcessId> {
            list.get(id).into_iter().flatten().copied().filter(ProcessId::is_alive).collect()
        };
        let groups = kernel.groups.groups(id);
        Ok(Traces {
            directory: paths.dir.is_dir(),
            run: paths.run.is_dir(),
            root: host.paths.storage().join("containers").join(id).is_dir(),
            mount: is_there(&mount).then_some(mount),
            oci: host.paths.oci().join(id).is_dir(),
            netns: is_there(&paths.netns),
            groups: groups.into_iter().filter(|group| group.is_dir()).collect(),
            pids: kernel.groups.pids(id),
            leases,
            socket: is_there(&paths.run.join("ctl")),
            shims: running(&kernel.shims),
            keepers: running(&kernel.keepers),
        })
    }

    /// What the kernel has, in words: of a container that does not run it should have nothing.
    pub fn in_kernel(&self) -> Vec<String> {
        let mut list = Vec::new();
        if !self.pids.is_empty() {
            let pids: Vec<String> = self.pids.iter().map(i32::to_string).collect();
            list.push(format!("processes {}", pids.join(", ")));
        }
        if let Some(group) = self.groups.first() {
            list.push(format!("control group {}", group.display()));
        }
        if let Some(mount) = &self.mount {
            list.push(format!("mount {}", mount.display()));
        }
        if self.netns {
            list.push("a network namespace".to_owned());
        }
        list.extend(self.leases.iter().map(|name| format!("an address on network {name}")));
        if self.oci {
            list.push("state of the OCI library".to_owned());
        }
        if self.socket {
            list.push("a control socket".to_owned());
        }
        list
    }

    /// Directories, in words.
    pub fn on_disk(&self) -> Vec<String> {
        let names = [
            (self.directory, "a directory"),
            (self.run, "a run directory"),
            (self.root, "a root file system"),
        ];
        names.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_owned()).collect()
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_helpers_of_this_host_are_seen() {
        let paths = Paths { root: "/r".into(), runroot: "/run/r".into() };
        let line = |text: &str| text.replace(' ', "\0").into_bytes();
        let shim = line("arctern-shim --root /r --runroot /run/r internal shim start abc ");
        assert_eq!(helper(&shim, &paths), Some((false, "abc".to_owned())));
        let keeper = line("arctern-keeper --root /r --runroot /run/r internal keeper abc ");
        assert_eq!(helper(&keeper, &paths), Some((true, "abc".to_owned())));
        let other = line("arctern-shim --root /other --runroot /run/r internal shim start abc ");
        assert_eq!(helper(&other, &paths), None);
        assert_eq!(helper(b"sh\0-c\0arctern-shim\0", &paths), None);
    }
}
