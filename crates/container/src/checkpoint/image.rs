//! The container's image in an archive (`--with-image`).

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::paths::ContainerPaths;
use crate::state::Record;

impl Host {
    /// The image of a container as a file, for an archive.
    pub(crate) fn save_image(&self, _record: &Record, _paths: &ContainerPaths) -> Result<File> {
        Err(Error::Invalid("x".into()))
    }

    /// Takes the image out of an archive, if there is one in it.
    pub(crate) fn load_image(&self, _file: &Path, _member: &str) -> Result<bool> {
        Ok(false)
    }
}
