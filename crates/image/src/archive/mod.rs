//! Checkpoint archives: one tar stream, compressed or not, in Podman's layout, with a manifest at the
//! end.
//!
//! An archive is written in one pass with constant memory: every member's size is known before it is
//! written, its digest after. It appears under its name only when it is complete and on disk. It is
//! read in one pass too; each byte is decompressed, hashed and written once.
//!
//! An archive may come from anywhere, so reading trusts nothing: names stay below the destination,
//! links (but one), devices and sparse files are refused, and every size is checked against a limit
//! before memory or disk is used for it.

mod compression;
mod error;
mod extract;
mod ledger;
mod members;
mod name;
mod peek;
mod target;
mod writer;

pub use compression::Compression;
pub use error::ArchiveError;
pub use extract::{Extracted, Provenance, extract};
pub use ledger::verify;
pub use members::{Entry, EntryKind, Limits, Members, open_members};
pub use name::{LINK_NAME, LINK_TARGET};
pub use peek::{list, peek, peek_within};
pub use target::{Target, sweep};
pub use writer::{ArchiveSummary, ArchiveWriter};

/// Bytes moved at a time.
const STEP: usize = 256 << 10;
