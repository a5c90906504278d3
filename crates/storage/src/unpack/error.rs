//! What can be wrong with a member.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::beneath::UnsafePath;

/// What a failed [`Unpacker::entry`] was about.
#[derive(Debug, thiserror::Error)]
#[error("archive member {member:?}")]
pub struct UnpackError {
    /// The member's path as it is in the archive.
    pub member: PathBuf,
    /// What went wrong with it.
    #[source]
    pub kind: UnpackErrorKind,
}

/// What went wrong with an archive member.
#[derive(Debug, thiserror::Error)]
pub enum UnpackErrorKind {
    /// The path, or the target of a hard link, could lead out of the directory.
    #[error("refused: {0}")]
    UnsafePath(UnsafePath),
    /// A parent of the path is a symbolic link.
    #[error("refused: the path passes through a symbolic link")]
    ThroughSymlink,
    /// The member is of a type that does not belong into a file system.
    #[error("member type {0:?} is not known")]
    UnknownType(u8),
    /// A device that does not belong there.
    #[error("refused: it is a {kind} device with number {major}:{minor}")]
    Device {
        /// `block` or `character`.
        kind: &'static str,
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// More than there is room for.
    #[error("no space: it has {size} bytes, {free} are free")]
    NoSpace {
        /// Its size.
        size: u64,
        /// What was free at the beginning, less what was written.
        free: u64,
    },
    /// A header field is out of its range.
    #[error("header field {field} is out of range")]
    BadField {
        /// Name of the field.
        field: &'static str,
    },
    /// The archive could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The kernel refused an operation.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

pub(super) fn doing(action: &'static str) -> impl Fn(Errno) -> UnpackErrorKind {
    move |errno| UnpackErrorKind::Io { action, source: errno.into() }
}

pub(super) fn resolving(source: io::Error) -> UnpackErrorKind {
    let code = source.raw_os_error();
    if code == Some(Errno::LOOP.raw_os_error()) {
        return UnpackErrorKind::ThroughSymlink;
    }
    UnpackErrorKind::Io { action: "resolve the path", source }
}
