//! One command at a time changes a container.
//!
//! A lock file goes with its container. Who waited for a lock and gets one whose file has been removed
//! or replaced meanwhile has locked nothing, and begins anew.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The lock of a container; it ends with the value, and with the process however that ends.
#[derive(Debug)]
pub struct Lock {
    fd: OwnedFd,
}

impl Lock {
    /// Makes the file of a lock, unless it is there.
    pub fn make(path: &Path) -> Result<()> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))
            .map(drop)
            .map_err(|e| Error::io("create", path)(e.into()))
    }

    /// Waits for the lock, whose file must be there: it is not made anew while it is being removed.
    pub fn wait(path: &Path) -> Result<Lock> {
        loop {
            let fd = open(path)?;
            match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
                Ok(()) if is_at(&fd, path) => return Ok(Lock { fd }),
                Ok(()) | Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", path)(e.into())),
            }
        }
    }

    /// Takes the lock if nobody has it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>> {
        loop {
            let fd = open(path)?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&fd, path) => return Ok(Some(Lock { fd })),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(Error::io("lock", path)(e.into())),
            }
        }
    }

    /// The same lock for a child process: it is held until both have let it go.
    pub fn share(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(Error::system("share the lock of a container"))
    }
}

/// Whether an open file is still the one that has the name.
fn is_at(fd: &OwnedFd, path: &Path) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    match (rustix::fs::fstat(fd), rustix::fs::stat(path)) {
        (Ok(own), Ok(named)) => identity(own) == identity(named),
        _ => false,
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", path)(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_last_holder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        assert!(Lock::wait(&path).is_err(), "there is no file");
        Lock::make(&path).expect("make");
        let lock = Lock::wait(&path).expect("lock");
        assert!(Lock::try_take(&path).expect("try").is_none());
        let shared = lock.share().expect("share");
        drop(lock);
        assert!(Lock::try_take(&path).expect("try").is_none());
        drop(shared);
        assert!(Lock::try_take(&path).expect("try").is_some());
    }

    #[test]
    fn the_lock_of_a_removed_file_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        Lock::make(&path).expect("make");
        let lock = Lock::wait(&path).expect("lock");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| Lock::wait(&path).expect("wait"));
            std::fs::remove_file(&path).expect("remove");
            Lock::make(&path).expect("make anew");
            drop(lock);
            let got = waiter.join().expect("join");
            assert!(is_at(&got.fd, &path));
        });
    }
}
