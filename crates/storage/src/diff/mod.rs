//! The changes of a container's root file system: what is in overlayfs's upper directory.
//!
//! [`capture`] writes Podman's two files. `rootfs-diff.tar` has what was added or changed, with
//! everything a tar can say about a file. `deleted.files` is a JSON array of absolute paths: the
//! whiteouts (0/0 character devices), and for directories that hide the lower ones (opaque) each
//! entry hidden. Neither file is written when it would be empty. Paths that are not UTF-8 cannot be
//! in JSON: deleted ones travel in a pax global record of the tar, which others skip.
//!
//! It runs while the container is frozen, so it does nothing twice: one walk over the upper
//! directory, no look at the layers except where a directory is opaque.
//!
//! [`apply`] puts such changes into a mounted root, below which it stays whatever the archive says:
//! files first, then deletions, then the times of directories.
//!
//! Not captured: sockets (a restored program binds anew), overlayfs's own attributes, what is below
//! the excluded paths (mount points that the container engine itself made).

use std::path::{Path, PathBuf};

use crate::pack::Packed;

mod apply;
mod capture;
mod list;

pub use apply::{ApplyError, apply};
pub(crate) use capture::pack;
pub use capture::{CaptureError, Early, capture};
pub use list::{ChangeKind, list};

/// Name of the archive of added and changed files.
pub const DIFF_FILE: &str = "rootfs-diff.tar";
/// Name of the list of deleted files.
pub const DELETED_FILE: &str = "deleted.files";
/// Key of the global record with one deleted path that is not UTF-8.
const DELETED_RECORD: &str = "ARCTERN.deleted";

/// Paths of a container that its engine sets up, and which are no changes of its own.
pub const DEFAULT_EXCLUDES: [&str; 8] = [
    "/dev",
    "/proc",
    "/sys",
    "/run/.containerenv",
    "/run/secrets",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];

/// Where the changes are.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Overlayfs's upper directory. Its overlay may be mounted.
    pub upper: &'a Path,
    /// The layers below, the topmost first.
    pub lowers: &'a [PathBuf],
    /// Absolute paths of the container that are left out, with all below them.
    pub excludes: &'a [PathBuf],
}

/// What was captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Members of the archive and bytes of their contents.
    pub packed: Packed,
    /// How many paths were deleted.
    pub deleted: usize,
    /// Sockets, which were left out.
    pub sockets: Vec<PathBuf>,
    /// Whether there is a `rootfs-diff.tar`.
    pub has_diff: bool,
    /// Whether there is a `deleted.files`.
    pub has_deleted: bool,
}

/// Reads `deleted.files`.
///
/// # Errors
/// Those of JSON.
pub fn parse_deleted(json: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    // Go writes an empty list as null.
    Ok(serde_json::from_slice::<Option<Vec<String>>>(json)?.unwrap_or_default())
}
