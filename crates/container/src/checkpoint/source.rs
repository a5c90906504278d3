//! The file that an archive is read from.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use arctern_image::archive::Limits;

use crate::error::{Error, Result};
use crate::host::Host;

/// Opens an archive. It is read more than once, so that it must be a regular file: a named pipe would
/// keep us waiting, and `/dev/zero` has no end.
pub fn open(path: &Path) -> Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(Error::io("open", path))?;
    let kind = file.metadata().map_err(Error::io("inspect", path))?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = if kind.is_dir() { "a directory" } else { "no regular file" };
    Err(Error::Invalid(format!("{} is {what}: an archive is a regular file", path.display())))
}

/// An archive that came as a stream. It is in a file without a name, which ends with this value or with
/// the process.
#[derive(Debug)]
pub struct Spooled {
    file: File,
}

impl Spooled {
    /// Where it can be read by this process, as often as that takes.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl Host {
    /// Reads an archive from a stream to its end: what it asks for has to be known before anything of it
    /// is unpacked, and its digests come last.
    ///
    /// # Errors
    /// The stream fails, or there is no room for it in the directory of containers.
    pub fn spool(&self, from: impl Read) -> Result<Spooled> {
        let root = &self.paths.root;
        let limit = limits(self)?.total_bytes;
        let mut file = unnamed(root).map_err(Error::io("make a file in", root))?;
        let copied = io::copy(&mut from.take(limit.saturating_add(1)), &mut file);
        match copied.map_err(Error::system("read the archive"))? {
            0 => Err(Error::Invalid("the stream is empty: there is no archive in it".to_owned())),
            bytes if bytes > limit => Err(Error::Invalid(format!(
                "the stream is longer than the {limit} bytes for which there is room"
            ))),
            _ => Ok(Spooled { file }),
        }
    }
}

/// A file that is gone when it is closed.
fn unnamed(dir: &Path) -> io::Result<File> {
    let flags = libc::O_TMPFILE;
    let opened = File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(dir);
    match opened {
        // Not every file system has files without a name.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let path = dir.join(format!(".arctern-{}-stream.tmp", std::process::id()));
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}

/// What an archive may unpack to: not more than there is room for in the directory of containers. It
/// is known before anything is unpacked, also of members that are only passed over.
pub fn limits(host: &Host) -> Result<Limits> {
    let root = &host.paths.root;
    let space = rustix::fs::statvfs(root).map_err(Error::system("ask for the free space"))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let most = Limits::default();
    Ok(Limits { total_bytes: most.total_bytes.min(free), ..most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_archives() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .expect("make a fifo");
        for path in [fifo.as_path(), Path::new("/dev/zero"), dir.path()] {
            assert!(open(path).is_err(), "{}", path.display());
        }
        std::fs::write(dir.path().join("file"), "x").expect("write");
        assert!(open(&dir.path().join("file")).is_ok());
    }
}
