//! `diff`: what a container has changed in its root file system.

use std::path::PathBuf;

use arctern_storage::diff::{self, ChangeKind, Source};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::spec;

impl Host {
    /// The paths that a container added, changed or deleted, but for those that it was given.
    pub fn changes(&mut self, name_or_id: &str) -> Result<Vec<(PathBuf, ChangeKind)>> {
        let record = self.find(name_or_id)?;
        let root = self.images.root_fs(record.id()).map_err(Error::storage)?;
        let mut excludes: Vec<PathBuf> = diff::DEFAULT_EXCLUDES.map(PathBuf::from).into();
        if let Ok(spec) = spec::load(&self.paths.container(record.id()).spec()) {
            // Mount points are made for the container, not by it.
            excludes.extend(spec.mounts().iter().flatten().map(|m| m.destination().clone()));
        }
        let source = Source { upper: &root.upper, lowers: &root.lowers, excludes: &excludes };
        diff::list(&source).map_err(Error::storage)
    }
}
