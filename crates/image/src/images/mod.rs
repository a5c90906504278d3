//! CRIU image files: a few magic words, then length-prefixed protobuf records, some of which are
//! followed by raw bytes.
//!
//! All integers are little-endian. A file of format V1.1 (the one written here) begins with a head
//! word and a type word, `inventory.img` and files of V1 with the type word alone; raw files have
//! neither. A missing file is an empty list. The table of files is [`ImageKind`].
//!
//! Nothing in a file is trusted: every length is compared with what is left of the file before
//! memory is taken for it, and files are opened below one directory without following links.

mod dir;
mod error;
mod ghost;
mod kind;
mod record;

pub use dir::{ImageDir, PARENT_LINK};
pub use error::{ImageError, ImageErrorKind};
pub use ghost::{GHOST_INLINE_BELOW, GhostReader, write_ghost};
pub use kind::{Head, ImageKind};
pub use record::{MAX_DECODED, MAX_RECORD, RecordReader, RecordWriter};
