//! One command at a time changes a container.

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
    /// Waits for the lock.
    pub fn wait(path: &Path) -> Result<Lock> {
        let fd = open(path)?;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { fd }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", path)(e.into())),
            }
        }
    }

    /// Takes the lock if nobody has it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>> {
        let fd = open(path)?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { fd })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::io("lock", path)(e.into())),
        }
    }

    /// The same lock for a child process: it is held until both have let it go.
    pub fn share(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(Error::system("share the lock of a container"))
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::io("open", path)(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_last_holder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        let lock = Lock::wait(&path).expect("lock");
        assert!(Lock::try_take(&path).expect("try").is_none());
        let shared = lock.share().expect("share");
        drop(lock);
        assert!(Lock::try_take(&path).expect("try").is_none());
        drop(shared);
        assert!(Lock::try_take(&path).expect("try").is_some());
    }
}
