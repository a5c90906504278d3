//! Removing images, and what nothing refers to any more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::beneath;
use crate::image::Image;
use crate::store::{AtPath, Scratch, Store, StoreError, clear};

/// What [`Store::remove_image`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Id of the image, when it is gone.
    pub deleted: Option<String>,
}

/// File of a scratch directory with what must not be removed as long as it is there.
const PINS: &str = "pins.json";

/// Layers and blobs that a running command relies on.
#[derive(Debug, Serialize, Deserialize)]
struct Pins {
    layers: Vec<String>,
    blobs: Vec<String>,
}

impl Store {
    /// Removes a name from an image, and the image with its layers when that was the last one.
    /// Given by id, an image with several names is removed only with `force`.
    ///
    /// # Errors
    /// [`StoreError::ImageInUse`] while a container root is made from it, with or without `force`;
    /// [`StoreError::SeveralNames`]; as [`Store::resolve`].
    pub fn remove_image(&self, name_or_id: &str, force: bool) -> Result<Removed, StoreError> {
        let lock = self.lock()?;
        let mut index = self.read_index()?;
        let at = self.find(&index, name_or_id)?;
        let image = index.images[at].clone();
        let by_id = image.id.starts_with(name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id));
        if !by_id
            && image.names.len() > 1
            && !force
            && let Some(name) = image.name_meant(name_or_id)
        {
            index.images[at].names.retain(|n| *n != name);
            self.write_index(&index)?;
            return Ok(Removed { untagged: vec![name], deleted: None });
        }
        if by_id && image.names.len() > 1 && !force {
            return Err(StoreError::SeveralNames { image: image.id, names: image.names });
        }
        let users = self.users_of(&image.id)?;
        if !users.is_empty() {
            return Err(StoreError::ImageInUse { image: image.id, users });
        }
        index.images.remove(at);
        // The index first: a crash in between leaves files that nothing refers to, not an image
        // that lacks files.
        self.write_index(&index)?;
        let graves = self.collect_garbage()?;
        drop(lock);
        clear(graves)?;
        Ok(Removed { untagged: image.names, deleted: Some(image.id) })
    }

    /// Takes names from an image, or all of them, and keeps it.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`StoreError::NoSuchImage`] for a name that it does not have.
    pub fn untag(&self, name_or_id: &str, names: &[String]) -> Result<Image, StoreError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let at = self.find(&index, name_or_id)?;
        let image = &mut index.images[at];
        if names.is_empty() {
            image.names.clear();
        }
        for name in names {
            let Some(meant) = image.name_meant(name) else {
                return Err(StoreError::NoSuchImage(name.clone(), self.root().to_owned()));
            };
            image.names.retain(|known| *known != meant);
        }
        let image = image.clone();
        self.write_index(&index)?;
        Ok(image)
    }

    /// Removes images without a name, or with `all` every image, if they are meant and no container is
    /// made from them. Gives those that are gone.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn prune(
        &self,
        all: bool,
        meant: impl Fn(&Image) -> bool,
    ) -> Result<Vec<Image>, StoreError> {
        let lock = self.lock()?;
        let mut index = self.read_index()?;
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for image in std::mem::take(&mut index.images) {
            let wanted = !meant(&image) || (!all && !image.names.is_empty());
            match wanted || !self.users_of(&image.id)?.is_empty() {
                true => kept.push(image),
                false => gone.push(image),
            }
        }
        index.images = kept;
        self.write_index(&index)?;
        let graves = self.collect_garbage()?;
        drop(lock);
        clear(graves)?;
        Ok(gone)
    }

    /// Keeps layers and blobs from being removed as long as a scratch directory is there.
    pub(crate) fn pin(
        &self,
        scratch: &Scratch,
        layers: Vec<&str>,
        blobs: Vec<&str>,
    ) -> Result<(), StoreError> {
        let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        let path = scratch.path().join(PINS);
        let pins = serde_json::to_vec(&Pins { layers: owned(layers), blobs: owned(blobs) })
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        // From the next removal on it counts.
        let _lock = self.lock()?;
        std::fs::write(&path, pins).at("write", &path)
    }

    /// What running commands want to keep. The caller holds the lock.
    fn pinned(&self) -> Result<Vec<Pins>, StoreError> {
        let tmp = self.root().join("tmp");
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&tmp).at("list", &tmp)? {
            let path = entry.at("list", &tmp)?.path().join(PINS);
            match std::fs::read(&path) {
                Ok(bytes) => all.push(
                    serde_json::from_slice(&bytes)
                        .map_err(|source| StoreError::Damaged { path, source })?,
                ),
                // It has none, is being removed, or is a file that is being removed.
                Err(e) if beneath::is_absent(&e) => {}
                Err(e) => return Err(e).at("read", &path),
            }
        }
        Ok(all)
    }

    /// The layers and blobs that images, container roots and running commands refer to.
    pub(crate) fn referenced(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
        let index = self.read_index()?;
        let mut layers: BTreeSet<String> = BTreeSet::new();
        let mut blobs: BTreeSet<String> = BTreeSet::new();
        for image in &index.images {
            layers.extend(image.layers.iter().cloned());
            blobs.extend([image.id.clone(), image.manifest.clone()]);
            blobs.extend(image.blobs.iter().cloned());
        }
        layers.extend(self.layers_in_use()?);
        for kept in self.pinned()? {
            layers.extend(kept.layers);
            blobs.extend(kept.blobs);
        }
        Ok((layers, blobs))
    }

    /// Buries layers and blobs that nothing refers to. The caller holds the lock: things are put in
    /// their places and referred to without letting it go.
    pub(crate) fn collect_garbage(&self) -> Result<Vec<Scratch>, StoreError> {
        let (layers, blobs) = self.referenced()?;
        let mut graves = Vec::new();
        for (dir, keep) in [("layers", &layers), ("blobs/sha256", &blobs)] {
            let dir = self.root().join(dir);
            for entry in std::fs::read_dir(&dir).at("list", &dir)? {
                let entry = entry.at("list", &dir)?;
                if !keep.contains(&*entry.file_name().to_string_lossy()) {
                    self.bury(&entry.path(), &mut graves)?;
                }
            }
        }
        Ok(graves)
    }
}
