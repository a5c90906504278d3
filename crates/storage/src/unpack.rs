//! Writing the entries of a tar stream below a directory.
//!
//! Used for image layers (into an empty directory, OCI whiteouts become overlay whiteouts) and for
//! root file system changes (over what is there already). The archive is not trusted: paths go
//! through [`Beneath`], hard links are resolved there too, links are never followed, overlayfs's own
//! extended attributes are refused, and a member that replaces something of another type removes it
//! first. Ownership comes before extended attributes (`chown` drops file capabilities) and before
//! the mode (it drops set-user-id), times come last; those of directories when everything else is
//! done, because every entry made in them changes them.

mod devices;
mod error;
mod meta;
mod sparse;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

pub use self::devices::Devices;
pub use self::error::{UnpackError, UnpackErrorKind};
use self::error::{doing, resolving};
use self::meta::{Meta, drop_xattrs, link_target, times};
pub(crate) use self::meta::{PAX_XATTR, is_overlay_xattr};
use self::sparse::copy_sparse;
use crate::beneath::{self, Beneath, UnsafePath};
use crate::tarstream::{Member, TarStream};

/// Name prefix of an OCI whiteout.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// OCI marker of a directory that hides everything below it in lower layers.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// How often what somebody puts at a member's place is removed.
const TRIES: u32 = 100;

/// How whiteout names of OCI layers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// `.wh.NAME` becomes overlayfs's own whiteout (a 0/0 character device), the opaque marker an
    /// extended attribute: for layer directories.
    ToOverlay,
    /// They are left out: for the lowest layer, which has nothing to hide. Overlayfs would show a
    /// whiteout there as the device that it is.
    Dropped,
    /// They are ordinary names: for trees that are not layers.
    Literal,
}

impl Whiteouts {
    /// Those of a layer of an image.
    pub fn of_layer(lowest: bool) -> Self {
        if lowest { Whiteouts::Dropped } else { Whiteouts::ToOverlay }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Members written.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Extended attributes that the file system does not support.
    pub dropped_xattrs: u64,
}

/// Writes members below a directory. Memory grows with the number of directories only.
#[derive(Debug)]
pub struct Unpacker {
    root: Beneath,
    whiteouts: Whiteouts,
    devices: Devices,
    /// Bytes that were free at the beginning.
    free: u64,
    /// The last member of a directory counts.
    dir_times: BTreeMap<PathBuf, Timespec>,
    done: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker {
    /// Unpacks below `root`, which must exist.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn new(root: &Path, whiteouts: Whiteouts) -> io::Result<Self> {
        let space = rustix::fs::statvfs(root)?;
        Ok(Unpacker {
            root: Beneath::open(root)?,
            whiteouts,
            devices: Devices::All,
            free: space.f_bavail.saturating_mul(space.f_frsize),
            dir_times: BTreeMap::new(),
            done: Unpacked::default(),
            buffer: vec![0; 256 * 1024],
        })
    }

    /// Makes only these devices; another one is an error.
    #[must_use]
    pub fn with_devices(self, devices: Devices) -> Self {
        Unpacker { devices, ..self }
    }

    /// Writes every member of `archive`; [`Unpacker::finish`] must follow.
    ///
    /// # Errors
    /// The first member that could not be written; what was written before stays.
    pub fn unpack(&mut self, archive: &mut TarStream<impl Read>) -> Result<(), UnpackError> {
        let mut last = PathBuf::new();
        loop {
            match archive.next_member() {
                Ok(None) => return Ok(()),
                Ok(Some(member)) => {
                    self.member(&member, archive)?;
                    last = PathBuf::from(OsStr::from_bytes(&member.path));
                }
                Err(e) => {
                    return Err(UnpackError { member: last, kind: UnpackErrorKind::Read(e) });
                }
            }
        }
    }

    /// Writes one member, whose content comes from `content`.
    ///
    /// # Errors
    /// [`UnpackError`] naming the member.
    pub fn member(&mut self, member: &Member, content: &mut impl Read) -> Result<(), UnpackError> {
        self.write(member, content).map_err(|kind| UnpackError {
            member: PathBuf::from(OsStr::from_bytes(&member.path)),
            kind,
        })
    }

