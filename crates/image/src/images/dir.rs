//! A directory of images.
//!
//! Files are opened relative to the directory's descriptor and never through a link, since a
//! directory may have been unpacked from an archive that somebody else wrote. The one link that
//! counts is `parent`, which leads to the dump that this one was made on top of.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use prost::Message;

use super::{ImageError, ImageErrorKind, ImageKind, RecordReader, RecordWriter};

/// The name of the link to the parent dump.
pub const PARENT_LINK: &str = "parent";

/// An open directory of images.
#[derive(Debug)]
pub struct ImageDir {
    fd: OwnedFd,
    /// For errors only: files are opened through the descriptor.
    path: PathBuf,
}

impl ImageDir {
    /// Opens a directory that is there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        let path = path.as_ref();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|errno| io_error("open the directory", errno).at(path))?;
        Ok(Self::from_fd(fd, path))
    }

    /// Opens a directory and makes it first, for its owner only, if it is not there.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        let path = path.as_ref();
        match nix::unistd::mkdir(path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Self::open(path),
            Err(errno) => Err(io_error("make the directory", errno).at(path)),
        }
    }

    /// Takes over an open directory; `path` is for errors.
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> Self {
        Self { fd, path: path.into() }
    }

    /// The path under which it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it, for messages.
    pub fn path_of(&self, kind: ImageKind, id: u64) -> PathBuf {
        self.path.join(kind.file_name(id))
    }

    /// The dump that this one was made on top of, None if it stands alone.
    ///
    /// The link is followed wherever it leads, as CRIU does; an archive is unpacked only if its link
    /// stays inside.
    pub fn parent(&self) -> Result<Option<Self>, ImageError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = self.path.join(PARENT_LINK);
        match nix::fcntl::openat(&self.fd, PARENT_LINK, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self::from_fd(fd, path))),
            Err(Errno::ENOENT) if !self.has_parent_link() => Ok(None),
            Err(errno) => Err(io_error("open the parent dump", errno).at(path)),
        }
    }

    /// Says on top of which dump this one is made: a path relative to this directory, or none.
    pub fn set_parent(&self, parent: Option<&Path>) -> Result<(), ImageError> {
        let failed = |action| move |errno| io_error(action, errno).at(self.path.join(PARENT_LINK));
        match unlinkat(&self.fd, PARENT_LINK, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("replace it")(errno)),
        }
        match parent {
            Some(parent) => nix::unistd::symlinkat(parent, &self.fd, PARENT_LINK)
                .map_err(failed("link to the parent dump")),
            None => Ok(()),
        }
    }

    fn has_parent_link(&self) -> bool {
        nix::fcntl::readlinkat(&self.fd, PARENT_LINK).is_ok()
    }

    /// Writes a file of one record. A file of that name is replaced.
    pub fn write_one<M: Message>(
        &self,
        kind: ImageKind,
        id: u64,
        message: &M,
    ) -> Result<(), ImageError> {
        self.write_all(kind, id, [message])
    }

    /// Writes a file of records without payloads. A file of that name is replaced.
    pub fn write_all<'a, M: Message + 'a>(
        &self,
        kind: ImageKind,
        id: u64,
        messages: impl IntoIterator<Item = &'a M>,
    ) -> Result<(), ImageError> {
        let mut writer = self.writer(kind, id)?;
        for message in messages {
            writer.record(message)?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Begins a file of records. A file of that name is replaced.
    pub fn writer(&self, kind: ImageKind, id: u64) -> Result<RecordWriter<File>, ImageError> {
        let file = self.create_file(kind, id)?;
        RecordWriter::new(file, kind, &self.path_of(kind, id))
    }

    /// Writes a raw file.
    pub fn write_raw(&self, kind: ImageKind, id: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.create_file(kind, id)?
            .write_all(bytes)
            .map_err(|error| ImageErrorKind::io("write it")(error).at(self.path_of(kind, id)))
    }

    /// Makes an empty file, readable and writable, for its owner only: images hold the memory of
    /// whoever was captured. A file of that name is emptied.
    pub fn create_file(&self, kind: ImageKind, id: u64) -> Result<File, ImageError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        self.open_at(&kind.file_name(id), flags)
            .map_err(|errno| io_error("create it", errno).at(self.path_of(kind, id)))
    }

    /// The only record of a file that must be there.
    pub fn read_one<M: Message + Default>(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<M, ImageError> {
        self.read_optional(kind, id)?
            .ok_or_else(|| ImageErrorKind::Missing.at(self.path_of(kind, id)))
    }

    /// The only record of a file, None if there is no file.
    pub fn read_optional<M: Message + Default>(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<Option<M>, ImageError> {
        match self.reader(kind, id)? {
            Some(mut reader) => reader.required().map(Some),
            None => Ok(None),
        }
    }

    /// All records of a file without payloads; empty if there is no file.
    pub fn read_all<M: Message + Default>(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<Vec<M>, ImageError> {
        match self.reader(kind, id)? {
            Some(mut reader) => reader.all(),
            None => Ok(Vec::new()),
        }
    }

    /// Opens a file of records, None if there is no file.
    pub fn reader(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<Option<RecordReader<BufReader<File>>>, ImageError> {
        match self.open_file(kind, id)? {
            Some(file) => RecordReader::open(file, kind, &self.path_of(kind, id)).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a file for reading, None if it is not there.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub fn open_file(&self, kind: ImageKind, id: u64) -> Result<Option<File>, ImageError> {
        self.open_other(&kind.file_name(id))
    }

    /// Opens a file that is no image of CRIU's for reading, None if it is not there.
    ///
    /// # Errors
    /// As [`ImageDir::open_file`].
    pub fn open_other(&self, name: &str) -> Result<Option<File>, ImageError> {
        let path = || self.path.join(name);
        let file = match self.open_at(
            name,
            // Without O_NONBLOCK a fifo of that name would hang us.
            OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK,
        ) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(io_error("open it", errno).at(path())),
        };
        let metadata =
            file.metadata().map_err(|error| ImageErrorKind::io("look at it")(error).at(path()))?;
        if !metadata.is_file() {
            let error = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(ImageErrorKind::io("use it, since it is no regular file")(error).at(path()));
        }
        Ok(Some(file))
    }

    /// Removes a file if it is there: a dump into a used directory must not leave a stale file that
    /// it does not write itself.
    pub fn remove(&self, kind: ImageKind, id: u64) -> Result<(), ImageError> {
        let name = kind.file_name(id);
        match unlinkat(&self.fd, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(io_error("remove it", errno).at(self.path_of(kind, id))),
        }
    }

    /// The images that are there, by kind and id, in order; other files are left out.
    pub fn list(&self) -> Result<Vec<(ImageKind, u64)>, ImageError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.fd, ".", flags, Mode::empty())
            .map_err(|errno| io_error("list the directory", errno).at(&self.path))?;
        let mut found = Vec::new();
        for entry in dir.iter() {
            let entry =
                entry.map_err(|errno| io_error("list the directory", errno).at(&self.path))?;
            if let Some(image) = entry.file_name().to_str().ok().and_then(ImageKind::from_file_name)
            {
                found.push(image);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn open_at(&self, name: &(impl AsRef<OsStr> + ?Sized), flags: OFlag) -> Result<File, Errno> {
        let mut how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        if flags.contains(OFlag::O_CREAT) {
            how = how.mode(Mode::S_IRUSR | Mode::S_IWUSR);
        }
        Ok(File::from(openat2(&self.fd, name.as_ref(), how)?))
    }
}

impl AsFd for ImageDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn io_error(action: &'static str, errno: Errno) -> ImageErrorKind {
    ImageErrorKind::io(action)(errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{InventoryEntry, PstreeEntry};

    #[test]
    fn missing_files_are_empty_lists() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let none: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, 0).unwrap();
        assert!(none.is_empty());
        let error = images.read_one::<InventoryEntry>(ImageKind::Inventory, 0).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::Missing), "{error}");
    }

    #[test]
    fn a_link_in_place_of_an_image_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let name = ImageKind::Pstree.file_name(0);
        std::os::unix::fs::symlink(outside.path(), dir.path().join(name)).unwrap();
        assert!(images.create_file(ImageKind::Pstree, 0).is_err());
        assert!(images.open_file(ImageKind::Pstree, 0).is_err());
    }

    #[test]
    fn the_parent_link_leads_to_the_earlier_dump() {
        let dir = tempfile::tempdir().unwrap();
        let before = ImageDir::create(dir.path().join("before")).unwrap();
        let after = ImageDir::create(dir.path().join("after")).unwrap();
        assert!(after.parent().unwrap().is_none());
        let tree = PstreeEntry { pid: 7, ..Default::default() };
        before.write_one(ImageKind::Pstree, 0, &tree).unwrap();
        after.set_parent(Some(Path::new("../elsewhere"))).unwrap();
        after.set_parent(Some(Path::new("../before"))).unwrap();
        let parent = after.parent().unwrap().unwrap();
        assert_eq!(parent.read_one::<PstreeEntry>(ImageKind::Pstree, 0).unwrap(), tree);
        std::fs::remove_dir_all(dir.path().join("before")).unwrap();
        assert!(after.parent().is_err(), "a dangling link is an error");
    }

    #[test]
    fn images_are_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let tree = PstreeEntry::default();
        images.write_one(ImageKind::Pstree, 0, &tree).unwrap();
        images.write_raw(ImageKind::Pages, 3, b"x").unwrap();
        std::fs::write(dir.path().join("dump.log"), b"").unwrap();
        let both = [(ImageKind::Pstree, 0), (ImageKind::Pages, 3)];
        assert_eq!(images.list().unwrap(), both);
        images.remove(ImageKind::Pages, 3).unwrap();
        images.remove(ImageKind::Pages, 3).unwrap();
        assert_eq!(images.list().unwrap(), both[..1]);
    }
}
