//! Terminals: refused.

use arctern_image::images::ImageDir;
use arctern_image::messages::FileEntry;

use super::capture::FileCollector;
use super::descriptor::Descriptor;
use super::groups::{Bond, Group};
use super::restore::FilesRestore;
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError};

/// Whether a character device is a terminal: tty, pty, console.
pub(super) fn is_terminal(major: u64) -> bool {
    matches!(major, 3..=5 | 136..=143)
}

impl FileCollector {
    pub(super) fn terminal(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        refusals.push(d.refuse("terminals cannot be carried", "start the program without one"));
        Ok(None)
    }

    pub(super) fn write_terminals(&self, _images: &ImageDir) -> Result<(), CaptureError> {
        Ok(())
    }
}

impl FilesRestore {
    /// Ties terminals together.
    pub(super) fn terminal_bonds(&self, _bonds: &mut Vec<(Bond, u32)>) {}

    pub(super) fn make_terminals(
        &mut self,
        _o: &mut Opener<'_>,
        group: &Group,
    ) -> Result<Vec<(u32, i32)>, RestoreError> {
        Err(RestoreError::Refused(group.ids.iter().map(|id| self.unknown_kind(*id)).collect()))
    }
}
