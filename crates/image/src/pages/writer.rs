//! Writing a page store.

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{PAGE_SIZE, PageFlags, Run};
use crate::images::{ImageDir, ImageError, ImageErrorKind, ImageKind, RecordWriter};
use crate::messages::{PagemapEntry, PagemapHead};

/// Hands out pages ids: one counter a dump, shared by tasks and shared objects, from 1.
#[derive(Debug)]
pub struct PagesIds(AtomicU32);

impl PagesIds {
    /// Begins a dump.
    pub const fn new() -> Self {
        Self::from(1)
    }

    /// Begins at another number.
    pub const fn from(first: u32) -> Self {
        Self(AtomicU32::new(first))
    }

    /// The next id.
    pub fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl Default for PagesIds {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes one pagemap and gives out the place of every stored page; the bytes themselves are written
/// by the caller into [`PagemapWriter::pages`], in any order.
pub struct PagemapWriter {
    pagemap: RecordWriter<File>,
    pages: File,
    /// The run that may still grow.
    open: Option<Run>,
    /// End of the last run, in address space.
    after: u64,
    /// End of the pages given out, in the pages file.
    offset: u64,
    path: std::path::PathBuf,
    pages_path: std::path::PathBuf,
}

impl PagemapWriter {
    /// Makes `pagemap-ID.img` or `pagemap-shmem-ID.img` (`kind`) and an empty `pages-PAGES_ID.img`.
    pub fn create(
        images: &ImageDir,
        kind: ImageKind,
        id: u64,
        pages_id: u32,
    ) -> Result<Self, ImageError> {
        let mut pagemap = images.writer(kind, id)?;
        pagemap.record(&PagemapHead { pages_id })?;
        Ok(Self {
            pagemap,
            pages: images.create_file(ImageKind::Pages, pages_id.into())?,
            open: None,
            after: 0,
            offset: 0,
            path: images.path_of(kind, id),
            pages_path: images.path_of(ImageKind::Pages, pages_id.into()),
        })
    }

    /// The pages file, for `pwrite` at the offsets that [`PagemapWriter::push`] returns.
    pub fn pages(&self) -> &File {
        &self.pages
    }

    /// Appends a run; runs come in ascending order. Returns the byte offset in the pages file at
    /// which a present run's bytes belong (for other runs, where the next ones will). Neighbours
    /// with the same flags become one run.
    ///
    /// # Errors
    /// The run is empty, unaligned, before or over the end of the one before, or leaves the address
    /// space; the kernel refuses the write.
    pub fn push(&mut self, vaddr: u64, nr_pages: u64, flags: PageFlags) -> Result<u64, ImageError> {
        let end = Run::check(vaddr, nr_pages, self.after).map_err(|kind| kind.at(&self.path))?;
        let offset = self.offset;
        match &mut self.open {
            Some(run) if run.end() == vaddr && run.flags == flags => run.nr_pages += nr_pages,
            _ => {
                self.close_run()?;
                self.open = Some(Run { vaddr, nr_pages, flags, offset });
            }
        }
        self.after = end;
        if flags.present {
            self.offset += nr_pages * PAGE_SIZE;
        }
        Ok(offset)
    }

    /// Pages given out so far.
    pub fn stored_pages(&self) -> u64 {
        self.offset / PAGE_SIZE
    }

    /// Writes out the pagemap and returns the pages file.
    ///
    /// # Errors
    /// The pages file is shorter than the pages given out: some were never written. The kernel
    /// refuses a write.
    pub fn finish(mut self) -> Result<File, ImageError> {
        self.close_run()?;
        self.pagemap.finish()?;
        let size = self
            .pages
            .metadata()
            .map_err(|error| ImageErrorKind::io("ask for its size")(error).at(&self.pages_path))?
            .len();
        if size < self.offset {
            return Err(
                ImageErrorKind::PagesMissing { needed: self.offset, size }.at(&self.pages_path)
            );
        }
        Ok(self.pages)
    }

    fn close_run(&mut self) -> Result<(), ImageError> {
        let Some(run) = self.open.take() else {
            return Ok(());
        };
        self.pagemap.record(&PagemapEntry {
            vaddr: run.vaddr,
            // Readers that know only this field cannot read the images anyway.
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(run.flags.bits()),
            nr_pages: Some(run.nr_pages),
        })
    }
}
