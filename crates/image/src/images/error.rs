//! What can be wrong with an image file.

use std::io;
use std::path::{Path, PathBuf};

/// An image file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("image {}", file.display())]
pub struct ImageError {
    /// The file, or the directory if it was the directory.
    pub file: PathBuf,
    /// What is wrong with it.
    #[source]
    pub kind: ImageErrorKind,
}

/// The ways in which an image file can be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageErrorKind {
    /// The kernel said no.
    #[error("cannot {action}")]
    Io {
        /// What was being done, as an infinitive.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The file is not there and is needed.
    #[error("the file is missing")]
    Missing,
    /// The magic words belong to another kind of file.
    #[error(
        "the file begins with {found:#010x}, not with {expected:#010x}: it is not a file of this kind"
    )]
    Magic {
        /// The word that was read.
        found: u32,
        /// The type word of the expected kind.
        expected: u32,
    },
    /// The file ends in the middle of a record or of its payload.
    #[error("truncated: {what} needs {needed} bytes and {left} are left")]
    Truncated {
        /// What was cut off.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that the file still has.
        left: u64,
    },
    /// A record is larger than any that CRIU or Arctern writes.
    #[error("a record of {size} bytes is over the limit of {limit}")]
    RecordTooLarge {
        /// The size that the file states.
        size: u64,
        /// The largest accepted size.
        limit: u64,
    },
    /// The file holds more records than can be held in memory.
    #[error("more than {limit} records")]
    TooManyRecords {
        /// The largest accepted count.
        limit: u64,
    },
    /// A record is not the protobuf message that belongs here.
    #[error("a record cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    /// A file of one record has none.
    #[error("the file holds no record")]
    Empty,
    /// The pages file is shorter than its pagemap says.
    #[error("the pagemap needs {needed} bytes of pages and the file has {size}")]
    PagesMissing {
        /// Bytes that the pagemap needs.
        needed: u64,
        /// Bytes that the file has.
        size: u64,
    },
    /// A page's bytes are in no dump of the chain.
    #[error(
        "the page at {vaddr:#x} is neither stored here nor in a parent dump: the dump is incomplete, \
         or its pages are with a page server"
    )]
    NotStored {
        /// Address of the page.
        vaddr: u64,
    },
    /// Pages are in the parent dump and there is no link to it.
    #[error("pages are in the parent dump, and the directory has no `parent` link")]
    NoParent,
    /// The chain of parents does not end.
    #[error("the chain of parent dumps is longer than {limit}: the `parent` links form a loop")]
    ChainTooLong {
        /// The longest accepted chain.
        limit: usize,
    },
    /// A field has a value that cannot be.
    #[error("{field} is {value}: {reason}")]
    Invalid {
        /// The field, with CRIU's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why that cannot be.
        reason: &'static str,
    },
}

impl ImageErrorKind {
    /// Adds the file that it is about.
    pub fn at(self, file: impl AsRef<Path>) -> ImageError {
        ImageError { file: file.as_ref().to_owned(), kind: self }
    }

    /// An [`ImageErrorKind::Io`].
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { action, error }
    }
}
