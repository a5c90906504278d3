//! Waiting until a container is in some state.
//!
//! Commands change the database, the shim's checks change the health: both are files, and inotify
//! tells of every write to them. What the files say is read again then.

use std::path::Path;
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::config::InvalidOption;
use crate::error::{Error, Result};
use crate::health::HealthStatus;
use crate::host::Host;
use crate::state::{Record, Status};

/// A state to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Not running, however it got there.
    Stopped,
    /// Running.
    Running,
    /// Created, and never started.
    Created,
    /// Checkpointed.
    Checkpointed,
    /// The checks of its health say that it is well.
    Healthy,
    /// They say that it is not.
    Unhealthy,
    /// It does not exist any more.
    Removed,
}

impl FromStr for Condition {
    type Err = InvalidOption;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        const FORM: &str =
            "running, stopped, exited, created, checkpointed, healthy, unhealthy or removed";
        Ok(match text {
            "stopped" | "exited" => Condition::Stopped,
            "running" => Condition::Running,
            "created" | "configured" => Condition::Created,
            "checkpointed" => Condition::Checkpointed,
            "healthy" => Condition::Healthy,
            "unhealthy" => Condition::Unhealthy,
            "removed" => Condition::Removed,
            _ => return Err(InvalidOption::new("condition", text, FORM)),
        })
    }
}

impl Host {
    /// Waits until one of the conditions holds, and gives the container's exit code, or -1 if it
    /// has none. A container that is removed meanwhile ends the wait.
    pub fn wait_until(&mut self, name_or_id: &str, conditions: &[Condition]) -> Result<i32> {
        let record = self.find(name_or_id)?;
        let id = record.id().to_owned();
        let fail = || Error::system(format!("watch container {}", record.name()));
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(fail())?;
        let wal = self.paths.root.join("arctern.db-wal");
        let run = self.paths.container(&id).run;
        let written = inotify::WatchFlags::MODIFY;
        let renamed = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, &wal, written).map_err(fail())?;
        // After a boot the directory comes with the next start.
        self.make_dirs(&id)?;
        inotify::add_watch(&watch, &run, renamed).map_err(fail())?;
        loop {
            let now = match self.find(&id) {
                Ok(record) => record,
                Err(Error::NoSuchContainer(_)) => return Ok(record.exit_code.unwrap_or(-1)),
                Err(error) => return Err(error),
            };
            if conditions.iter().any(|condition| self.holds(*condition, &now)) {
                return Ok(now.exit_code.unwrap_or(-1));
            }
            self.sleep_on(&watch, &now, &run)?;
            // The log is written before the change can be read: who has written it is still at it.
            self.store.await_writer()?;
        }
    }

    fn holds(&self, condition: Condition, record: &Record) -> bool {
        match condition {
            Condition::Stopped => !matches!(record.status, Status::Running | Status::Restoring),
            Condition::Running => record.status == Status::Running,
            Condition::Created => record.status == Status::Created,
            Condition::Checkpointed => record.status == Status::Checkpointed,
            Condition::Healthy => self.health(record) == Some(HealthStatus::Healthy),
            Condition::Unhealthy => self.health(record) == Some(HealthStatus::Unhealthy),
            Condition::Removed => false,
        }
    }

    /// Sleeps until a file has changed or init has ended (its shim may be dead and write nothing).
    fn sleep_on(&self, watch: &impl std::os::fd::AsFd, record: &Record, run: &Path) -> Result<()> {
        let init = self.init(record);
        let mut fds = vec![PollFd::new(watch, PollFlags::IN)];
        fds.extend(init.as_ref().map(|init| PollFd::new(init, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::system(format!("watch {}", run.display()))(e)),
        }
        let mut buffer = [0u8; 4096];
        while rustix::io::read(watch, &mut buffer).is_ok_and(|n| n > 0) {}
        Ok(())
    }
}