    fn write(&mut self, member: &Member, content: &mut impl Read) -> Result<(), UnpackErrorKind> {
        let path = beneath::clean(Path::new(OsStr::from_bytes(&member.path)))
            .map_err(UnpackErrorKind::UnsafePath)?;
        if self.whiteouts != Whiteouts::Literal && self.whiteout(&path)? {
            return Ok(());
        }
        let meta = Meta::read(member)?;
        self.done.entries += 1;
        match member.kind {
            EntryType::Directory => self.directory(path, &meta),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(&path, &meta, member, content)
            }
            EntryType::Link => self.hard_link(&path, link_target(member)?),
            EntryType::Symlink => self.symlink(&path, &meta, link_target(member)?),
            EntryType::Fifo => self.node(&path, &meta, FileType::Fifo, 0),
            EntryType::Char | EntryType::Block => {
                let bad = |field| UnpackErrorKind::BadField { field };
                let header = &member.header;
                let major = header.device_major().ok().flatten().ok_or(bad("devmajor"))?;
                let minor = header.device_minor().ok().flatten().ok_or(bad("devminor"))?;
                let ty = match member.kind {
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                self.devices.check(ty, major, minor)?;
                self.node(&path, &meta, ty, rustix::fs::makedev(major, minor))
            }
            other => Err(UnpackErrorKind::UnknownType(other.as_byte())),
        }
    }

    /// Applies an OCI whiteout; says whether `path` was one.
    fn whiteout(&mut self, path: &Path) -> Result<bool, UnpackErrorKind> {
        let Some(name) = path.file_name().map(OsStr::as_bytes) else {
            return Ok(false);
        };
        let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) else {
            return Ok(false);
        };
        if self.whiteouts == Whiteouts::Dropped {
            return Ok(true);
        }
        if name == WHITEOUT_OPAQUE {
            let (parent, _) = self.root.parent(path).map_err(resolving)?;
            rustix::fs::fsetxattr(parent, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(doing("mark the directory as opaque"))?;
            return Ok(true);
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(UnpackErrorKind::UnsafePath(UnsafePath::ParentDir));
        }
        let target = path.with_file_name(OsStr::from_bytes(hidden));
        self.create(&target, "make a whiteout", |dir, name| {
            rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
        })?;
        Ok(true)
    }

