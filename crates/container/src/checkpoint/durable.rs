//! Images that are kept with a container survive a power cut when they say so themselves.
//!
//! Writing them to disk takes as long as the disk takes, so it is done after the tasks were stopped or
//! have gone on, and noted in the images' directory. Without the note they are good until the machine
//! is started again: then nobody knows how much of them is there. Images that are in an archive too
//! are not noted, since the archive is on disk.

use std::fs::{self, File};
use std::path::Path;

use super::discard;
use crate::error::{Error, Result};
use crate::paths::ContainerPaths;

/// The note. CRIU ignores files that it does not know.
const NOTE: &str = "complete";

/// The images take the place of those of an earlier checkpoint, which are swept.
pub(super) fn put_in_place(paths: &ContainerPaths) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (from, to) = (paths.checkpoint_new(), paths.checkpoint());
    let renamed = match renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => fs::rename(&from, &to),
        // Not every file system exchanges.
        Err(rustix::io::Errno::INVAL) => discard(&to).map(|()| fs::rename(&from, &to))?,
        other => other.map_err(Into::into),
    };
    renamed.map_err(Error::io("rename", &from))
}

/// Writes images to disk, and the note that they are there.
pub(super) fn complete(images: &Path) -> Result<()> {
    for entry in fs::read_dir(images).map_err(Error::io("list", images))? {
        let path = entry.map_err(Error::io("list", images))?.path();
        sync(&path)?;
    }
    sync(images)?;
    let note = images.join(NOTE);
    File::create(&note).map_err(Error::io("create", &note))?;
    sync(images)?;
    // The directory that they have their name in.
    images.parent().map_or(Ok(()), sync)
}

/// Whether images are known to be on disk.
pub(super) fn is_complete(images: &Path) -> bool {
    images.join(NOTE).exists()
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}
