//! Checkpoint and restore of containers.
//!
//! A checkpoint, by steps:
//! 1. [`capture`]: everything that can refuse is asked first (the container runs, there is [`room`],
//!    the archive's directory can be written, the image is there), nothing is frozen yet;
//! 2. the engine freezes the tree; [`streams`] and the changes of the root file system are taken at
//!    the same instant;
//! 3. the engine writes its images into `checkpoint.new`, beside the container;
//! 4. a container that stops: the archive is written, the images get their place, the database says
//!    so, and only then the engine kills. One that goes on: it goes on, then the archive is written.
//!
//! A restore from an archive, by steps:
//! 1. [`import`]: a new container is made from the archive's config, the archive is unpacked and
//!    every digest compared, host facts are compared, the root file system is brought up to date;
//! 2. a shim is started that makes mounts, network and control groups as for a start, and
//! 3. [`restore`]: lets the engine build the tree as its own children.
//!
//! An image that is a checkpoint ([`as_image`]) has the archive as its layer, and is restored from it.
//!
//! A restore without a file begins at 2 with the images kept with the container.

pub(crate) mod archive;
mod as_image;
pub(crate) mod capture;
pub(crate) mod dry_run;
mod durable;
pub mod foreign;
mod image;
pub(crate) mod import;
pub mod policy;
pub(crate) mod restore;
pub(crate) mod room;
mod source;
mod store;
pub mod streams;
pub(crate) mod volumes;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arctern_engine::options::{CaptureReport, ExternalUnix, RestoreReport, TcpPolicy};
use arctern_image::archive::Compression;
use arctern_image::seal::{Seal, Unseal};

pub use source::Spooled;
pub use store::{Kept, Retention};

use crate::cancel::Cancel;
use crate::config::PortMapping;
use crate::error::Error;
use crate::host::Host;
use crate::paths::ContainerPaths;
use crate::state::Record;

/// Directory of CRIU's images in an archive.
const IMAGES: &str = "checkpoint";

/// Small members of an archive, as Podman names them.
const CONFIG: &str = "config.dump";
const SPEC: &str = "spec.dump";
const NETWORK: &str = "network.status";
const LOG: &str = "ctr.log";
const STATS: &str = "stats-dump";

/// Directory of the volumes' archives.
const VOLUMES: &str = "volumes";
/// Where the archive is being written to, beside the container.
const TARGET: &str = "target";

/// The container's image, in the archive with `--with-image`.
const IMAGE: &str = "image.tar";

/// Key of the network namespace among the things that stay outside the images; runc's name for it.
const NETNS_KEY: &str = "extRootNetNS";

/// What covers the files that a container may not see; runc's name for it.
const MASK: &str = "/dev/null";

/// How a checkpoint is made.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// Archive to write; None keeps the checkpoint with the container only.
    pub file: Option<PathBuf>,
    /// Where an archive goes as it is made, in place of a file: a pipe.
    pub stream: Option<Arc<File>>,
    /// Compression of the archive; None goes by the file's name, of a stream it is zstd.
    pub compression: Option<Compression>,
    /// Who signs the archive, and who can read it.
    pub seal: Seal,
    /// Let the container go on.
    pub leave_running: bool,
    /// Leave the root file system's changes out.
    pub ignore_rootfs: bool,
    /// Leave the contents of volumes out.
    pub ignore_volumes: bool,
    /// Volumes whose contents are left out.
    pub skip_volumes: Vec<String>,
    /// Put the image into the archive.
    pub with_image: bool,
    /// Keep the images beside a container that goes on.
    pub keep: bool,
    /// File locks too.
    pub file_locks: bool,
    /// What is done about live TCP connections.
    pub tcp: TcpPolicy,
    /// Connections that nobody has accepted yet, and those that the program has closed and that still
    /// send, are dropped instead of refused.
    pub skip_in_flight: bool,
    /// What is done about unix sockets that are connected to programs outside of the container.
    pub external_unix: ExternalUnix,
    /// How long the network stays locked for connections of a container that was stopped; None: until
    /// it is restored or removed.
    pub lock_limit: Option<Duration>,
    /// Ends it; the container goes on.
    pub cancel: Cancel,
}

