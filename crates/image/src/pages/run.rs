//! Runs of pages as a pagemap lists them.

use std::io::Read;

use crate::images::{ImageError, ImageErrorKind, RecordReader};
use crate::messages::{PagemapEntry, PagemapHead};

/// Bytes in a page on x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// Where the bytes of a run are, and how they may be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFlags {
    /// `PE_PARENT`: in the parent dump.
    pub parent: bool,
    /// `PE_LAZY`: may be brought in when the page is touched.
    pub lazy: bool,
    /// `PE_PRESENT`: in the pages file.
    pub present: bool,
}

impl PageFlags {
    /// Stored, must be there before the task runs.
    pub const STORED: Self = Self { parent: false, lazy: false, present: true };
    /// Stored, may be brought in later: private anonymous memory.
    pub const STORED_LAZY: Self = Self { parent: false, lazy: true, present: true };
    /// Unchanged since the parent dump.
    pub const IN_PARENT: Self = Self { parent: true, lazy: false, present: false };

    const KNOWN: u32 = 7;

    /// CRIU's bits.
    pub fn bits(self) -> u32 {
        u32::from(self.parent) | u32::from(self.lazy) << 1 | u32::from(self.present) << 2
    }

    /// From CRIU's bits, None if there are unknown ones: they may change what the run means.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::KNOWN == 0).then_some(Self {
            parent: bits & 1 != 0,
            lazy: bits & 2 != 0,
            present: bits & 4 != 0,
        })
    }
}

/// A run of neighbouring pages with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page in the task, or its byte offset in a shared object.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// Where the bytes are.
    pub flags: PageFlags,
    /// For present runs: byte offset of the first page in the pages file.
    pub offset: u64,
}

impl Run {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.nr_pages * PAGE_SIZE
    }

    /// Always false; runs are not empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address after the last page.
    pub fn end(&self) -> u64 {
        self.vaddr + self.len()
    }

    /// Checks a run against the end of the one before; returns its own end.
    pub(super) fn check(vaddr: u64, nr_pages: u64, after: u64) -> Result<u64, ImageErrorKind> {
        let invalid = |field, value, reason| ImageErrorKind::Invalid { field, value, reason };
        if !vaddr.is_multiple_of(PAGE_SIZE) {
            return Err(invalid("pagemap_entry.vaddr", vaddr, "not a multiple of the page size"));
        }
        if vaddr < after {
            return Err(invalid(
                "pagemap_entry.vaddr",
                vaddr,
                "the run overlaps or precedes the one before",
            ));
        }
        if nr_pages == 0 {
            return Err(invalid("pagemap_entry.nr_pages", 0, "a run has at least one page"));
        }
        nr_pages.checked_mul(PAGE_SIZE).and_then(|length| vaddr.checked_add(length)).ok_or(invalid(
            "pagemap_entry.nr_pages",
            nr_pages,
            "the run leaves the address space",
        ))
    }
}

/// Reads a pagemap: the pages id, the runs in order, and the bytes of pages file that they need.
///
/// # Errors
/// The file is damaged; runs that overlap, descend, are empty, unaligned or leave the address space;
/// unknown flags.
pub fn read_runs<R: Read>(
    reader: &mut RecordReader<R>,
) -> Result<(u32, Vec<Run>, u64), ImageError> {
    let head: PagemapHead = reader.required()?;
    let entries: Vec<PagemapEntry> = reader.all()?;
    let mut runs = Vec::with_capacity(entries.len());
    let mut after = 0;
    let mut offset = 0u64;
    for entry in entries {
        let flags = match entry.flags {
            Some(bits) => PageFlags::from_bits(bits).ok_or_else(|| {
                reader.error(ImageErrorKind::Invalid {
                    field: "pagemap_entry.flags",
                    value: bits.into(),
                    reason: "unknown flags: the image was written by a newer version",
                })
            })?,
            // Before flags existed a run was stored unless it was the parent's.
            None if entry.in_parent() => PageFlags::IN_PARENT,
            None => PageFlags::STORED,
        };
        let nr_pages = entry.nr_pages.unwrap_or(entry.compat_nr_pages.into());
        after = Run::check(entry.vaddr, nr_pages, after).map_err(|kind| reader.error(kind))?;
        let run = Run { vaddr: entry.vaddr, nr_pages, flags, offset };
        if flags.present {
            // The runs do not overlap, so the sum cannot be past the last address.
            offset += run.len();
        }
        runs.push(run);
    }
    Ok((head.pages_id, runs, offset))
}
