//! Root file systems of containers: overlayfs over the layers of an image.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::store::{AtPath, Store, StoreError, checked_id, make_dir, sync_dir, write_durably};

/// Where the parts of a container's root are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFs {
    /// Container id.
    pub id: String,
    /// Id of the image it was made from.
    pub image: String,
    /// Overlayfs's upper directory: what the container changed.
    pub upper: PathBuf,
    /// Overlayfs's work directory.
    pub work: PathBuf,
    /// Where it is or will be mounted.
    pub merged: PathBuf,
    /// The layers, the topmost first.
    pub lowers: Vec<PathBuf>,
}

/// What is noted beside the upper directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootNote {
    pub image: String,
    pub layers: Vec<String>,
}

/// Options of every overlay: renamed directories and metadata-only copies would put references into
/// the upper directory that a tar of it cannot carry to another host.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off")];

impl Store {
    /// Makes the root file system of a container from an image. It is not mounted yet.
    ///
    /// # Errors
    /// [`StoreError::RootExists`], [`StoreError::NoSuchImage`], [`StoreError::Io`].
    pub fn create_root(&self, container: &str, image: &str) -> Result<RootFs, StoreError> {
        let id = checked_id(container)?;
        let scratch = self.scratch()?;
        let _lock = self.lock()?;
        let image = self.resolve(image)?;
        let place = self.container_dir(id);
        if place.exists() {
            return Err(StoreError::RootExists(id.to_owned()));
        }
        let new = scratch.path().join("root");
        let upper = new.join("upper");
        make_dir(&upper, 0o755)?;
        make_dir(&new.join("work"), 0o700)?;
        if let Some(top) = self.lower_dirs(&image).first() {
            copy_dir_metadata(top, &upper)?;
        }
        note_image(&new, &image)?;
        std::fs::rename(&new, &place).at("rename into place", &place)?;
        sync_dir(&self.root().join("containers"))?;
        self.root_fs(id)
    }

    /// Writes down anew which image a container's root is made from. The caller holds the lock.
    pub(crate) fn write_note(&self, container: &str, image: &Image) -> Result<(), StoreError> {
        note_image(&self.container_dir(checked_id(container)?), image)
    }

    /// The parts of a container's root.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRoot`], [`StoreError::Damaged`].
    pub fn root_fs(&self, container: &str) -> Result<RootFs, StoreError> {
        let id = checked_id(container)?;
        let dir = self.container_dir(id);
        let note = match read_note(&dir)? {
            Some(note) => note,
            None => return Err(StoreError::NoSuchRoot(id.to_owned())),
        };
        let layers = note.layers.iter().rev();
        Ok(RootFs {
            id: id.to_owned(),
            image: note.image,
            upper: dir.join("upper"),
            work: dir.join("work"),
            merged: self.mounts_dir().join(id),
            lowers: layers.map(|hex| self.layer_dir(hex).join("diff")).collect(),
        })
    }

    /// Mounts a container's root in the caller's mount namespace and says where. The mount is
    /// private. When it is mounted already, that is fine.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRoot`], [`StoreError::Mount`].
    pub fn mount_root(&self, container: &str, read_only: bool) -> Result<PathBuf, StoreError> {
        let root = self.root_fs(container)?;
        make_dir(&root.merged, 0o700)?;
        if is_mount_point(&root.merged).at("inspect", &root.merged)? {
            return Ok(root.merged);
        }
        let failed = |source: io::Error| StoreError::Mount {
            id: root.id.clone(),
            path: root.merged.clone(),
            source,
        };
        mount_overlay(&root, read_only).map_err(failed)?;
        rustix::mount::mount_change(&root.merged, MountPropagationFlags::PRIVATE)
            .map_err(|e| failed(e.into()))?;
        Ok(root.merged)
    }