impl CheckpointOptions {
    /// There is an archive, which leaves the container's directory.
    pub(crate) fn has_archive(&self) -> bool {
        self.file.is_some() || self.stream.is_some()
    }
}

/// A checkpoint that was made.
#[derive(Clone, Debug)]
pub struct Checkpointed {
    /// Of which container.
    pub record: Record,
    /// What the engine did.
    pub report: CaptureReport,
    /// The whole operation in microseconds.
    pub total_us: u64,
    /// Size in bytes: of the archive if there is one, else of the images.
    pub size: u64,
}

/// How a restore is made.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// New name, which also means a new id.
    pub name: Option<String>,
    /// Published ports in place of the container's.
    pub publish: Vec<PortMapping>,
    /// Leave the root file system's changes out.
    pub ignore_rootfs: bool,
    /// Leave the contents of volumes out: those that are there are used as they are, others are empty.
    pub ignore_volumes: bool,
    /// Volumes that come from elsewhere.
    pub skip_volumes: Vec<String>,
    /// A new address in place of the one it had.
    pub ignore_static_ip: bool,
    /// A new hardware address in place of the one it had.
    pub ignore_static_mac: bool,
    /// Keep the images with the container afterwards.
    pub keep: bool,
    /// File locks too.
    pub file_locks: bool,
    /// What is done about live TCP connections.
    pub tcp: TcpPolicy,
    /// Ends it before anything runs.
    pub cancel: Cancel,
    /// What the archive may have beyond a container's defaults.
    pub allowed: policy::Allowed,
    /// What opens the archive, and who must have signed it.
    pub unseal: Unseal,
}

/// A container that was restored.
#[derive(Debug)]
pub struct Restored {
    /// Which one.
    pub record: Record,
    /// What the engine did.
    pub report: RestoreReport,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The whole operation in microseconds.
    pub total_us: u64,
}

impl ContainerPaths {
    /// Images that are being written.
    pub(crate) fn checkpoint_new(&self) -> PathBuf {
        self.dir.join("checkpoint.new")
    }

    /// What belongs to the instant of a checkpoint and goes only into its archive.
    pub(crate) fn capture_dir(&self) -> PathBuf {
        self.dir.join("capture")
    }

    /// Memory that comes ahead of a container, a directory each round. It goes into
    /// [`ContainerPaths::checkpoint`] when the rest is there.
    pub(crate) fn ahead_dir(&self) -> PathBuf {
        self.dir.join("ahead")
    }

    /// An archive that is being unpacked.
    pub(crate) fn import_dir(&self) -> PathBuf {
        self.dir.join("import")
    }
}

impl Host {
    /// Whether images of a checkpoint are kept with a container.
    pub(crate) fn has_checkpoint(&self, record: &Record) -> bool {
        let images = self.paths.container(record.id()).checkpoint();
        record.checkpointed_at.is_some()
            && images.join("inventory.img").is_file()
            && (record.boot == self.boot() || durable::is_complete(&images))
    }
}

/// Notes beside a container in which directory its archive is being written: where the file system
/// has no files without a name, a killed command leaves one there.
fn note_target(paths: &ContainerPaths, file: &Path) -> crate::Result<()> {
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir = fs::canonicalize(dir).map_err(Error::io("open the directory", dir))?;
    let note = paths.capture_dir().join(TARGET);
    fs::write(&note, dir.as_os_str().as_bytes()).map_err(Error::io("write", &note))
}

/// The directory in which the archive of a killed checkpoint was to be.
pub(crate) fn target_noted(paths: &ContainerPaths) -> Option<PathBuf> {
    let bytes = fs::read(paths.capture_dir().join(TARGET)).ok()?;
    Some(PathBuf::from(OsString::from_vec(bytes))).filter(|path| path.is_absolute())
}

/// Removes a directory with everything in it; absence is no error.
pub(crate) fn discard(dir: &Path) -> crate::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(crate::Error::io("remove", dir)(e))
        }
        _ => Ok(()),
    }
}
