//! A file that appears under its name only when it is complete and on disk.
//!
//! Where a file needs a name meanwhile, its writer has it locked (flock), so that [`sweep`] knows what
//! is of a writer that was killed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::ArchiveError;

/// Names of files that are being written.
const PREFIX: &str = ".arctern-";
const SUFFIX: &str = ".tmp";

/// Removes the unfinished archives of killed writers from a directory; how many there were. A
/// directory that is not there has none.
///
/// # Errors
/// The kernel's, when the directory cannot be read or a file cannot be removed.
pub fn sweep(directory: &Path) -> io::Result<usize> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(fd) = open(&path, flags, Mode::empty()) else { continue };
        if File::from(fd).try_lock().is_ok() {
            std::fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A file being written. Dropped before [`Target::publish`] it leaves nothing behind; a process that
/// is killed leaves nothing either where the file system has files without a name (O_TMPFILE: ext4,
/// xfs, btrfs, tmpfs), else one file whose name begins with a dot.
#[derive(Debug)]
pub struct Target {
    directory: File,
    name: OsString,
    path: PathBuf,
    file: File,
    /// The name that the file has for now, if it has one.
    temporary: Option<OsString>,
}

impl Target {
    /// Makes the file, readable by its owner only, in the directory of `path`.
    ///
    /// # Errors
    /// The directory cannot be written, or `path` is something else than a file.
    pub fn create(path: &Path) -> Result<Self, ArchiveError> {
        Self::create_with(path, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// As [`Target::create`], readable by whom the umask lets.
    ///
    /// # Errors
    /// As [`Target::create`].
    pub fn create_for_all(path: &Path) -> Result<Self, ArchiveError> {
        Self::create_with(path, Mode::from_bits_truncate(0o666))
    }

    fn create_with(path: &Path, mode: Mode) -> Result<Self, ArchiveError> {
        let path = &Self::replaceable(path)
            .map_err(ArchiveError::io("write the archive", path.display()))?;
        let Some(name) = path.file_name() else {
            let error = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(ArchiveError::io("write the archive", path.display())(error));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty())
            .map_err(ArchiveError::io("open the directory", parent.display()))?;
        let mut target = Self {
            directory: File::from(directory),
            name: name.to_owned(),
            path: path.to_owned(),
            file: File::open("/dev/null")
                .map_err(ArchiveError::io::<io::Error>("open", "/dev/null"))?,
            temporary: None,
        };
        target.open_file(mode).map_err(ArchiveError::io("create a file for", path.display()))?;
        Ok(target)
    }

    /// Where the file goes: through a link to another file, and never in place of a device.
    fn replaceable(path: &Path) -> io::Result<PathBuf> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => std::fs::canonicalize(path),
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is there and is no regular file",
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
            Err(error) => Err(error),
        }
    }

    fn open_file(&mut self, mode: Mode) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match openat(&self.directory, ".", flags | OFlag::O_TMPFILE, mode) {
            Ok(fd) => self.file = File::from(fd),
            // The file system has no files without a name.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {
                let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let (name, fd) =
                    self.with_free_name(|name| openat(&self.directory, name, flags, mode))?;
                self.file = File::from(fd);
                self.temporary = Some(name);
            }
            Err(errno) => return Err(errno.into()),
        }
        match self.file.try_lock() {
            // Who sweeps was faster.
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            // A file system without locks has it, too, and is not swept.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
        }
    }

    /// Calls `make` with names until one is free.
    fn with_free_name<T>(
        &self,
        make: impl Fn(&OsStr) -> Result<T, Errno>,
    ) -> io::Result<(OsString, T)> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{number}{SUFFIX}", std::process::id());
            let name = OsString::from(name);
            match make(&name) {
                Ok(made) => return Ok((name, made)),
                // A process of that number was killed before us.
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes the file to disk and gives it its name, in place of a file that has it. Returns its
    /// size in bytes.
    ///
    /// # Errors
    /// The kernel's; then nothing of it is left.
    pub fn publish(mut self) -> Result<u64, ArchiveError> {
        self.try_publish().map_err(ArchiveError::io("write", self.path.display()))
    }

    fn try_publish(&mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        let size = self.file.metadata()?.len();
        if self.temporary.is_none() {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |name: &OsStr| {
                linkat(AT_FDCWD, own.as_str(), &self.directory, name, AtFlags::AT_SYMLINK_FOLLOW)
            };
            match link(&self.name) {
                Ok(()) => {}
                // A name is not given in place of another file's, but changed.
                Err(Errno::EEXIST) => self.temporary = Some(self.with_free_name(link)?.0),
                Err(errno) => return Err(errno.into()),
            }
        }
        if let Some(temporary) = &self.temporary {
            renameat(
                &self.directory,
                temporary.as_os_str(),
                &self.directory,
                self.name.as_os_str(),
            )?;
            self.temporary = None;
        }
        self.directory.sync_all()?;
        Ok(size)
    }
}

impl io::Write for &Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.file).flush()
    }
}

impl io::Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut &*self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut &*self)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // There is nobody left to tell; the name says what the file is.
            let _ =
                unlinkat(self.directory.as_fd(), temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_name_appears_at_the_end_and_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.tar");
        std::fs::write(&path, b"old").unwrap();
        let mut target = Target::create(&path).unwrap();
        target.write_all(b"newer").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(target.publish().unwrap(), 5);
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["web.tar"]);
    }

    #[test]
    fn two_writers_of_one_name_do_not_mix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.tar");
        let mut one = Target::create_for_all(&path).unwrap();
        let mut two = Target::create_for_all(&path).unwrap();
        one.write_all(b"one").unwrap();
        two.write_all(b"second").unwrap();
        one.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        two.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(directory.path()), ["web.tar"]);
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut target = Target::create(&directory.path().join("web.tar")).unwrap();
        target.write_all(b"half").unwrap();
        drop(target);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_a_killed_writer_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in [".arctern-1-0.tmp", ".arctern-1-1.tmp", ".arctern-1-2", "web.tar"] {
            std::fs::write(path(name), b"x").unwrap();
        }
        let writer = File::open(path(".arctern-1-1.tmp")).unwrap();
        writer.lock().unwrap();
        assert_eq!(sweep(directory.path()).unwrap(), 1);
        assert_eq!(names(directory.path()), [".arctern-1-1.tmp", ".arctern-1-2", "web.tar"]);
        assert_eq!(sweep(&path("missing")).unwrap(), 0);
    }

    #[test]
    fn a_link_to_a_file_stays_and_a_device_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("web.tar"), directory.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink("web.tar", &link).unwrap();
        let mut target = Target::create(&link).unwrap();
        target.write_all(b"new").unwrap();
        target.publish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(Target::create(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_directory_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Target::create(directory.path()).is_err());
        assert!(Target::create(&directory.path().join("missing/web.tar")).is_err());
    }
}
