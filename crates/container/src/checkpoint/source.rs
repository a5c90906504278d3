//! The file that an archive is read from.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
