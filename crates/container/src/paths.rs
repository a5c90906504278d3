//! Where everything of one installation lives on disk.
//!
//! `--root` survives a reboot, `--runroot` does not. Two pairs of them on one machine are two
//! separate hosts: nothing below is shared between pairs.
//!
//! ```text
//! ROOT/arctern.db                    containers and their state (SQLite)
//! ROOT/containers.lock               taken while a container's directories and row come or go
//! ROOT/storage/                      images, layers and root file systems (arctern-storage)
//! ROOT/containers/ID/bundle/         config.json: the OCI runtime spec last used
//! ROOT/containers/ID/ctr.log         output of the container
//! ROOT/containers/ID/etc/            hosts, hostname, resolv.conf, bound into the container
//! ROOT/containers/ID/checkpoint/     images of the checkpoint that belongs to the container
//! ROOT/containers/ID/ahead/          memory of a container that is about to arrive, a round each
//! ROOT/containers/ID/shim.log        diagnostics of the shim
//! ROOT/containers/ID/lock            taken by the command that changes the container
//! ROOT/containers/ID/stopped         there while a command has stopped it: no policy starts it
//! ROOT/containers/ID/moved           there when it runs on another host: no boot starts it
//! RUNROOT/containers/ID/health.json  what the checks of its health found
//! RUNROOT/containers/ID/restarts     how often its restart policy started it
//! RUNROOT/containers/ID/kept         `restart` is at work: `--rm` does not remove it now
//! RUNROOT/containers/ID/ctl          control socket of the shim
//! RUNROOT/containers/ID/exit         how the container ended, until the database has it
//! RUNROOT/oci/ID/                    libcontainer's own state
//! RUNROOT/netns/ID                   the container's network namespace
//! ```

use std::path::{Path, PathBuf};

/// The two directories that make one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// State that survives a reboot (`/var/lib/arctern`).
    pub root: PathBuf,
    /// State of the running system (`/run/arctern`).
    pub runroot: PathBuf,
}

impl Paths {
    /// Both directories, made absolute so that a shim in another directory finds them.
    pub fn new(root: &Path, runroot: &Path) -> std::io::Result<Paths> {
        Ok(Paths { root: std::path::absolute(root)?, runroot: std::path::absolute(runroot)? })
    }

    /// A short, stable name for a host that is not the usual one of this machine: what the kernel
    /// knows by name for all hosts (bridges, control groups) must not meet.
    #[must_use]
    pub fn tag(&self) -> Option<String> {
        let root = self.root.as_os_str();
        (root != DEFAULT_ROOT).then(|| format!("{:08x}", fnv1a(root.as_encoded_bytes())))
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("arctern.db")
    }

    /// Lock of coming and going: see [`crate::Host`].
    #[must_use]
    pub(crate) fn births(&self) -> PathBuf {
        self.root.join("containers.lock")
    }

    /// Images, layers and root file systems.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.root.join("storage")
    }

    /// Directory of libcontainer's states.
    #[must_use]
    pub fn oci(&self) -> PathBuf {
        self.runroot.join("oci")
    }

    /// Directory of network namespaces.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.runroot.join("netns")
    }

    /// The paths of one container.
    #[must_use]
    pub fn container(&self, id: &str) -> ContainerPaths {
        ContainerPaths {
            dir: self.root.join("containers").join(id),
            run: self.runroot.join("containers").join(id),
            netns: self.netns_dir().join(id),
        }
    }
}

/// The root of the usual host.
const DEFAULT_ROOT: &str = "/var/lib/arctern";

/// A hash that stays the same (FNV-1a).
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Paths of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPaths {
    /// What survives a reboot.
    pub dir: PathBuf,
    /// What does not.
    pub run: PathBuf,
    /// The network namespace, when the container has its own.
    pub netns: PathBuf,
}

impl ContainerPaths {
    /// OCI bundle directory.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// OCI runtime spec.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    /// Log of the container's output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("ctr.log")
    }

    /// Diagnostics of the shim.
    #[must_use]
    pub fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    /// Files that are bound over /etc of the container.
    #[must_use]
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// Images of the checkpoint kept with the container.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    /// Lock of the command that changes the container.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// There while the container was stopped by a command: its restart policy rests.
    #[must_use]
    pub fn stopped(&self) -> PathBuf {
        self.dir.join("stopped")
    }

    /// There when the container went to another host and stays here, stopped: no boot starts it.
    #[must_use]
    pub fn moved(&self) -> PathBuf {
        self.dir.join("moved")
    }

    /// How often the restart policy started it.
    #[must_use]
    pub fn restarts(&self) -> PathBuf {
        self.run.join("restarts")
    }

    /// There while a container that goes with its end is being stopped to be started again.
    #[must_use]
    pub fn kept(&self) -> PathBuf {
        self.run.join("kept")
    }

    /// What the checks of its health found.
    #[must_use]
    pub fn health(&self) -> PathBuf {
        self.run.join("health.json")
    }

    /// Exit record.
    #[must_use]
    pub fn exit(&self) -> PathBuf {
        self.run.join("exit")
    }
}
