//! Writing the changes of a container's root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Captured, DELETED_FILE, DELETED_RECORD, DIFF_FILE, Source};
use crate::beneath::{self, Descent};
use crate::pack::{PackError, Packed, Packer, stat_at};

/// Changes that could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A file of the upper directory.
    #[error("cannot capture the root file system's changes")]
    File(#[from] PackError),
    /// A directory was renamed by overlayfs's reference, which only another mount option makes.
    #[error(
        "directory {0} was renamed by redirection (mount option redirect_dir), which cannot be captured"
    )]
    Redirected(PathBuf),
    /// One of the files to write.
    #[error("cannot write {path}")]
    Write {
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Captures the changes into `dir`: [`DIFF_FILE`] and [`DELETED_FILE`], each only if it has
/// something to say. Neither is synced to disk: they go into an archive that is.
///
/// # Errors
/// [`CaptureError`]; the files may then be there in part.
pub fn capture(source: &Source<'_>, dir: &Path) -> Result<Captured, CaptureError> {
    Early::default().finish(source, dir)
}

/// Large files that were copied while the container was still running, so that its freeze need not
/// last as long as that takes.
///
/// Each is remembered with its identity, size and time of last change. In the freeze those that
/// are still the same are done; the others are written again, further back in the archive, where
/// the later member replaces the earlier one. A file is synced between being looked at and being
/// read: then the kernel notices every later write to it, one through a mapping included, and
/// changes its time. File systems in memory do not do that: nothing is copied early there.
#[derive(Default)]
pub struct Early {
    packer: Option<Packer<BufWriter<File>>>,
    copied: BTreeMap<PathBuf, Version>,
}

impl Early {
    /// Copies files of at least `minimum` bytes. What changes under the walk only makes it copy
    /// less, or nothing.
    ///
    /// # Errors
    /// [`CaptureError::Write`] when an attempt that is given up cannot be removed.
    pub fn begin(source: &Source<'_>, dir: &Path, minimum: u64) -> Result<Self, CaptureError> {
        let path = dir.join(DIFF_FILE);
        let mut walk = Walk::new(source, || create(&path), Pass::Early { minimum });
        let walked = match notes_every_write(source.upper) {
            true => walk.run(),
            false => Ok(()),
        };
        match walked {
            Ok(()) => Ok(Early { packer: walk.packer, copied: walk.known }),
            Err(error) => {
                tracing::debug!("nothing is copied before the freeze: {error}");
                match std::fs::remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        Err(CaptureError::Write { path, source })
                    }
                    _ => Ok(Early::default()),
                }
            }
        }
    }

    /// Ends the archive of what was copied and gives it, to be brought ahead of the rest: None if there is
    /// nothing. [`Early::finish`] begins another one then, which goes over this one where both have a
    /// path. `dir` is that of [`Early::begin`].
    ///
    /// # Errors
    /// [`CaptureError::Write`].
    pub fn part(&mut self, dir: &Path) -> Result<Option<File>, CaptureError> {
        let Some(packer) = self.packer.take() else { return Ok(None) };
        let path = dir.join(DIFF_FILE);
        let part = || -> io::Result<File> {
            packer.finish()?.flush()?;
            let file = File::open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        };
        part().map(Some).map_err(|source| CaptureError::Write { path: path.clone(), source })
    }

    /// Captures the rest, while the container is frozen. `source` and `dir` are those of
    /// [`Early::begin`].
    ///
    /// # Errors
    /// As [`capture`].
    pub fn finish(self, source: &Source<'_>, dir: &Path) -> Result<Captured, CaptureError> {
        let path = dir.join(DIFF_FILE);
        let mut walk = Walk::new(source, || create(&path), Pass::Frozen);
        walk.packer = self.packer;
        walk.known = self.copied;
        walk.run()?;
        walk.delete_vanished()?;
        let (mut captured, deleted) = walk.finish(&path)?;
        if !deleted.is_empty() {
            let path = dir.join(DELETED_FILE);
            let write = |e: io::Error| CaptureError::Write { path: path.clone(), source: e };
            let json = serde_json::to_vec(&deleted).map_err(|e| write(e.into()))?;
            std::fs::write(&path, json).map_err(write)?;
            captured.has_deleted = true;
        }
        Ok(captured)
    }

    /// How many files were copied.
    pub fn files(&self) -> usize {
        self.copied.len()
    }
}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Early").field("copied", &self.copied).finish_non_exhaustive()
    }
}

