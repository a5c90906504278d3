//! What is in a checkpoint, for people and scripts: an archive of ours or of Podman's, or a directory
//! of CRIU's images. It needs no privilege but to read the file, and nothing is unpacked.
//!
//! Nothing in the file is trusted: what is taken into memory is bounded, and what does not fit
//! together is an error that names the member, or left out where the rest can still be shown.

mod build;
mod compare;
mod read;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::archive::ArchiveError;
use crate::images::ImageError;
use crate::manifest::HostFacts;
use crate::seal::Unseal;

pub use compare::{Difference, ProcessDifference, compare};

/// A checkpoint cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file operation.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No images in it.
    #[error("{0} holds no checkpoint: there is no inventory.img in it")]
    NoCheckpoint(PathBuf),
    /// More than is taken into memory.
    #[error("{name} has {size} bytes: that much of it, or of all, is not shown")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A pages file ends before its pagemap does.
    #[error("{name} has fewer pages than its pagemap lists")]
    Short {
        /// The file.
        name: String,
    },
    /// More pages than are compared.
    #[error("there are more than {0} pages, which is the most that is compared")]
    TooManyPages(u64),
}

impl SummaryError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SummaryError {
        let path = path.to_owned();
        move |source| SummaryError::Io { action, path, source }
    }
}

/// What is in a checkpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// `none`, `gzip` or `zstd` for an archive; None for a directory.
    pub compression: Option<String>,
    /// The program that made it, as far as it says so.
    pub written_by: String,
    /// When, in seconds since 1970-01-01 UTC.
    pub created: Option<u64>,
    /// Fingerprint of the key whose signature fits the manifest; who has that key it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// The container, if it is one.
    pub container: Option<Container>,
    /// The machine, if the archive says so.
    pub host: Option<HostFacts>,
    /// Host name in the container.
    pub hostname: Option<String>,
    /// Processes, parents before their children.
    pub processes: Vec<Process>,
    /// Network connections and listeners of all processes, each once.
    pub connections: Vec<Connection>,
    /// Mounts of the root task.
    pub mounts: Vec<Mount>,
    /// Files with their sizes in bytes, in the order of the archive.
    pub members: Vec<Member>,
    /// What could not be made out.
    pub problems: Vec<String>,
}

/// The container in a checkpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, by name.
    pub image: String,
    /// Its image, by id.
    pub image_id: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Addresses, by network.
    pub addresses: BTreeMap<String, Vec<String>>,
    /// Named volumes.
    pub volumes: Vec<String>,
    /// What was asked of it, as the program that made the checkpoint writes it.
    pub config: serde_json::Value,
}

/// A process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    /// Its pid in its pid namespace.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// Process group.
    pub pgid: u32,
    /// Session.
    pub sid: u32,
    /// How deep it is in the tree; 0 for the root task.
    pub depth: usize,
    /// Its name, as `ps` shows it.
    pub comm: String,
    /// Its command line; empty if it is not in the images.
    pub command: Vec<String>,
    /// `running`, `stopped`, `dead`.
    pub state: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Its program.
    pub program: Option<String>,
    /// Its memory.
    pub memory: Memory,
    /// Its open descriptors.
    pub descriptors: Vec<Descriptor>,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All mappings.
    pub mapped: u64,
    /// Contents of private anonymous memory that are stored.
    pub anonymous: u64,
    /// Changed pages of private file mappings that are stored.
    pub file: u64,
    /// Shared mappings.
    pub shared: u64,
    /// Private anonymous memory that was never touched, or is zero.
    pub zero: u64,
    /// In an earlier dump that this one stands on.
    pub in_parent: u64,
}

/// An open descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// Kind of the file.
    pub kind: String,
    /// What it is, for people: a path, two addresses.
    pub about: String,
}

/// A socket of the internet protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Connection {
    /// `tcp`, `udp`, `udplite`, or the number.
    pub protocol: String,
    /// `listen`, `established`, ….
    pub state: String,
    /// Its own address.
    pub local: String,
    /// Its peer's; empty if it has none.
    pub remote: String,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// Kind of file system.
    pub kind: String,
    /// Key under which the caller keeps it; None if it is in the images.
    pub external: Option<String>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its size in bytes, unpacked.
    pub size: u64,
}

/// Looks into the stream of an archive.
///
/// # Errors
/// [`SummaryError`].
pub fn summarise_stream(source: impl io::Read) -> Result<Summary, SummaryError> {
    build::build(&read::read_stream(source, Path::new("the archive"), read::Pages::Commands)?)
}

/// Looks into an archive, or a directory of images.
///
/// # Errors
/// [`SummaryError`].
pub fn summarise(path: &Path) -> Result<Summary, SummaryError> {
    summarise_sealed(path, &Unseal::default())
}

/// As [`summarise`], of an archive that is encrypted, or must be signed: then all of it is compared with
/// its manifest and the signature first.
///
/// # Errors
/// [`SummaryError`].
pub fn summarise_sealed(path: &Path, unseal: &Unseal) -> Result<Summary, SummaryError> {
    build::build(&read::read(path, read::Pages::Commands, unseal)?)
}
