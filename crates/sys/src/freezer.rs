//! The cgroup freezer: all tasks of a group and of those below stop, and stay stopped whoever dies.
//!
//! Version 2: `cgroup.freeze` and the `frozen` line of `cgroup.events`, whose change is told by
//! inotify (Documentation/admin-guide/cgroup-v2.rst). Version 1: `freezer.state`
//! (admin-guide/cgroup-v1/freezer-subsystem.rst), which tells nobody: the kernel works out whether
//! the group has become FROZEN only when the file is read.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Which file freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group with a freezer.
#[derive(Clone, Debug)]
pub struct Freezer {
    dir: PathBuf,
    version: Version,
}

impl Freezer {
    /// The freezer of the group at `dir`, None if that directory has none (the root group, another
    /// controller's hierarchy, no cgroup file system).
    pub fn of(dir: &Path) -> io::Result<Option<Freezer>> {
        for (file, version) in [("cgroup.freeze", Version::Two), ("freezer.state", Version::One)] {
            if dir.join(file).try_exists()? {
                return Ok(Some(Freezer { dir: dir.to_owned(), version }));
            }
        }
        Ok(None)
    }

    /// The group's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops every task of the group and waits until they are stopped.
    ///
    /// # Errors
    /// `TimedOut` if some task did not stop in time; the group is then told to go on.
    pub fn freeze(&self, timeout: Duration) -> io::Result<()> {
        self.request(true)?;
        match self.wait(true, timeout) {
            Ok(()) => Ok(()),
            Err(error) => {
                // What failed first is what the caller wants to know.
                self.request(false).ok();
                Err(error)
            }
        }
    }

    /// Lets the tasks go on, unless a group above is frozen too.
    pub fn thaw(&self) -> io::Result<()> {
        self.request(false)
    }

    /// Asks for the freeze or the thaw and does not wait for it.
    pub fn request(&self, frozen: bool) -> io::Result<()> {
        let (file, text) = match (self.version, frozen) {
            (Version::One, true) => ("freezer.state", "FROZEN"),
            (Version::One, false) => ("freezer.state", "THAWED"),
            (Version::Two, true) => ("cgroup.freeze", "1"),
            (Version::Two, false) => ("cgroup.freeze", "0"),
        };
        OpenOptions::new().write(true).open(self.dir.join(file))?.write_all(text.as_bytes())
    }

    /// Whether all tasks of the group are stopped by a freezer, this one or one above.
    pub fn is_frozen(&self) -> io::Result<bool> {
        match self.version {
            Version::One => {
                Ok(fs::read_to_string(self.dir.join("freezer.state"))?.trim() == "FROZEN")
            }
            Version::Two => Ok(fs::read_to_string(self.dir.join("cgroup.events"))?
                .lines()
                .any(|line| line == "frozen 1")),
        }
    }

    /// Waits until the group is frozen (or no longer), at most `timeout`.
    pub fn wait(&self, frozen: bool, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let notices = match self.version {
            Version::One => None,
            Version::Two => {
                let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
                inotify.add_watch(&self.dir.join("cgroup.events"), AddWatchFlags::IN_MODIFY)?;
                Some(inotify)
            }
        };
        while self.is_frozen()? != frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match &notices {
                Some(inotify) => {
                    // A millisecond more than asked for rather than a spin at the end.
                    let millis = left.as_millis().saturating_add(1).min(60_000) as u16;
                    let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut fds, PollTimeout::from(millis)) {
                        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                    match inotify.read_events() {
                        Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                // Reading the file is what brings the group to FROZEN; all that the tasks need is
                // the processor.
                None => std::thread::yield_now(),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_freezer_has_none() {
        assert!(Freezer::of(Path::new("/proc/self")).unwrap().is_none());
    }
}