fn create(path: &Path) -> io::Result<BufWriter<File>> {
    File::create(path).map(|file| BufWriter::with_capacity(1 << 20, file))
}

/// Whether the file system changes a file's time at the first write through a mapping after a sync.
fn notes_every_write(dir: &Path) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC`, include/uapi/linux/magic.h.
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::statfs(dir).is_ok_and(|fs| !IN_MEMORY.contains(&fs.f_type))
}

/// What tells that a file is still as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    file: (u64, u64),
    size: i64,
    changed: (i64, u64),
}

impl Version {
    fn of(st: &Stat) -> Self {
        Version {
            file: (st.st_dev, st.st_ino),
            size: st.st_size,
            changed: (st.st_ctime, st.st_ctime_nsec),
        }
    }
}

/// Whether a file's last change is long enough ago that the next one gets another time: the
/// kernel's clock for files ticks every 4 or 10 ms.
fn is_settled(st: &Stat) -> bool {
    const TICKS: i128 = 30_000_000;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let nanos = |seconds: i64, nanos: i128| i128::from(seconds) * 1_000_000_000 + nanos;
    nanos(now.tv_sec, i128::from(now.tv_nsec)) - nanos(st.st_ctime, i128::from(st.st_ctime_nsec))
        > TICKS
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Copying large files while everything may change.
    Early {
        /// In bytes.
        minimum: u64,
    },
    /// Capturing everything that is not known yet, while nothing changes.
    Frozen,
}

/// Writes all of `source` to `out` as one archive.
pub(crate) fn pack(source: &Source<'_>, out: impl Write) -> Result<Packed, CaptureError> {
    let mut out = Some(out);
    let mut walk =
        Walk::new(source, || out.take().ok_or(io::ErrorKind::BrokenPipe.into()), Pass::Frozen);
    walk.run()?;
    let (captured, _) = walk.finish(Path::new("the archive"))?;
    Ok(captured.packed)
}

/// The walk over the upper directory.
struct Walk<'a, W: Write, F: FnMut() -> io::Result<W>> {
    source: &'a Source<'a>,
    /// Makes the archive when the first member comes.
    make: F,
    packer: Option<Packer<W>>,
    pass: Pass,
    /// Files that are in the archive already, as they were then.
    known: BTreeMap<PathBuf, Version>,
    /// Directories that are in the archive already, above those files.
    announced: BTreeSet<PathBuf>,
    excludes: BTreeSet<PathBuf>,
    deleted: Vec<String>,
    deleted_bytes: Vec<OsString>,
    captured: Captured,
}

/// A directory that is being walked.
struct Level {
    path: PathBuf,
    names: Vec<OsString>,
    /// Nothing of the layers shows through: this directory or one above it is opaque.
    opaque: bool,
}

impl<'a, W: Write, F: FnMut() -> io::Result<W>> Walk<'a, W, F> {
    fn new(source: &'a Source<'a>, make: F, pass: Pass) -> Self {
        let relative = |p: &PathBuf| p.strip_prefix("/").unwrap_or(p).to_owned();
        Walk {
            source,
            make,
            packer: None,
            pass,
            known: BTreeMap::new(),
            announced: BTreeSet::new(),
            excludes: source.excludes.iter().map(relative).collect(),
            deleted: Vec::new(),
            deleted_bytes: Vec::new(),
            captured: Captured::default(),
        }
    }

    fn run(&mut self) -> Result<(), CaptureError> {
        let failed = |e: Errno| failure("open", self.source.upper, e.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(self.source.upper, flags, Mode::empty()).map_err(failed)?;
        let st = rustix::fs::fstat(&fd).map_err(failed)?;
        let root = self.level(fd.as_fd(), PathBuf::new(), false)?;
        let changed = !self.same_as_lower_root(&st)
            || root.names.iter().any(|n| !self.excludes.contains(Path::new(n)));
        if changed && self.pass == Pass::Frozen {
            // The root comes first: it exists wherever this is unpacked.
            self.append(fd.as_fd(), OsStr::new("."), Path::new(""), &st)?;
        }
        let mut descent = Descent::new(fd);
        let mut stack = vec![root];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.pop() else {
                let done = stack.pop();
                if let (Some(done), false) = (done, stack.is_empty()) {
                    descent.up().map_err(|e| failure("leave", &done.path, e.into()))?;
                }
                continue;
            };
            let path = level.path.join(&name);
            if self.excludes.contains(&path) {
                continue;
            }
            let st = match stat_at(descent.dir(), &name) {
                Ok(st) => st,
                // Removed while it was walked: only without a freeze.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failure("inspect", &path, e.into())),
            };
            let opaque = level.opaque;
            let enter = match self.pass {
                Pass::Early { minimum } => {
                    self.append_early(descent.dir(), &name, &path, &st, minimum)?
                }
                Pass::Frozen => self.append_frozen(descent.dir(), &name, &path, &st)?,
            };
            if enter {
                descent.down(&name).map_err(|e| failure("open", &path, e.into()))?;
                stack.push(self.level(descent.dir(), path, opaque)?);
            }
        }
        Ok(())
    }

    /// Reads a directory, and notes what it hides if it is opaque.
    fn level(
        &mut self,
        fd: BorrowedFd<'_>,
        path: PathBuf,
        above_opaque: bool,
    ) -> Result<Level, CaptureError> {
        let mut value = [0u8; 8];
        if rustix::fs::fgetxattr(fd, "trusted.overlay.redirect", &mut [0u8; 0][..]).is_ok() {
            return Err(CaptureError::Redirected(path));
        }
        let opaque = above_opaque
            || rustix::fs::fgetxattr(fd, "trusted.overlay.opaque", &mut value)
                .is_ok_and(|len| value.get(..len) == Some(b"y"));
        let mut names = beneath::names(fd).map_err(|e| failure("list", &path, e))?;
        // A stable order; reversed, because they are taken from the end.
        names.sort_unstable_by(|a, b| b.cmp(a));
        if opaque && self.pass == Pass::Frozen {
            let present: BTreeSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
            let hidden = lower_names(self.source.lowers, &path)
                .map_err(|e| failure("list the layers at", &path, e))?;
            for name in hidden.iter().filter(|n| !present.contains(n.as_os_str())) {
                self.delete(&path.join(name));
            }
        }
        Ok(Level { path, names, opaque })
    }

    /// Copies a large file; says whether this is a directory to go into.
    fn append_early(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        st: &Stat,
        minimum: u64,
    ) -> Result<bool, CaptureError> {
        let kind = FileType::from_raw_mode(st.st_mode);
        let large = u64::try_from(st.st_size).is_ok_and(|size| size >= minimum);
        if kind == FileType::RegularFile && large && st.st_nlink == 1 && is_settled(st) {
            let failed = |e: Errno| failure("sync", path, e.into());
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?;
            // After the look at it and before its content, see above.
            rustix::fs::fdatasync(&file).map_err(failed)?;
            self.announce_parents(path)?;
            self.append(dir, name, path, st)?;
            self.known.insert(path.to_owned(), Version::of(st));
        }
        Ok(kind == FileType::Directory)
    }

    /// Appends the directories above an early file: one may have taken the place of a file or link
    /// of the image. They come again, as they are then, in the freeze.
    fn announce_parents(&mut self, path: &Path) -> Result<(), CaptureError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.announced.contains(parent) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(self.source.upper, flags, Mode::empty())
            .map_err(|e| failure("open", self.source.upper, e.into()))?;
        let mut prefix = PathBuf::new();
        for component in parent.components() {
            let name = component.as_os_str();
            prefix.push(name);
            let next =
                open_dir(dir.as_fd(), name).map_err(|e| failure("open", &prefix, e.into()))?;
            if self.announced.insert(prefix.clone()) {
                let st = rustix::fs::fstat(&next);
                let st = st.map_err(|e| failure("inspect", &prefix, e.into()))?;
                self.append(dir.as_fd(), name, &prefix, &st)?;
            }
            dir = next;
        }
        self.announced.insert(prefix);
        Ok(())
    }

    /// Appends whatever it is unless it is known; says whether this is a directory to go into.
    fn append_frozen(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        st: &Stat,
    ) -> Result<bool, CaptureError> {
        if is_whiteout(st) {
            self.delete(path);
            return Ok(false);
        }
        if !self.known.is_empty() && self.known.remove(path) == Some(Version::of(st)) {
            return Ok(false);
        }
        Ok(self.append(dir, name, path, st)?
            && FileType::from_raw_mode(st.st_mode) == FileType::Directory)
    }

    /// Deletes what was copied early and is not there any more.
    fn delete_vanished(&mut self) -> Result<(), CaptureError> {
        let mut gone = BTreeSet::new();
        for path in std::mem::take(&mut self.known).into_keys() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mut dir = rustix::fs::open(self.source.upper, flags, Mode::empty())
                .map_err(|e| failure("open", self.source.upper, e.into()))?;
            let mut prefix = PathBuf::new();
            // The first part of the path that is missing: what is below it went with it.
            for component in path.components() {
                let name = component.as_os_str();
                prefix.push(name);
                match open_dir(dir.as_fd(), name) {
                    Ok(next) => dir = next,
                    Err(Errno::NOENT) => {
                        gone.insert(prefix);
                        break;
                    }
                    // Something else is there now, a whiteout or a file, and is captured as such.
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => break,
                    Err(e) => return Err(failure("open", &prefix, e.into())),
                }
            }
        }
        gone.iter().for_each(|path| self.delete(path));
        Ok(())
    }

    fn append(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        st: &Stat,
    ) -> Result<bool, CaptureError> {
        if FileType::from_raw_mode(st.st_mode) == FileType::Socket {
            self.captured.sockets.push(Path::new("/").join(path));
            return Ok(false);
        }
        let packer = self.packer()?;
        Ok(packer.append(dir, name, path, st)?)
    }

    fn packer(&mut self) -> Result<&mut Packer<W>, CaptureError> {
        if self.packer.is_none() {
            let out = (self.make)().map_err(|e| failure("make", Path::new(DIFF_FILE), e))?;
            self.packer = Some(Packer::new(out));
        }
        self.packer
            .as_mut()
            .ok_or_else(|| failure("make", Path::new(DIFF_FILE), io::ErrorKind::NotFound.into()))
    }

    fn delete(&mut self, path: &Path) {
        if self.excludes.contains(path) {
            return;
        }
        let absolute = Path::new("/").join(path).into_os_string();
        match absolute.into_string() {
            Ok(text) => self.deleted.push(text),
            Err(bytes) => self.deleted_bytes.push(bytes),
        }
    }

    /// Whether the upper root directory is as the image's: then it is no change.
    fn same_as_lower_root(&self, st: &Stat) -> bool {
        let Some(lower) = self.source.lowers.first() else { return false };
        let what = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_mtime, s.st_mtime_nsec);
        rustix::fs::stat(lower).is_ok_and(|l| what(&l) == what(st))
    }

    fn finish(mut self, path: &Path) -> Result<(Captured, Vec<String>), CaptureError> {
        if !self.deleted_bytes.is_empty() {
            let records: Vec<(String, Vec<u8>)> = std::mem::take(&mut self.deleted_bytes)
                .into_iter()
                .enumerate()
                .map(|(i, path)| (format!("{DELETED_RECORD}.{i}"), path.into_vec()))
                .collect();
            self.captured.deleted += records.len();
            let write = |e| CaptureError::Write { path: path.to_owned(), source: e };
            self.packer()?.append_global(&records).map_err(write)?;
        }
        if let Some(packer) = self.packer.take() {
            self.captured.packed = packer.packed();
            self.captured.has_diff = true;
            let done = packer.finish().and_then(|mut out| out.flush());
            done.map_err(|source| CaptureError::Write { path: path.to_owned(), source })?;
        }
        self.captured.deleted += self.deleted.len();
        Ok((self.captured, self.deleted))
    }
}

pub(super) fn failure(action: &'static str, path: &Path, source: io::Error) -> CaptureError {
    PackError { action, path: path.to_owned(), source }.into()
}

pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Overlayfs marks a deleted name with a 0/0 character device.
pub(super) fn is_whiteout(st: &Stat) -> bool {
    FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == 0
}

/// The names that the layers alone would show in a directory.
pub(super) fn lower_names(lowers: &[PathBuf], path: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut shown = BTreeSet::new();
    let mut hidden = BTreeSet::new();
    for lower in lowers {
        let mut dir = open_dir(rustix::fs::CWD, lower.as_os_str())?;
        let mut last = false;
        let mut here = true;
        for component in path.components() {
            let name = component.as_os_str();
            dir = match open_dir(dir.as_fd(), name) {
                Ok(fd) => {
                    last |= is_opaque(&fd);
                    fd
                }
                Err(Errno::NOENT) => {
                    here = false;
                    break;
                }
                // A file or a whiteout in the way hides the layers below it.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    (here, last) = (false, true);
                    break;
                }
                Err(e) => return Err(e.into()),
            };
        }
        if here {
            for name in beneath::names(dir.as_fd())? {
                if hidden.contains(&name) {
                    continue;
                }
                match is_whiteout(&stat_at(dir.as_fd(), &name)?) {
                    true => hidden.insert(name),
                    false => shown.insert(name),
                };
            }
        }
        if last {
            break;
        }
    }
    Ok(shown)
}

pub(super) fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::fgetxattr(fd, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|len| value.get(..len) == Some(b"y"))
}
