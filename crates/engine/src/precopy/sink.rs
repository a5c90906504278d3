//! Where pages go.

use std::os::unix::fs::FileExt;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageError, ImageKind};
use arctern_image::messages::{InventoryEntry, MmEntry};
use arctern_image::pages::{PAGE_SIZE, PageFlags, PagemapWriter, PagesIds};

use crate::options::HookError;

/// Receives the private memory of a tree, process after process, addresses ascending.
///
/// For each process: [`PageSink::space`], then [`PageSink::stored`] and [`PageSink::unchanged`] in the
/// order of addresses, then [`PageSink::end`]. What is not named holds nothing: zeros, or a file's own
/// pages. This is all that a page store needs ([`PageDirectory`]), here or at another host.
pub trait PageSink {
    /// The pages of the process with this pid (in the tree's own namespace) follow.
    fn space(&mut self, pid: i32) -> Result<(), HookError>;
    /// Its private anonymous mappings, if the rounds tell them. Follows [`PageSink::space`].
    fn mappings(&mut self, mm: &MmEntry) -> Result<(), HookError> {
        let _ = mm;
        Ok(())
    }
    /// Pages with their bytes, at most 1 MiB at a time.
    fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError>;
    /// Pages that are as they were in the round before.
    fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError>;
    /// The process is complete.
    fn end(&mut self) -> Result<(), HookError>;
}

/// A directory of images that holds one round: page maps and pages.
///
/// Rounds make a chain: the `parent` link of each leads to the one before, and that of the images of the
/// last capture to the last round.
pub struct PageDirectory {
    images: ImageDir,
    ids: PagesIds,
    open: Option<PagemapWriter>,
    pid: u64,
    has_parent: bool,
}

impl PageDirectory {
    /// Makes the directory, if it is not there, on top of the round in `parent`, a path relative to it.
    ///
    /// # Errors
    /// It cannot be made, or what is in it cannot be replaced.
    pub fn create(path: &Path, parent: Option<&Path>) -> Result<Self, ImageError> {
        Self::with_ids(path, parent, PagesIds::new())
    }

    /// As [`PageDirectory::create`], for the memory that a capture gave to a sink: the directory is that
    /// of its other images, which may come before or after. It needs no [`PageDirectory::conclude`].
    ///
    /// # Errors
    /// As [`PageDirectory::create`].
    pub fn last(path: &Path, parent: Option<&Path>) -> Result<Self, ImageError> {
        /// Numbers of pages files that the capture itself gives to nothing.
        const OTHERS: u32 = 1 << 30;
        Self::with_ids(path, parent, PagesIds::from(OTHERS))
    }

    fn with_ids(path: &Path, parent: Option<&Path>, ids: PagesIds) -> Result<Self, ImageError> {
        let images = ImageDir::create(path)?;
        images.set_parent(parent)?;
        Ok(PageDirectory { images, ids, open: None, pid: 0, has_parent: parent.is_some() })
    }

    /// Ends the round: a directory with an inventory is complete.
    ///
    /// # Errors
    /// The inventory cannot be written.
    pub fn conclude(self) -> Result<(), ImageError> {
        /// CRIU's name for pages that were read while the tasks ran.
        const READ: u32 = 2;
        let uptime = crate::capture::uptime();
        let entry = InventoryEntry {
            img_version: 2,
            dump_uptime: uptime,
            pre_dump_mode: Some(READ),
            ..InventoryEntry::default()
        };
        self.images.write_one(ImageKind::Inventory, 0, &entry)
    }
}

impl PageSink for PageDirectory {
    fn space(&mut self, pid: i32) -> Result<(), HookError> {
        let id = self.ids.next();
        self.pid = pid as u64;
        self.open = Some(PagemapWriter::create(&self.images, ImageKind::Pagemap, pid as u64, id)?);
        Ok(())
    }

    fn mappings(&mut self, mm: &MmEntry) -> Result<(), HookError> {
        Ok(self.images.write_one(ImageKind::Mm, self.pid, mm)?)
    }

    fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError> {
        let writer = self.open.as_mut().ok_or("pages of no process")?;
        let pages = bytes.len() as u64 / PAGE_SIZE;
        let at = writer.push(vaddr, pages, PageFlags::STORED_LAZY)?;
        Ok(writer.pages().write_all_at(bytes, at)?)
    }

    fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError> {
        let writer = self.open.as_mut().ok_or("pages of no process")?;
        if !self.has_parent {
            return Err("pages of an earlier round, and there is none".into());
        }
        writer.push(vaddr, pages, PageFlags::IN_PARENT)?;
        Ok(())
    }

    fn end(&mut self) -> Result<(), HookError> {
        if let Some(writer) = self.open.take() {
            writer.finish()?;
        }
        Ok(())
    }
}