    /// Unmounts a container's root. When it is not mounted, that is fine.
    ///
    /// # Errors
    /// [`StoreError::Unmount`], for example `EBUSY` while something in it is in use.
    pub fn unmount_root(&self, container: &str) -> Result<(), StoreError> {
        let id = checked_id(container)?;
        let merged = self.mounts_dir().join(id);
        loop {
            match rustix::mount::unmount(&merged, UnmountFlags::NOFOLLOW) {
                Ok(()) => continue,
                // Not mounted (any more), or no such directory.
                Err(Errno::INVAL) | Err(Errno::NOENT) => break,
                Err(e) => {
                    return Err(StoreError::Unmount {
                        id: id.to_owned(),
                        path: merged,
                        source: e.into(),
                    });
                }
            }
        }
        match rustix::fs::unlinkat(rustix::fs::CWD, &merged, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).at("remove", &merged),
        }
    }

    /// Takes a container's root out of the mount namespace at once, whoever still uses it, and
    /// returns a descriptor that keeps the file system itself alive; `None` when nothing was
    /// mounted.
    ///
    /// The last user of an overlay pays for syncing the whole file system below it, which can take
    /// seconds on a busy disk. A command that must be quick leaves that to a process that need not
    /// be, for example by letting the container's shim hold such a descriptor to its end.
    ///
    /// # Errors
    /// [`StoreError::Unmount`].
    pub fn detach_root(&self, container: &str) -> Result<Option<OwnedFd>, StoreError> {
        let id = checked_id(container)?;
        let merged = self.mounts_dir().join(id);
        let failed = |e: Errno| StoreError::Unmount {
            id: id.to_owned(),
            path: merged.clone(),
            source: e.into(),
        };
        match is_mount_point(&merged) {
            Ok(true) => {}
            Ok(false) | Err(Errno::NOENT) => {
                self.unmount_root(id)?;
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = rustix::fs::open(&merged, flags, Mode::empty()).map_err(failed)?;
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&merged, flags).map_err(failed)?;
        self.unmount_root(id)?;
        Ok(Some(held))
    }

    /// Unmounts and removes a container's root. Absence is no error.
    ///
    /// # Errors
    /// [`StoreError::Unmount`], [`StoreError::Io`].
    pub fn remove_root(&self, container: &str) -> Result<(), StoreError> {
        let id = checked_id(container)?;
        self.unmount_root(id)?;
        self.discard(&self.container_dir(id))
    }

    /// The container ids that have a root.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn roots(&self) -> Result<Vec<String>, StoreError> {
        let dir = self.root().join("containers");
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&dir).at("list", &dir)? {
            ids.push(entry.at("list", &dir)?.file_name().to_string_lossy().into_owned());
        }
        ids.sort();
        Ok(ids)
    }

    /// The containers whose root is made from an image.
    pub(crate) fn users_of(&self, image: &str) -> Result<Vec<String>, StoreError> {
        let mut users = Vec::new();
        for id in self.roots()? {
            if read_note(&self.container_dir(&id))?.is_some_and(|note| note.image == image) {
                users.push(id);
            }
        }
        Ok(users)
    }

    /// The layers that container roots are made from.
    pub(crate) fn layers_in_use(&self) -> Result<Vec<String>, StoreError> {
        let mut layers = Vec::new();
        for id in self.roots()? {
            if let Some(note) = read_note(&self.container_dir(&id))? {
                layers.extend(note.layers);
            }
        }
        Ok(layers)
    }
}

fn note_image(dir: &Path, image: &Image) -> Result<(), StoreError> {
    let note =
        serde_json::to_vec(&RootNote { image: image.id.clone(), layers: image.layers.clone() });
    let note = note.map_err(|_| StoreError::NotAnImage("root note"))?;
    write_durably(&dir.join("root.json"), &note)
}

pub(crate) fn read_note(dir: &Path) -> Result<Option<RootNote>, StoreError> {
    let path = dir.join("root.json");
    match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(note) => Ok(Some(note)),
            Err(source) => Err(StoreError::Damaged { path, source }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", &path),
    }
}

