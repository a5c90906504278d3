//! Putting captured changes into a mounted root.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::DELETED_RECORD;
use crate::beneath::{self, UnsafePath};
use crate::tarstream::TarStream;
use crate::unpack::{Devices, UnpackError, Unpacked, Unpacker, Whiteouts};

/// Changes that could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The root directory could not be opened.
    #[error("cannot open the root file system {path}")]
    Root {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A member of the archive.
    #[error("cannot restore the root file system's changes")]
    Unpack(#[from] UnpackError),
    /// The list of deleted files is no JSON array of paths.
    #[error("deleted.files is damaged")]
    List(#[from] serde_json::Error),
    /// A deleted path could lead out of the root.
    #[error("deleted path {path:?} is refused: {reason}")]
    UnsafePath {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: UnsafePath,
    },
    /// A path could not be deleted.
    #[error("cannot delete {path} from the root file system")]
    Delete {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Applies changes below `root`, usually a mounted overlay: the archive, if there is one, then the
/// deletions. Other devices than `devices` are refused. On failure what was applied stays: the root is thrown away then.
///
/// # Errors
/// [`ApplyError`].
pub fn apply(
    diff: Option<&mut dyn Read>,
    deleted: &[String],
    root: &Path,
    devices: Devices,
) -> Result<Unpacked, ApplyError> {
    let opened = |source| ApplyError::Root { path: root.to_owned(), source };
    let mut unpacker =
        Unpacker::new(root, Whiteouts::Literal).map_err(opened)?.with_devices(devices);
    let mut deletions: Vec<PathBuf> = deleted.iter().map(PathBuf::from).collect();
    if let Some(diff) = diff {
        let mut archive = TarStream::new(diff);
        unpacker.unpack(&mut archive)?;
        let records = archive.global_records().iter();
        let ours = records.filter(|(key, _)| key.starts_with(DELETED_RECORD));
        deletions.extend(ours.map(|(_, path)| PathBuf::from(OsStr::from_bytes(path))));
    }
    for path in deletions {
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let clean = beneath::clean(relative)
            .map_err(|reason| ApplyError::UnsafePath { path: path.clone(), reason })?;
        if clean.as_os_str().is_empty() {
            continue;
        }
        unpacker.remove(&clean).map_err(|source| ApplyError::Delete { path, source })?;
    }
    Ok(unpacker.finish()?)
}
