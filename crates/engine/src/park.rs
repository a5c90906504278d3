//! A tree that no tracer holds any more: it stands in a frozen control group.
//!
//! A tracer's death lets its tasks run, and a freezer's file says what it said. So whoever hands a
//! tree over to another host leaves it here first: until it is known which of the two copies lives,
//! nothing that dies can make this one run.

use std::io;
use std::os::fd::AsFd;

use arctern_sys::freezer::Freezer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{CaptureError, Subject};
use crate::tree::FrozenTask;

/// A frozen tree. Dropped, it stays as it is.
#[derive(Debug)]
#[must_use = "the tasks stay frozen until somebody thaws them"]
pub struct Parked {
    tasks: Vec<FrozenTask>,
    freezer: Freezer,
}

impl Parked {
    pub(crate) fn new(tasks: Vec<FrozenTask>, freezer: Freezer) -> Parked {
        Parked { tasks, freezer }
    }

    /// Lets the tasks go on.
    ///
    /// # Errors
    /// The group cannot be thawed: they stay frozen.
    pub fn resume(self) -> Result<(), CaptureError> {
        self.thaw()
    }

    /// Kills every task and waits until the kernel has taken them down. None runs another
    /// instruction: the signals wait for them before the thaw.
    ///
    /// # Errors
    /// A task cannot be killed, or the group cannot be thawed.
    pub fn kill(self) -> Result<(), CaptureError> {
        for task in &self.tasks {
            match task.pidfd.send_signal(libc::SIGKILL) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(task.failed("", "kill it")(e));
                }
                _ => {}
            }
        }
        self.thaw()?;
        for task in &self.tasks {
            // Readable when it has ended (pidfd_open(2)); its parent reaps it.
            let mut ended = [PollFd::new(task.pidfd.as_fd(), PollFlags::POLLIN)];
            while let Err(errno) = poll(&mut ended, PollTimeout::NONE) {
                if errno != Errno::EINTR {
                    return Err(task.failed("", "wait for its end")(errno.into()));
                }
            }
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), CaptureError> {
        let failed = |source: io::Error| CaptureError::Kernel {
            subject: Subject { pid: 0, comm: "the tree".to_owned(), part: String::new() },
            what: format!("thaw the group {}", self.freezer.dir().display()),
            source,
        };
        self.freezer.thaw().map_err(failed)
    }
}
