//! Deleted files that are still open or mapped: they travel inside the images.
//!
//! Capture reads the file through its link in /proc, as a description of the controller's own.
//! Restore makes the file anew next to where it was, under its old name if that is free, lets the
//! tasks open it, and removes the name when every task has it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arctern_image::images::{GhostReader, ImageDir, write_ghost};
use arctern_image::messages::{GhostFileEntry, Timeval};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::error::{CaptureError, Refusal, RestoreError, Subject};
use crate::tree::FrozenTask;

/// Deleted files of one capture.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    ids: HashMap<(u64, u64), u32>,
    list: Vec<(u32, GhostFileEntry, Option<PathBuf>)>,
}

impl Ghosts {
    /// Adds a deleted file that `through` opens; its ghost id. None if it is too large.
    pub fn add(
        &mut self,
        task: &FrozenTask,
        part: &str,
        stat: &FileStat,
        through: &Path,
        limit: u64,
        refusals: &mut Vec<Refusal>,
    ) -> Option<u32> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        let stored = stat.st_blocks as u64 * 512;
        if kind == SFlag::S_IFREG && stored > limit {
            refusals.push(task.refuse(
                part,
                format!("the file is deleted and has {stored} bytes, more than the {limit} that may go into the images"),
                "raise the limit with --ghost-limit, or close the file",
            ));
            return None;
        }
        let id = self.ids.len() as u32 + 1;
        self.ids.insert(key, id);
        let target = (kind == SFlag::S_IFLNK)
            .then(|| std::fs::read_link(through).ok()?.to_str().map(str::to_owned))
            .flatten();
        let device = matches!(kind, SFlag::S_IFCHR | SFlag::S_IFBLK);
        let time = |seconds, nanoseconds: i64| {
            Some(Timeval { tv_sec: seconds as u64, tv_usec: nanoseconds as u64 / 1000 })
        };
        let entry = GhostFileEntry {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode,
            dev: Some(kernel_device(stat.st_dev)),
            ino: Some(stat.st_ino),
            rdev: device.then_some(stat.st_rdev as u32),
            atim: time(stat.st_atime, stat.st_atime_nsec),
            mtim: time(stat.st_mtime, stat.st_mtime_nsec),
            symlnk_target: target,
            ..GhostFileEntry::default()
        };
        self.list.push((id, entry, (kind == SFlag::S_IFREG).then(|| through.to_owned())));
        Some(id)
    }

    /// Writes the ghost files.
    pub fn write(&self, images: &ImageDir) -> Result<(), CaptureError> {
        for (id, entry, through) in &self.list {
            let content = match through {
                Some(path) => Some(File::open(path).map_err(|source| CaptureError::Kernel {
                    subject: Subject {
                        pid: 0,
                        comm: String::new(),
                        part: path.display().to_string(),
                    },
                    what: "open the deleted file".to_owned(),
                    source,
                })?),
                None => None,
            };
            write_ghost(images, (*id).into(), entry.clone(), content.as_ref())?;
        }
        Ok(())
    }
}

/// A device number as the kernel itself has it: major << 20 | minor.
pub(super) fn kernel_device(device: u64) -> u32 {
    (nix::sys::stat::major(device) << 20 | nix::sys::stat::minor(device)) as u32
}

/// Mode and device number of the file of ghost `id`. Which number a special file would get is not
/// asked: it stands for one that no container has.
pub(super) fn node(images: &ImageDir, id: u32) -> Result<(u32, u64), RestoreError> {
    let ghost = GhostReader::open(images, id.into())?;
    Ok((ghost.entry().mode, u64::MAX))
}

/// Names of deleted files that exist while a restore needs them. Dropping removes them.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(OwnedFd, PathBuf, UnlinkatFlags)>);

