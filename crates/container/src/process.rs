//! A process that is named by pid and start time, so that a reused pid is not mistaken for it.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process as it is written down: the pid alone does not say who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Process id as the host sees it.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

impl ProcessId {
    /// The identity of a running process; None when there is none with this pid.
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessId> {
        stat(pid).map(|s| ProcessId { pid, start: s.start })
    }

    /// Opens the process, if it is still this one and not a zombie.
    #[must_use]
    pub fn open(&self) -> Option<ProcessHandle> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The descriptor is open before the start time is read: what is read belongs to it, or the
        // process is gone and its pidfd says so.
        let stat = stat(self.pid)?;
        (stat.start == self.start && !stat.dead).then_some(ProcessHandle { fd })
    }

    /// Whether the process is still running.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.open().is_some()
    }
}

/// An open process.
#[derive(Debug)]
pub struct ProcessHandle {
    fd: OwnedFd,
}

impl ProcessHandle {
    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    /// Waits for the end of the process, at most `timeout` (None: for ever); says whether it ended.
    pub fn wait(&self, timeout: Option<std::time::Duration>) -> Result<bool, Errno> {
        let deadline = timeout.map(|t| std::time::Instant::now() + t);
        loop {
            let left = deadline.map(|d| {
                let left = d.saturating_duration_since(std::time::Instant::now());
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl std::os::fd::AsFd for ProcessHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The name and the parent of a running process.
pub(crate) fn name_and_parent(pid: i32) -> Option<(String, i32)> {
    stat(pid).map(|s| (s.name, s.parent))
}

struct Stat {
    name: String,
    parent: i32,
    start: u64,
    dead: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// State and start time out of `/proc/PID/stat`. The name in parentheses may hold anything, so the
/// fields are counted from its last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.split_at(text.rfind(')')?);
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = rest[1..].split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { name, parent, start, dead: matches!(state, "Z" | "X" | "x") })
}

/// The id of this boot: pids and start times of another boot mean nothing.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_hostile_name() {
        let line = "12 (a) S (b) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let stat = parse_stat(line).expect("parsed");
        assert_eq!((stat.start, stat.parent, stat.name.as_str()), (4711, 1, "a) S (b"));
        assert!(!stat.dead);
        assert!(parse_stat("12 (x").is_none());
        assert!(parse_stat("12 (x) R 1 2").is_none());
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_is_not() {
        let me = ProcessId::of(i32::try_from(std::process::id()).expect("pid")).expect("self");
        assert!(me.is_alive());
        let other = ProcessId { start: me.start + 1, ..me };
        assert!(!other.is_alive());
    }
}
