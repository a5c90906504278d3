//! Starting a container again after its end, as its policy says.
//!
//! The end is complete first: written down, cleaned up, told to who waits. From then on the shim is
//! nobody's shim: it waits, takes the container's lock and starts it like any command would, unless
//! somebody stopped, started or removed the container meanwhile.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::Action;
use super::launch::{self, Launched};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::Lock;
use crate::paths::ContainerPaths;
use crate::policy::{Restart, Restarts};
use crate::state::{Record, Status};

/// Starts container `id` again, if its policy says so; None when it stays as it is.
pub(super) fn again(
    host: &mut Host,
    id: &str,
    code: i32,
    ran: Duration,
    restarts: &mut Restarts,
) -> Result<Option<Launched>> {
    let paths = host.paths.container(id);
    let may = |record: Option<Record>| {
        record.filter(|r| ended_by_itself(r.status) && !paths.stopped().exists())
    };
    let Some(record) = may(host.store.get(id)?) else { return Ok(None) };
    let config = &record.config;
    let policy = Restart { policy: config.restart_policy, retries: config.restart_retries };
    let Some(delay) = restarts.next(policy, code, ran) else { return Ok(None) };
    if !undisturbed(&paths, delay).unwrap_or(false) {
        return Ok(None);
    }
    // A container that is gone has no place for a lock.
    let Ok(_lock) = Lock::wait(&paths.lock()) else { return Ok(None) };
    if may(host.store.get(id)?).is_none() {
        return Ok(None);
    }
    let counter = paths.restarts();
    fs::write(&counter, restarts.count.to_string()).map_err(Error::io("write", &counter))?;
    launch::launch(host, id, Action::Start, None).map(Some)
}

/// Whether a container with this status has ended, and not because it was checkpointed or goes on on
/// another host.
fn ended_by_itself(status: Status) -> bool {
    status == Status::Exited
}

/// Waits; false when the container was stopped or removed meanwhile.
fn undisturbed(paths: &ContainerPaths, delay: Duration) -> io::Result<bool> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, &paths.dir, flags)?;
    let deadline = std::time::Instant::now() + delay;
    loop {
        if paths.stopped().exists() || !paths.dir.exists() {
            return Ok(false);
        }
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let time = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        match poll(&mut fds, Some(&time)) {
            Ok(0) => return Ok(true),
            Ok(_) => {
                let mut buffer = [0u8; 4096];
                let _ = rustix::io::read(&watch, &mut buffer);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_checkpointed_or_moved_is_not_started_again() {
        assert!(ended_by_itself(Status::Exited));
        for status in [
            Status::Created,
            Status::Running,
            Status::Restoring,
            Status::Migrating,
            Status::Checkpointed,
        ] {
            assert!(!ended_by_itself(status), "{status:?}");
        }
    }
}