impl Names {
    /// Makes the file of ghost `id` below `root`, near `path`. Returns the path to open.
    pub fn make(
        &mut self,
        root: BorrowedFd<'_>,
        path: &str,
        images: &ImageDir,
        id: u32,
    ) -> Result<Vec<u8>, RestoreError> {
        let ghost = GhostReader::open(images, id.into())?;
        let failed = |what: &'static str| {
            move |errno: Errno| RestoreError::Kernel {
                subject: Subject {
                    pid: 0,
                    comm: String::new(),
                    part: format!("deleted file {path}"),
                },
                what: what.to_owned(),
                source: errno.into(),
            }
        };
        // Its directory may be deleted too: then the closest that is left.
        let mut parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        let directory = loop {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
            match (openat2(root, parent, how), parent.parent()) {
                (Ok(directory), _) => break directory,
                (Err(Errno::ENOENT), Some(up)) => parent = up,
                (Err(errno), _) => return Err(failed("open its directory")(errno)),
            }
        };
        let name = Path::new(path).file_name().map(PathBuf::from).unwrap_or_default();
        let own = PathBuf::from(format!(".arctern-ghost-{id:x}"));
        let mut chosen = None;
        for candidate in [name, own] {
            if candidate.as_os_str().is_empty() {
                continue;
            }
            match create(&directory, &candidate, ghost.entry()) {
                Ok(()) => {
                    chosen = Some(candidate);
                    break;
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("make it")(errno)),
            }
        }
        let name = chosen.ok_or(Errno::EEXIST).map_err(failed("make it"))?;
        let entry = ghost.entry().clone();
        let kind = entry.mode & libc::S_IFMT;
        let flags = if kind == libc::S_IFDIR {
            UnlinkatFlags::RemoveDir
        } else {
            UnlinkatFlags::NoRemoveDir
        };
        let kept = directory.try_clone().map_err(|e| {
            failed("keep its directory")(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))
        })?;
        self.0.push((kept, name.clone(), flags));
        if kind == libc::S_IFREG {
            let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file =
                openat(&directory, &name, flags, Mode::empty()).map_err(failed("open it"))?;
            ghost.copy_to(&File::from(file))?;
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(&directory, &name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(failed("give it to its owner"))?;
        if kind != libc::S_IFLNK {
            let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
            fchmodat(&directory, &name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
                .map_err(failed("set its mode"))?;
        }
        if let (Some(atim), Some(mtim)) = (&entry.atim, &entry.mtim) {
            let time = |t: &Timeval| {
                TimeSpec::new(t.tv_sec as i64, (t.tv_usec as i64).min(999_999) * 1000)
            };
            let (atime, mtime) = (time(atim), time(mtim));
            utimensat(&directory, &name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
                .map_err(failed("set its times"))?;
        }
        let mut full = parent.as_os_str().as_bytes().to_vec();
        if full.last() != Some(&b'/') {
            full.push(b'/');
        }
        full.extend(name.as_os_str().as_bytes());
        Ok(full)
    }

    /// Gives a file that has another name (`other`) the name `path` again, if that is free: it was
    /// opened under it and deleted. Returns the path to open.
    pub fn link(
        &mut self,
        root: BorrowedFd<'_>,
        path: &str,
        other: &str,
    ) -> Result<Vec<u8>, RestoreError> {
        let failed = |errno: Errno| RestoreError::Kernel {
            subject: Subject { pid: 0, comm: String::new(), part: format!("deleted file {path}") },
            what: format!("link it from {other}"),
            source: errno.into(),
        };
        let directory = |path: &Path| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
            openat2(root, path.parent().unwrap_or(Path::new("/")), how)
        };
        let name = |path: &str| Path::new(path).file_name().map(PathBuf::from).unwrap_or_default();
        let from = directory(Path::new(other)).map_err(failed)?;
        let Ok(to) = directory(Path::new(path)) else { return Ok(other.into()) };
        match linkat(&from, &name(other), &to, &name(path), AtFlags::empty()) {
            Ok(()) => {
                self.0.push((to, name(path), UnlinkatFlags::NoRemoveDir));
                Ok(path.into())
            }
            Err(Errno::EEXIST) => Ok(other.into()),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Removes a name that the capture made (CRIU's `link_remap.N`) when the restore has succeeded.
    pub fn remove_made(root: BorrowedFd<'_>, path: &str) {
        let path = Path::new(path);
        let made = path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"link_remap."));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        if let (true, Some(name)) = (made, path.file_name())
            && let Ok(directory) = openat2(root, path.parent().unwrap_or(Path::new("/")), how)
            && let Err(error) = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the name that the dump made");
        }
    }

    /// Removes the names: every task has the files open.
    pub fn remove(&mut self) {
        // Latest first: a file may lie in a directory that is a ghost itself.
        for (directory, name, flags) in self.0.drain(..).rev() {
            if let Err(error) = unlinkat(&directory, &name, flags) {
                tracing::warn!(name = %name.display(), %error, "cannot remove the name of a deleted file");
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.remove();
    }
}

fn create(directory: &impl AsFd, name: &Path, entry: &GhostFileEntry) -> Result<(), Errno> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let kind = SFlag::from_bits_truncate(entry.mode & libc::S_IFMT);
    match kind {
        SFlag::S_IFDIR => mkdirat(directory, name, Mode::S_IRWXU),
        SFlag::S_IFLNK => symlinkat(entry.symlnk_target.as_deref().unwrap_or(""), directory, name),
        _ => mknodat(directory, name, kind, mode, entry.rdev.unwrap_or(0).into()),
    }
}