/// Gives the upper directory the owner, mode and times of the image's `/`: overlayfs shows those of
/// the upper one.
fn copy_dir_metadata(from: &Path, to: &Path) -> Result<(), StoreError> {
    let st = rustix::fs::stat(from).at("inspect", from)?;
    let dir = crate::store::open_dir(to)?;
    let owner = (Uid::from_raw(st.st_uid), Gid::from_raw(st.st_gid));
    rustix::fs::fchown(&dir, Some(owner.0), Some(owner.1)).at("set the owner of", to)?;
    let mode = Mode::from_raw_mode(st.st_mode & 0o7777);
    rustix::fs::fchmod(&dir, mode).at("set the mode of", to)?;
    rustix::fs::futimens(&dir, &crate::pack::stat_times(&st)).at("set the times of", to)
}

/// Whether something is mounted on `path` itself.
fn is_mount_point(path: &Path) -> rustix::io::Result<bool> {
    let statx =
        rustix::fs::statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Mounts with the mount API; its `lowerdir+` (Linux 6.5) has no length limit and needs no escapes.
/// Kernels without it get mount(2), with the layers named through descriptors, because a page of
/// options is not enough for the paths of a hundred layers.
fn mount_overlay(root: &RootFs, read_only: bool) -> io::Result<()> {
    match overlay_by_mount_api(root, read_only) {
        Ok(mount) => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, &root.merged, flags)?;
            Ok(())
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => overlay_by_mount(root, read_only),
        Err(e) => Err(e.into()),
    }
}

fn overlay_by_mount_api(root: &RootFs, read_only: bool) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", "arctern")?;
    for lower in &root.lowers {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", lower)?;
    }
    fsconfig_set_string(fs.as_fd(), "upperdir", &root.upper)?;
    fsconfig_set_string(fs.as_fd(), "workdir", &root.work)?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(fs.as_fd(), key, value)?;
    }
    if read_only {
        fsconfig_set_flag(fs.as_fd(), "ro")?;
    }
    fsconfig_create(fs.as_fd())?;
    let attributes = match read_only {
        true => MountAttrFlags::MOUNT_ATTR_RDONLY,
        false => MountAttrFlags::empty(),
    };
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn overlay_by_mount(root: &RootFs, read_only: bool) -> io::Result<()> {
    let mut layers = Vec::new();
    for lower in &root.lowers {
        layers.push(std::fs::File::open(lower)?);
    }
    let names: Vec<String> =
        layers.iter().map(|dir| format!("/proc/self/fd/{}", dir.as_raw_fd())).collect();
    let mut options = format!("lowerdir={}", names.join(":")).into_bytes();
    for (key, path) in [("upperdir", &root.upper), ("workdir", &root.work)] {
        options.extend(format!(",{key}=").bytes());
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b',' | b':' | b'\\') {
                options.push(b'\\');
            }
            options.push(byte);
        }
    }
    for (key, value) in OPTIONS {
        options.extend(format!(",{key}={value}").bytes());
    }
    let options = CString::new(options).map_err(|_| io::Error::from(Errno::INVAL))?;
    let flags = match read_only {
        true => MountFlags::RDONLY,
        false => MountFlags::empty(),
    };
    rustix::mount::mount("arctern", &root.merged, "overlay", flags, options.as_c_str())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_without_the_newer_option_get_the_same_mount() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("temporary directory");
        // Characters that have a meaning in mount options.
        let base = dir.path().join("a,b:c\\d");
        let part = |name: &str| {
            let path = base.join(name);
            std::fs::create_dir_all(&path).expect("make");
            path
        };
        let root = RootFs {
            id: "c".into(),
            image: String::new(),
            upper: part("upper"),
            work: part("work"),
            merged: part("merged"),
            lowers: (0..60).map(|i| part(&format!("{:060}", i))).collect(),
        };
        std::fs::write(root.lowers[0].join("f"), b"top").expect("write");
        std::fs::write(root.lowers[59].join("f"), b"bottom").expect("write");
        for read_only in [true, false] {
            overlay_by_mount(&root, read_only).expect("mount");
            assert!(is_mount_point(&root.merged).expect("inspect"));
            assert_eq!(std::fs::read(root.merged.join("f")).expect("read"), b"top");
            let written = std::fs::write(root.merged.join("new"), b"x");
            assert_eq!(written.is_err(), read_only);
            rustix::mount::unmount(&root.merged, UnmountFlags::empty()).expect("unmount");
        }
        assert!(root.upper.join("new").exists());
    }
}
