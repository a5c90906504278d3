//! The changes of a container's root file system: what is in overlayfs's upper directory.
//!
//! [`capture`] writes Podman's two files. `rootfs-diff.tar` has what was added or changed, with
//! everything a tar can say about a file. `deleted.files` is a JSON array of absolute paths: the
//! whiteouts (0/0 character devices), and for directories that hide the lower ones (opaque) each
//! entry hidden. Neither file is written when it would be empty. Paths that are not UTF-8 cannot be
//! in JSON: deleted ones travel in a pax global record of the tar, which others skip.
//!
//! It runs while the container is frozen, so it does nothing twice: one walk over the upper
//! directory, no look at the layers except where a directory is opaque.
//!
//! [`apply`] puts such changes into a mounted root, below which it stays whatever the archive says:
//! files first, then deletions, then the times of directories.
//!
//! Not captured: sockets (a restored program binds anew), overlayfs's own attributes, what is below
//! the excluded paths (mount points that the container engine itself made).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{self, Descent, UnsafePath};
use crate::pack::{PackError, Packed, Packer, stat_at};
use crate::tarstream::TarStream;
use crate::unpack::{UnpackError, Unpacked, Unpacker, Whiteouts};

/// Name of the archive of added and changed files.
pub const DIFF_FILE: &str = "rootfs-diff.tar";
/// Name of the list of deleted files.
pub const DELETED_FILE: &str = "deleted.files";
/// Key of the global record with one deleted path that is not UTF-8.
const DELETED_RECORD: &str = "ARCTERN.deleted";

/// Paths of a container that its engine sets up, and which are no changes of its own.
pub const DEFAULT_EXCLUDES: [&str; 8] = [
    "/dev",
    "/proc",
    "/sys",
    "/run/.containerenv",
    "/run/secrets",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];

/// Where the changes are.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Overlayfs's upper directory. Its overlay may be mounted.
    pub upper: &'a Path,
    /// The layers below, the topmost first.
    pub lowers: &'a [PathBuf],
    /// Absolute paths of the container that are left out, with all below them.
    pub excludes: &'a [PathBuf],
}

/// What was captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Members of the archive and bytes of their contents.
    pub packed: Packed,
    /// How many paths were deleted.
    pub deleted: usize,
    /// Sockets, which were left out.
    pub sockets: Vec<PathBuf>,
    /// Whether there is a `rootfs-diff.tar`.
    pub has_diff: bool,
    /// Whether there is a `deleted.files`.
    pub has_deleted: bool,
}

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

/// Changes that could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The root directory could not be opened.
    #[error("cannot open the root file system {path}")]
    Root {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A member of the archive.
    #[error("cannot restore the root file system's changes")]
    Unpack(#[from] UnpackError),
    /// The list of deleted files is no JSON array of paths.
    #[error("deleted.files is damaged")]
    List(#[from] serde_json::Error),
    /// A deleted path could lead out of the root.
    #[error("deleted path {path:?} is refused: {reason}")]
    UnsafePath {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: UnsafePath,
    },
    /// A path could not be deleted.
    #[error("cannot delete {path} from the root file system")]
    Delete {
        /// The path.
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
    let path = dir.join(DIFF_FILE);
    let mut walk =
        Walk::new(source, || File::create(&path).map(|f| BufWriter::with_capacity(1 << 20, f)));
    walk.run()?;
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

/// Writes all of `source` to `out` as one archive.
pub(crate) fn pack(source: &Source<'_>, out: impl Write) -> Result<Packed, CaptureError> {
    let mut out = Some(out);
    let mut walk = Walk::new(source, || out.take().ok_or(io::ErrorKind::BrokenPipe.into()));
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
    fn new(source: &'a Source<'a>, make: F) -> Self {
        let relative = |p: &PathBuf| p.strip_prefix("/").unwrap_or(p).to_owned();
        Walk {
            source,
            make,
            packer: None,
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
        let changed = !self.same_as_lower_root(&st);
        if changed || root.names.iter().any(|n| !self.excludes.contains(Path::new(n))) {
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
            if is_whiteout(&st) {
                self.delete(&path);
                continue;
            }
            let opaque = level.opaque;
            if self.append(descent.dir(), &name, &path, &st)?
                && FileType::from_raw_mode(st.st_mode) == FileType::Directory
            {
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
        if opaque {
            let present: BTreeSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
            let hidden = lower_names(self.source.lowers, &path)
                .map_err(|e| failure("list the layers at", &path, e))?;
            for name in hidden.iter().filter(|n| !present.contains(n.as_os_str())) {
                self.delete(&path.join(name));
            }
        }
        Ok(Level { path, names, opaque })
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

fn failure(action: &'static str, path: &Path, source: io::Error) -> CaptureError {
    PackError { action, path: path.to_owned(), source }.into()
}

fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Overlayfs marks a deleted name with a 0/0 character device.
fn is_whiteout(st: &Stat) -> bool {
    FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == 0
}

/// The names that the layers alone would show in a directory.
fn lower_names(lowers: &[PathBuf], path: &Path) -> io::Result<BTreeSet<OsString>> {
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

fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::fgetxattr(fd, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|len| value.get(..len) == Some(b"y"))
}

/// Reads `deleted.files`.
///
/// # Errors
/// Those of JSON.
pub fn parse_deleted(json: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    // Go writes an empty list as null.
    Ok(serde_json::from_slice::<Option<Vec<String>>>(json)?.unwrap_or_default())
}

/// Applies changes below `root`, usually a mounted overlay: the archive, if there is one, then the
/// deletions. On failure what was applied stays: the root is thrown away then.
///
/// # Errors
/// [`ApplyError`].
pub fn apply(
    diff: Option<&mut dyn Read>,
    deleted: &[String],
    root: &Path,
) -> Result<Unpacked, ApplyError> {
    let opened = |source| ApplyError::Root { path: root.to_owned(), source };
    let mut unpacker = Unpacker::new(root, Whiteouts::Literal).map_err(opened)?;
    let mut deletions: Vec<PathBuf> = deleted.iter().map(PathBuf::from).collect();
    if let Some(diff) = diff {
        let mut archive = TarStream::new(diff);
        unpacker.unpack(&mut archive)?;
        let records = archive.global_records().iter();
        let ours = records.filter(|(key, _)| key.starts_with(DELETED_RECORD));
        deletions.extend(ours.map(|(_, path)| PathBuf::from(OsStr::from_bytes(path))));
    }
    for path in deletions {
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let clean = beneath::clean(relative)
            .map_err(|reason| ApplyError::UnsafePath { path: path.clone(), reason })?;
        if clean.as_os_str().is_empty() {
            continue;
        }
        unpacker.remove(&clean).map_err(|source| ApplyError::Delete { path, source })?;
    }
    Ok(unpacker.finish()?)
}
