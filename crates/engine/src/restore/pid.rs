//! A pid that is about to be free.
//!
//! A task that was killed just now keeps its pid until its parent has reaped it. A pidfd tells when:
//! since kernel 6.9 it reports a hang-up then (kernel/pid.c, fs/pidfs.c); on older kernels the time
//! limit passes and the pid is tried once more.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use arctern_sys::Pid;
use arctern_sys::pidfd::PidFd;
use arctern_tracee::TraceeError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::RestoreError;

/// For how long a pid is waited for in all: whoever holds it longer than this is no dying task.
const LIMIT: Duration = Duration::from_millis(300);

/// Makes a task with a pid that somebody may hold for some moments more. `pid` is its number as the
/// controller would see it.
pub(crate) fn while_taken<T>(
    pid: i32,
    mut make: impl FnMut() -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let until = Instant::now() + LIMIT;
    loop {
        match make() {
            Err(e) if is_taken(&e) && Instant::now() < until => {
                let Ok(holder) = PidFd::open_task(Pid(pid)) else {
                    // It is free by now, or it is the id of a group or a session, which no
                    // descriptor stands for.
                    return make();
                };
                wait_for_end(&holder, until);
            }
            other => return other,
        }
    }
}

/// Waits until the task is reaped, or until the time is over.
fn wait_for_end(holder: &PidFd, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    // A hang-up is reported unasked; death alone (POLLIN) does not free the pid.
    let mut fds = [PollFd::new(holder.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
}

fn is_taken(error: &RestoreError) -> bool {
    let source = match error {
        RestoreError::Kernel { source, .. }
        | RestoreError::Tracee(TraceeError::Call { source, .. }) => source,
        _ => return false,
    };
    source.raw_os_error() == Some(libc::EEXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_free_when_its_task_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let holder = PidFd::open_task(Pid(child.id() as i32)).unwrap();
        holder.send_signal(libc::SIGKILL).unwrap();
        let reaper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            child.wait().unwrap();
            Instant::now()
        });
        wait_for_end(&holder, Instant::now() + Duration::from_secs(10));
        let freed = Instant::now();
        let reaped = reaper.join().unwrap();
        let early = reaped.saturating_duration_since(freed);
        let late = freed.saturating_duration_since(reaped);
        // The hang-up comes while the reaper is still on its way out of the kernel.
        assert!(early < Duration::from_millis(15), "{early:?} before the pid was free");
        assert!(late < Duration::from_secs(5), "{late:?} after the pid was free");
    }
}
