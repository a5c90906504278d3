//! File system operations that cannot leave a directory.
//!
//! A [`Beneath`] holds an open directory. Every path is given relative to it, is refused when it has
//! `..` or a root in it, and its parents are resolved by `openat2(2)` (Linux 5.6) with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`: neither a symbolic link that an earlier entry of a
//! hostile archive planted nor one that another process plants meanwhile leads outside. The last
//! component is only ever touched by calls that do not follow links.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// An open directory below which paths are resolved.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    path: PathBuf,
    /// The directory of the last entry: archives list the entries of a directory in a row.
    last_parent: Option<(PathBuf, OwnedFd)>,
}

/// Resolution that stays below the directory and follows no link.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Flags with which directories are opened.
const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Beneath {
    /// Opens `path`, which may itself be reached through links: it is the caller's own.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Beneath { root, path: path.to_owned(), last_parent: None })
    }

    /// The path that was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `rel`, which must have been through [`clean`].
    ///
    /// # Errors
    /// `ELOOP` when a link is on the way, `ENOTDIR`, `ENOENT`, others of `openat2(2)`.
    pub fn open_dir(&self, rel: &Path) -> io::Result<OwnedFd> {
        // Without NOFOLLOW, so that a link is reported as ELOOP at every position.
        let flags = DIR_FLAGS.difference(OFlags::NOFOLLOW);
        let open = |dir: BorrowedFd<'_>, path: &Path| {
            rustix::fs::openat2(dir, path, flags, Mode::empty(), RESOLVE)
        };
        match open(self.root.as_fd(), if rel.as_os_str().is_empty() { Path::new(".") } else { rel })
        {
            // Longer than the 4096 bytes of a path: one component after the other.
            Err(Errno::NAMETOOLONG) => {
                let mut dir = open(self.root.as_fd(), Path::new("."))?;
                for component in rel.components() {
                    dir = open(dir.as_fd(), Path::new(component.as_os_str()))?;
                }
                Ok(dir)
            }
            other => Ok(other?),
        }
    }

    /// The directory that holds `rel`, and `rel`'s last component. Missing directories are made,
    /// with mode 0755.
    ///
    /// # Errors
    /// As [`Beneath::open_dir`]; `EINVAL` for the root itself, which has no parent.
    pub fn parent<'p>(&mut self, rel: &'p Path) -> io::Result<(BorrowedFd<'_>, &'p OsStr)> {
        let name = rel.file_name().ok_or(Errno::INVAL)?;
        let dir = rel.parent().unwrap_or(Path::new(""));
        let cached = matches!(&self.last_parent, Some((path, _)) if path == dir);
        if !cached {
            let fd = match self.open_dir(dir) {
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    self.make_dirs(dir)?
                }
                other => other?,
            };
            self.last_parent = Some((dir.to_owned(), fd));
        }
        match &self.last_parent {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Err(Errno::INVAL.into()),
        }
    }

    /// Makes `rel` and what is missing above it.
    fn make_dirs(&self, rel: &Path) -> io::Result<OwnedFd> {
        let mut dir = self.open_dir(Path::new(""))?;
        for component in rel.components() {
            let name = component.as_os_str();
            dir = match rustix::fs::openat(&dir, name, DIR_FLAGS, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                    rustix::fs::openat(&dir, name, DIR_FLAGS, Mode::empty())?
                }
                Err(e) => return Err(e.into()),
            };
        }
        Ok(dir)
    }

    /// Forgets the directory kept from the last call: it may have been removed or replaced.
    pub fn forget(&mut self) {
        self.last_parent = None;
    }

    /// Removes `rel` and everything below it. Absence is no error.
    ///
    /// # Errors
    /// Those of `unlinkat(2)` and of resolving the parents, except `ENOENT` and `ENOTDIR`.
    pub fn remove(&mut self, rel: &Path) -> io::Result<()> {
        let name = rel.file_name().ok_or(Errno::INVAL)?;
        let dir = rel.parent().unwrap_or(Path::new(""));
        self.forget();
        let parent = match self.open_dir(dir) {
            Ok(fd) => fd,
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(e),
        };
        remove_at(parent.as_fd(), name)
    }
}

/// Whether an error says that a path does not exist.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::NOENT.raw_os_error()) || code == Some(Errno::NOTDIR.raw_os_error())
}

