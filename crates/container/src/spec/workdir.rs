//! The working directory of a container, made if the image does not have it.
//!
//! The image may have put links anywhere: every step is resolved beneath the root.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Makes `workdir` beneath `root` unless it is there.
pub fn ensure(root: &Path, workdir: &Path) -> Result<()> {
    make(root, workdir).map_err(|errno| {
        let path = workdir.display();
        Error::system(format!("make the working directory {path} in the container"))(errno)
    })
}

fn make(root: &Path, workdir: &Path) -> std::result::Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty())?;
    let open = |path: &Path| openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    match open(workdir) {
        Err(Errno::NOENT) => {}
        other => return other.map(drop),
    }
    let mut done = PathBuf::from("/");
    for component in workdir.components() {
        let Component::Normal(name) = component else { continue };
        match mkdirat(open(&done)?, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => done.push(name),
            Err(errno) => return Err(errno),
        }
    }
    open(workdir).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_made_beneath_the_root() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("root");
        std::os::unix::fs::symlink("/real", root.join("link")).expect("link");
        std::fs::create_dir(root.join("real")).expect("real");
        ensure(&root, Path::new("/a/b/c")).expect("made");
        assert!(root.join("a/b/c").is_dir());
        ensure(&root, Path::new("/link/x")).expect("through a link");
        assert!(root.join("real/x").is_dir());
        std::fs::write(root.join("file"), "").expect("file");
        assert!(ensure(&root, Path::new("/file/x")).is_err());
    }
}
