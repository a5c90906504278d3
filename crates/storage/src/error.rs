//! What goes wrong in the store.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// What went wrong in the store. Display names the file; [`StoreError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of the store does not hold what it should.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The store was written by a newer version.
    #[error("{path} has format {found}; this version reads up to {known}")]
    NewerFormat {
        /// The file that carries the version.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// No image has this name or id.
    #[error("no image {0:?} in {1}")]
    NoSuchImage(String, PathBuf),
    /// An id prefix fits several images.
    #[error("image id prefix {prefix:?} fits {} images: {}", ids.len(), ids.join(", "))]
    AmbiguousImage {
        /// What was asked for.
        prefix: String,
        /// The ids it fits.
        ids: Vec<String>,
    },
    /// The image cannot be removed while containers are made from it.
    #[error("image {image} is used by {} container(s): {}", users.len(), users.join(", "))]
    ImageInUse {
        /// Image id.
        image: String,
        /// Container ids.
        users: Vec<String>,
    },
    /// Removing the image by id would take several names with it.
    #[error("image {image} has several names: {}", names.join(", "))]
    SeveralNames {
        /// Image id.
        image: String,
        /// Its names.
        names: Vec<String>,
    },
    /// A name is no valid image reference.
    #[error("{name:?} is no valid image name: {reason}")]
    BadName {
        /// The name given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A container or volume id has characters that cannot be in a file name.
    #[error("{0:?} is no valid id: letters, digits, `_`, `.` and `-` are allowed")]
    BadId(String),
    /// A `--change` instruction was not understood.
    #[error("change {instruction:?}: {reason}")]
    BadChange {
        /// The instruction as given.
        instruction: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive to import could not be read or written out.
    #[error("cannot unpack the image")]
    Unpack(#[from] crate::unpack::UnpackError),
    /// The archive to import is compressed in a way we do not read.
    #[error("the archive is compressed with {0}, which is not supported")]
    UnknownCompression(&'static str),
    /// The archive could not be read.
    #[error("cannot read the archive")]
    ReadArchive(#[source] io::Error),
    /// The archive to load is no image archive of ours.
    #[error("the archive holds no image: {0}")]
    NotAnImage(&'static str),
    /// A registry, or its configuration.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
    /// The image is a checkpoint, which is restored and not run.
    #[error("image {0} is a checkpoint")]
    IsCheckpoint(String),
    /// The image is no checkpoint.
    #[error("image {0} is no checkpoint")]
    NoCheckpoint(String),
    /// Something in an archive is not what its name promises.
    #[error("{what} has the digest {found}: the archive is damaged or forged")]
    DigestMismatch {
        /// What was to have the digest that it is named by.
        what: String,
        /// The digest that it has.
        found: String,
    },
    /// A tree could not be copied.
    #[error("cannot copy {from} to {to}")]
    Copy {
        /// What was to be copied.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<crate::tree::TreeError>,
    },
    /// No container root of this id.
    #[error("no root file system of container {0}")]
    NoSuchRoot(String),
    /// A container root of this id is already there.
    #[error("container {0} already has a root file system")]
    RootExists(String),
    /// No volume of this name.
    #[error("no volume {0:?}")]
    NoSuchVolume(String),
    /// A volume of this name is already there.
    #[error("volume {0:?} already exists")]
    VolumeExists(String),
    /// Overlayfs could not be mounted.
    #[error("cannot mount the root file system of container {id} on {path}")]
    Mount {
        /// Container id.
        id: String,
        /// Where it should have been mounted.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A mounted root file system could not be unmounted.
    #[error("cannot unmount {path} of container {id}")]
    Unmount {
        /// Container id.
        id: String,
        /// Where it is mounted.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An error with all its causes, in one line; a cause that only repeats its parent is left out.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = cause.source();
    }
    text
}

impl StoreError {
    /// The message with all causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            StoreError::NoSuchImage(name, _) => Some(format!(
                "`arctern pull {name}` gets it from a registry, `arctern load` and `arctern import` \
                 from a file; `arctern images` lists those that are there"
            )),
            StoreError::AmbiguousImage { .. } => Some("give more digits of the id".into()),
            StoreError::ImageInUse { .. } => {
                Some("remove the containers first (`arctern rm`), or use `rmi --force`".into())
            }
            StoreError::SeveralNames { .. } => {
                Some("name one of them to remove that name, or use `rmi --force`".into())
            }
            StoreError::UnknownCompression(_) => {
                Some("decompress it first, or use gzip or zstd".into())
            }
            StoreError::NewerFormat { .. } => Some("use a newer arctern".into()),
            StoreError::Mount { source, .. }
                if source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
            {
                Some("this kernel has no overlayfs: `modprobe overlay`".into())
            }
            StoreError::Mount { source, .. }
                if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
            {
                Some(
                    "the file system of the store cannot carry an overlay (network file systems and \
                     overlays themselves cannot): put it elsewhere with --root"
                        .into(),
                )
            }
            StoreError::DigestMismatch { .. } => Some("get the archive anew".into()),
            StoreError::Registry(error) => error.hint(),
            StoreError::IsCheckpoint(name) => {
                Some(format!("`arctern container restore {name}` lets it go on"))
            }
            _ => None,
        }
    }
}