    fn directory(&mut self, path: PathBuf, meta: &Meta) -> Result<(), UnpackErrorKind> {
        // The root of the tree is there before anything else.
        let mut existed = path.as_os_str().is_empty();
        if !existed {
            let make = |dir: BorrowedFd<'_>, name: &OsStr| {
                rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))
            };
            let (parent, name) = self.root.parent(&path).map_err(resolving)?;
            match make(parent, name) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    existed = beneath::type_at(parent, name).map_err(resolving)?
                        == Some(FileType::Directory);
                    if !existed {
                        self.create(&path, "make the directory", make)?;
                    }
                }
                Err(e) => return Err(doing("make the directory")(e)),
            }
        }
        let dir = self.root.open_dir(&path).map_err(resolving)?;
        if existed {
            drop_xattrs(&dir, meta).map_err(doing("remove an extended attribute"))?;
        }
        self.set_meta_fd(dir.as_fd(), meta)?;
        self.dir_times.insert(path, meta.mtime);
        Ok(())
    }

    fn regular(
        &mut self,
        path: &Path,
        meta: &Meta,
        member: &Member,
        content: &mut impl Read,
    ) -> Result<(), UnpackErrorKind> {
        // Before anything is written, and before a bomb of zeros is unpacked.
        let size = member.size;
        let free = self.free.saturating_sub(self.done.bytes);
        if size > free {
            return Err(UnpackErrorKind::NoSpace { size, free });
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.create(path, "make the file", |dir, name| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
        })?;
        self.done.bytes += match &member.sparse {
            None => copy_sparse(content, file.as_fd(), 0, &mut self.buffer)?,
            Some((pieces, len)) => {
                for &(offset, len) in pieces {
                    let mut piece = content.take(len);
                    copy_sparse(&mut piece, file.as_fd(), offset, &mut self.buffer)?;
                }
                rustix::fs::ftruncate(&file, *len).map_err(doing("set the length"))?;
                *len
            }
        };
        self.set_meta_fd(file.as_fd(), meta)?;
        rustix::fs::futimens(&file, &times(meta.mtime)).map_err(doing("set the times"))
    }

    fn hard_link(&mut self, path: &Path, target: &[u8]) -> Result<(), UnpackErrorKind> {
        let target = beneath::clean(Path::new(OsStr::from_bytes(target)))
            .map_err(UnpackErrorKind::UnsafePath)?;
        if target == path {
            return Ok(());
        }
        let target_name =
            target.file_name().ok_or(UnpackErrorKind::BadField { field: "linkname" })?;
        let target_dir =
            self.root.open_dir(target.parent().unwrap_or(Path::new(""))).map_err(resolving)?;
        self.create(path, "make the hard link", |dir, name| {
            rustix::fs::linkat(&target_dir, target_name, dir, name, AtFlags::empty())
        })
    }

    fn symlink(&mut self, path: &Path, meta: &Meta, target: &[u8]) -> Result<(), UnpackErrorKind> {
        self.create(path, "make the symbolic link", |dir, name| {
            rustix::fs::symlinkat(OsStr::from_bytes(target), dir, name)
        })?;
        self.set_meta_at(path, meta, None)
    }

    fn node(
        &mut self,
        path: &Path,
        meta: &Meta,
        ty: FileType,
        dev: u64,
    ) -> Result<(), UnpackErrorKind> {
        self.create(path, "make the special file", |dir, name| {
            rustix::fs::mknodat(dir, name, ty, Mode::from_raw_mode(0o600), dev)
        })?;
        self.set_meta_at(path, meta, Some(Mode::from_raw_mode(meta.mode)))
    }

    /// Makes something new at `path`, in place of whatever is there.
    fn create<T>(
        &mut self,
        path: &Path,
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, UnpackErrorKind> {
        let mut tries = 0;
        loop {
            let (parent, name) = self.root.parent(path).map_err(resolving)?;
            match make(parent, name) {
                // Others may make it anew meanwhile, as a second `cp` to the same place.
                Err(Errno::EXIST) if tries < TRIES => tries += 1,
                other => return other.map_err(doing(action)),
            }
            self.root
                .remove(path)
                .map_err(|source| UnpackErrorKind::Io { action: "remove what is there", source })?;
        }
    }

    /// Ownership, extended attributes and mode of an open file or directory.
    fn set_meta_fd(&mut self, fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), UnpackErrorKind> {
        rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(doing("set the owner"))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode)).map_err(doing("set the mode"))?;
        for (name, value) in &meta.xattrs {
            let set = rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty());
            self.xattr_outcome(set)?;
        }
        Ok(())
    }

    /// The same for what cannot be opened: links and special files. Sets the times too.
    fn set_meta_at(
        &mut self,
        path: &Path,
        meta: &Meta,
        mode: Option<Mode>,
    ) -> Result<(), UnpackErrorKind> {
        let (parent, name) = self.root.parent(path).map_err(resolving)?;
        rustix::fs::chownat(
            parent,
            name,
            Some(Uid::from_raw(meta.uid)),
            Some(Gid::from_raw(meta.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(doing("set the owner"))?;
        if let Some(mode) = mode {
            // The name was made by us with O_EXCL semantics and is no link.
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
                .map_err(doing("set the mode"))?;
        }
        let full = beneath::through_fd(parent, name);
        let mut outcomes = Vec::new();
        for (key, value) in &meta.xattrs {
            outcomes.push(rustix::fs::lsetxattr(&full, key.as_str(), value, XattrFlags::empty()));
        }
        rustix::fs::utimensat(parent, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(doing("set the times"))?;
        outcomes.into_iter().try_for_each(|o| self.xattr_outcome(o))
    }

    fn xattr_outcome(&mut self, set: rustix::io::Result<()>) -> Result<(), UnpackErrorKind> {
        match set {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => {
                self.done.dropped_xattrs += 1;
                Ok(())
            }
            Err(e) => Err(doing("set an extended attribute")(e)),
        }
    }

    /// Removes `path` (relative to the root) with all below it; absence is no error.
    ///
    /// # Errors
    /// Those of [`Beneath::remove`].
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.root.remove(path)
    }

    /// Sets the times of directories. Nothing may be written below them afterwards.
    ///
    /// # Errors
    /// The directory whose times could not be set.
    pub fn finish(self) -> Result<Unpacked, UnpackError> {
        for (path, mtime) in &self.dir_times {
            let set = match self.root.open_dir(path) {
                Ok(dir) => rustix::fs::futimens(&dir, &times(*mtime)).map_err(io::Error::from),
                // A later member or a deletion took its place.
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
                Err(e) if e.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => Ok(()),
                Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(()),
                Err(e) => Err(e),
            };
            set.map_err(|source| UnpackError {
                member: path.clone(),
                kind: UnpackErrorKind::Io { action: "set the times", source },
            })?;
        }
        Ok(self.done)
    }
}
