//! Named volumes: directories that outlive containers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use serde::{Deserialize, Serialize};

use crate::store::{AtPath, Store, StoreError, checked_id, make_dir, sync_dir, write_durably};
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
    /// Never mounted: what the first container's image has at its place comes into it.
    #[serde(default)]
    pub fresh: bool,
    /// Being restored with this container: if that ends before its time, the volume goes as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<String>,
}

impl Volume {
    /// A volume that was just asked for.
    fn new(name: &str, labels: BTreeMap<String, String>) -> Volume {
        Volume {
            name: name.to_owned(),
            created: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            anonymous: false,
            labels,
            fresh: true,
            restoring: None,
        }
    }
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
        self.volume_make(Volume { anonymous, ..Volume::new(name, labels) })
    }

    /// Makes a volume whose files come with the restore of a container; [`Store::volumes_restored`]
    /// makes it one like others.
    ///
    /// # Errors
    /// As [`Store::volume_create`].
    pub fn volume_create_for(
        &self,
        name: &str,
        anonymous: bool,
        container: &str,
    ) -> Result<Volume, StoreError> {
        self.volume_make(Volume {
            anonymous,
            fresh: false,
            restoring: Some(container.to_owned()),
            ..Volume::new(name, BTreeMap::new())
        })
    }

    fn volume_make(&self, volume: Volume) -> Result<Volume, StoreError> {
        let name = checked_id(&volume.name)?;
        let scratch = self.scratch()?;
        let _lock = self.lock()?;
        let place = self.volumes_dir().join(name);
        if place.exists() {
            return Err(StoreError::VolumeExists(name.to_owned()));
        }
        let new = scratch.path().join("volume");
        make_dir(&new, 0o755)?;
        make_dir(&new.join("_data"), 0o755)?;
        write_note(&new, &volume)?;
        std::fs::rename(&new, &place).at("rename into place", &place)?;
        sync_dir(&self.volumes_dir())?;
        Ok(volume)
    }

    /// Keeps the volumes that came with the restore of a container.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn volumes_restored(&self, container: &str) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for volume in self.volumes()? {
            if volume.restoring.as_deref() == Some(container) {
                let place = self.volumes_dir().join(&volume.name);
                write_note(&place, &Volume { restoring: None, ..volume })?;
            }
        }
        Ok(())
    }

    /// Removes the volumes that came with a restore that failed.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Damaged`].
    pub fn volumes_not_restored(&self, container: &str) -> Result<(), StoreError> {
        for volume in self.volumes()? {
            if volume.restoring.as_deref() == Some(container) {
                self.discard(&self.volumes_dir().join(&volume.name))?;
            }
        }
        Ok(())
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
            let path = entry.at("list", &dir)?.path().join(NOTE);
            // None: removed meanwhile.
            volumes.extend(read_note(&path)?);
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
        self.discard(&self.volumes_dir().join(name))?;
        sync_dir(&self.volumes_dir())
    }

    /// Fills a volume that was never mounted, and is empty, with what a container's root has at `path`,
    /// its owner and mode included. Says whether anything was copied.
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
        let place = self.volumes_dir().join(name);
        let Some(volume) = read_note(&place.join(NOTE))?.filter(|volume| volume.fresh) else {
            return Ok(false);
        };
        let copied = match std::fs::read_dir(&data).at("list", &data)?.next().is_some() {
            true => false,
            false => fill(&data, root, path)?,
        };
        // Last: a command that is killed half-way leaves it to the next one.
        write_note(&place, &Volume { fresh: false, ..volume })?;
        Ok(copied)
    }
}

/// The file that says what a volume is.
const NOTE: &str = "volume.json";

fn read_note(path: &Path) -> Result<Option<Volume>, StoreError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StoreError::Damaged { path: path.to_owned(), source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}

/// Writes it at once or not at all.
fn write_note(place: &Path, volume: &Volume) -> Result<(), StoreError> {
    let note = place.join(NOTE);
    let text = serde_json::to_vec(volume)
        .map_err(|source| StoreError::Damaged { path: note.clone(), source })?;
    write_durably(&note, &text)
}

fn fill(data: &Path, root: &Path, path: &Path) -> Result<bool, StoreError> {
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
    let copied = tree::copy(&from, data).map_err(|source| StoreError::Copy {
        from: path.to_owned(),
        to: data.to_owned(),
        source: Box::new(source),
    })?;
    Ok(copied.entries > 0)
}
