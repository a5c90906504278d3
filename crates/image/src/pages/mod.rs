//! The page store: which pages of a task or shared object are stored, and where.
//!
//! `pagemap-%u.img` lists runs of pages in ascending order; `pages-%u.img`, named by the pages id in
//! the pagemap's head, holds the bytes of those runs that are marked present, one after another at
//! multiples of [`PAGE_SIZE`]. A run's place is therefore the sum of the lengths of the stored runs
//! before it, and page files can be read in parallel, mapped, and shared in the page cache.
//!
//! A run marked as the parent's has its bytes in the dump that the image directory's `parent` link
//! leads to, under the same pagemap name, and so on down the chain; runs of two dumps need not line
//! up. Pages that no run covers are not stored: zero in anonymous memory, the file's own elsewhere.

mod reader;
mod run;
mod writer;

pub use reader::{Extent, MAX_CHAIN, PagemapReader, resolve};
pub use run::{PAGE_SIZE, PageFlags, Run, read_runs};
pub use writer::{PagemapWriter, PagesIds};