/// Removes `name` in `parent`, with all that is below it. Absence is no error.
///
/// # Errors
/// Those of `unlinkat(2)`, `openat(2)` and `getdents(2)`.
pub fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e.into()),
    }
    let dir = match rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let subdirs = unlink_files(dir.as_fd())?;
    let mut descent = Descent::new(dir);
    // The directories on the way down: name, and what is still to be removed below.
    let mut stack = vec![(name.to_owned(), subdirs)];
    while let Some((_, subdirs)) = stack.last_mut() {
        if let Some(child) = subdirs.pop() {
            match descent.down(&child) {
                Ok(()) => {
                    let subdirs = unlink_files(descent.dir())?;
                    stack.push((child, subdirs));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
            continue;
        }
        let done = stack.pop().map(|(name, _)| name).unwrap_or_default();
        match stack.is_empty() {
            true => ignore_absent(rustix::fs::unlinkat(parent, &done, AtFlags::REMOVEDIR))?,
            false => {
                descent.up()?;
                ignore_absent(rustix::fs::unlinkat(descent.dir(), &done, AtFlags::REMOVEDIR))?;
            }
        }
    }
    Ok(())
}

/// Unlinks everything in a directory but directories, whose names it returns.
fn unlink_files(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut subdirs = Vec::new();
    for entry in names(dir)? {
        match rustix::fs::unlinkat(dir, &entry, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => subdirs.push(entry),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(subdirs)
}

/// A place in a tree that may be deeper than a process may have descriptors, or a path bytes: it
/// holds one descriptor, and goes up by `..`, where it must find the directory that it came from.
#[derive(Debug)]
pub(crate) struct Descent {
    dir: OwnedFd,
    /// Device and inode of the directories above.
    above: Vec<(u64, u64)>,
}

impl Descent {
    /// Begins at a directory.
    pub fn new(dir: OwnedFd) -> Self {
        Descent { dir, above: Vec::new() }
    }

    /// The directory it is at.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Goes into a directory, not through a link.
    pub fn down(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let child = rustix::fs::openat(&self.dir, name, DIR_FLAGS, Mode::empty())?;
        let st = rustix::fs::fstat(&self.dir)?;
        self.above.push((st.st_dev, st.st_ino));
        self.dir = child;
        Ok(())
    }

    /// Goes back up; `ESTALE` when somebody moved the directory meanwhile.
    pub fn up(&mut self) -> rustix::io::Result<()> {
        let parent = rustix::fs::openat(&self.dir, c"..", DIR_FLAGS, Mode::empty())?;
        let st = rustix::fs::fstat(&parent)?;
        if self.above.pop() != Some((st.st_dev, st.st_ino)) {
            return Err(Errno::STALE);
        }
        self.dir = parent;
        Ok(())
    }
}

fn ignore_absent(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The names in a directory, without `.` and `..`, in the order of the directory.
///
/// # Errors
/// Those of `openat(2)` and `getdents(2)`.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes != b"." && bytes != b".." {
            names.push(OsStr::from_bytes(bytes).to_owned());
        }
    }
    Ok(names)
}

/// A path that leads to `name` in `dir` for calls that have no `*at` form.
pub fn through_fd(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(name);
    path
}

/// The type of `name` in `dir`, `None` when it is absent.
///
/// # Errors
/// Those of `fstatat(2)`.
pub fn type_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(st) => Ok(Some(FileType::from_raw_mode(st.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Why a path of an archive is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsafePath {
    /// It begins at `/`.
    #[error("the path is absolute")]
    Absolute,
    /// It has a `..` component.
    #[error("the path has a `..` in it")]
    ParentDir,
}

/// `path` without `.` components; empty for the root itself.
///
/// # Errors
/// [`UnsafePath`] when the path could lead outside.
pub fn clean(path: &Path) -> Result<PathBuf, UnsafePath> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(UnsafePath::ParentDir),
            Component::RootDir | Component::Prefix(_) => return Err(UnsafePath::Absolute),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_refuses_what_leads_outside() {
        assert_eq!(clean(Path::new("./a//b/./c/")), Ok(PathBuf::from("a/b/c")));
        assert_eq!(clean(Path::new("./")), Ok(PathBuf::new()));
        assert_eq!(clean(Path::new("/etc/passwd")), Err(UnsafePath::Absolute));
        assert_eq!(clean(Path::new("a/../../b")), Err(UnsafePath::ParentDir));
    }

    #[test]
    fn a_link_planted_as_a_parent_is_not_followed() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let root = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc")).expect("symlink");
        let mut beneath = Beneath::open(root.path()).expect("open");
        let error = beneath.parent(Path::new("etc/passwd")).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(beneath.remove(Path::new("etc/passwd")).is_err());
    }

    #[test]
    fn remove_takes_a_deep_tree_and_leaves_link_targets() {
        let keep = tempfile::tempdir().expect("temporary directory");
        std::fs::write(keep.path().join("file"), b"kept").expect("write");
        let root = tempfile::tempdir().expect("temporary directory");
        let mut deep = root.path().join("top");
        for _ in 0..300 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).expect("mkdir");
        std::fs::write(deep.join("leaf"), b"x").expect("write");
        std::os::unix::fs::symlink(keep.path(), root.path().join("top/link")).expect("symlink");
        let mut beneath = Beneath::open(root.path()).expect("open");
        beneath.remove(Path::new("top")).expect("remove");
        assert!(!root.path().join("top").exists());
        assert!(keep.path().join("file").exists());
        beneath.remove(Path::new("top")).expect("absence is no error");
    }
}
