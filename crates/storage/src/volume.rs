//! Named volumes: directories that outlive containers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use serde::{Deserialize, Serialize};

use crate::store::{AtPath, Store, StoreError, checked_id, make_dir};
use crate::tree;

/// A named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Made for one container without a name given, and removed with it.
    pub anonymous: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Store {
    /// Makes a volume.
    ///
    /// # Errors
    /// [`StoreError::VolumeExists`], [`StoreError::BadId`], [`StoreError::Io`].
    pub fn volume_create(
        &self,
        name: &str,
        anonymous: bool,
        labels: BTreeMap<String, String>,
    ) -> Result<Volume, StoreError> {
        checked_id(name)?;
        let scratch = self.scratch()?;
        let _lock = self.lock()?;
        let place = self.volumes_dir().join(name);
        if place.exists() {
            return Err(StoreError::VolumeExists(name.to_owned()));
        }
        let volume = Volume {
            name: name.to_owned(),
            created: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            anonymous,
            labels,
        };
        let new = scratch.path().join("volume");
        make_dir(&new, 0o755)?;
        make_dir(&new.join("_data"), 0o755)?;
        let note = new.join("volume.json");
        let text = serde_json::to_vec(&volume)
            .map_err(|source| StoreError::Damaged { path: note.clone(), source })?;
        std::fs::write(&note, text).at("write", &note)?;
        std::fs::rename(&new, &place).at("rename into place", &place)?;
        Ok(volume)
    }

    /// The directory with a volume's files.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVolume`].
    pub fn volume_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.volumes_dir().join(checked_id(name)?).join("_data");
        match path.exists() {
            true => Ok(path),
            false => Err(StoreError::NoSuchVolume(name.to_owned())),
        }
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let dir = self.volumes_dir();
        let mut volumes = Vec::new();
        for entry in std::fs::read_dir(&dir).at("list", &dir)? {
            let path = entry.at("list", &dir)?.path().join("volume.json");
            match std::fs::read(&path) {
                Ok(text) => volumes.push(
                    serde_json::from_slice::<Volume>(&text)
                        .map_err(|source| StoreError::Damaged { path, source })?,
                ),
                // Removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).at("read", &path),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Removes a volume and its files. Who uses it is for the caller to know.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVolume`], [`StoreError::Io`].
    pub fn volume_remove(&self, name: &str) -> Result<(), StoreError> {
        self.volume_path(name)?;
        self.discard(&self.volumes_dir().join(name))
    }

    /// Fills a volume that is still empty with what a container's root has at `path`, its owner and
    /// mode included, as is done when the volume is mounted over it for the first time. Says
    /// whether anything was copied.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVolume`], [`StoreError::Copy`].
    pub fn volume_populate(
        &self,
        name: &str,
        root: &Path,
        path: &Path,
    ) -> Result<bool, StoreError> {
        let data = self.volume_path(name)?;
        if std::fs::read_dir(&data).at("list", &data)?.next().is_some() {
            return Ok(false);
        }
        let root = crate::store::open_dir(root)?;
        let relative = path.strip_prefix("/").unwrap_or(path);
        // Links of the image lead within the image.
        let from = match rustix::fs::openat2(
            &root,
            if relative.as_os_str().is_empty() { Path::new(".") } else { relative },
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(e) => return Err(e).at("open", path),
        };
        let from = PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd()));
        let copied = tree::copy(&from, &data).map_err(|source| StoreError::Copy {
            from: path.to_owned(),
            to: data,
            source: Box::new(source),
        })?;
        Ok(copied.entries > 0)
    }
}
