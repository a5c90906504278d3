//! Tracking that outlives the program which began it: what has to be written down, and the descriptors
//! that somebody has to keep open.

use std::os::fd::OwnedFd;

use arctern_image::images::{ImageDir, ImageError, ImageKind};
use arctern_image::pages::PagemapReader;
use arctern_sys::userfaultfd::WriteTracker;

use super::space::Space;
use super::{Method, Ranges, Tracking};

/// What is written down. Which pages were stored is in the images.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct SavedTracking {
    method: Method,
    spaces: Vec<SavedSpace>,
}

/// One process, by its pid in the tree's own namespace.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct SavedSpace {
    pid: i32,
    started: u64,
    /// Whether one of the descriptors, in this order, is its.
    tracker: bool,
    registered: Ranges,
}

impl Tracking {
    /// Takes the tracking apart: what to write down, and the descriptors to keep open, in their order.
    pub fn save(self) -> (SavedTracking, Vec<OwnedFd>) {
        let mut fds = Vec::new();
        let mut spaces = Vec::new();
        for (pid, space) in self.spaces {
            let tracker = space.tracker.is_some();
            fds.extend(space.tracker.map(OwnedFd::from));
            let registered = space.registered;
            spaces.push(SavedSpace { pid, started: space.started, tracker, registered });
        }
        (SavedTracking { method: self.method, spaces }, fds)
    }

    /// Puts it together again. `images` are those that were made when it was saved.
    ///
    /// # Errors
    /// The images cannot be read.
    pub fn load(
        saved: SavedTracking,
        fds: Vec<OwnedFd>,
        images: &ImageDir,
    ) -> Result<Self, ImageError> {
        let mut fds = fds.into_iter();
        let mut tracking = Tracking::new(saved.method);
        for space in saved.spaces {
            let tracker = if space.tracker { fds.next().map(WriteTracker::from_fd) } else { None };
            let pages = PagemapReader::open(images, ImageKind::Pagemap, space.pid as u64)?;
            let extents = pages.iter().flat_map(PagemapReader::extents);
            let stored = extents.map(|extent| (extent.vaddr, extent.end())).collect();
            let registered = space.registered;
            let known = Space { tracker, registered, stored, ..Space::new(space.started) };
            tracking.spaces.insert(space.pid, known);
        }
        Ok(tracking)
    }
}
