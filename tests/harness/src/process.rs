//! Processes that are waited for by descriptor, with a time limit and without polling.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Orphans of what the calling process starts become its children, so that it can wait for them.
pub fn become_reaper() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot become the reaper of orphans")
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Killed(i32),
}

/// A child or adopted child of this process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// The process with this pid, which must be there.
    pub fn open(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid).with_context(|| format!("{pid} is no pid"))?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("process {pid} is not there"))?;
        Ok(Self { pid, handle })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::pidfd_send_signal(&self.handle, signal)
            .with_context(|| format!("cannot signal process {}", self.pid()))
    }

    /// Waits for the end and reaps.
    pub fn wait(&self, limit: Duration) -> Result<End> {
        if !readable(&[self.handle.as_fd()], limit)?[0] {
            bail!("process {} did not end within {limit:?}", self.pid());
        }
        match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Exited(code),
                    (_, signal) => End::Killed(signal.unwrap_or(0)),
                })
            }
            Ok(None) => bail!("process {} ended and cannot be waited for", self.pid()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot wait for process {}", self.pid()))
            }
        }
    }
}

impl Process {
    /// Waits for the end and reaps if it is the caller's to reap; somebody else may have done so.
    pub fn gone(&self, limit: Duration) -> Result<()> {
        if !readable(&[self.handle.as_fd()], limit)?[0] {
            bail!("process {} did not end within {limit:?}", self.pid());
        }
        let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        Ok(())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Waits until one of the descriptors can be read (or its writers are gone); which ones.
pub fn readable(fds: &[rustix::fd::BorrowedFd<'_>], limit: Duration) -> Result<Vec<bool>> {
    let end = Instant::now() + limit;
    loop {
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut polled, Some(&left)) {
            Ok(_) => return Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot poll"),
        }
    }
}

/// Every process whose working directory lies below `dir`, except the caller.
pub fn processes_below(dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != rustix::process::getpid().as_raw_nonzero().get())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
        .collect()
}

/// Every process whose command line begins with `program` and contains `argument`.
pub fn with_argument(program: &str, argument: &str) -> Vec<i32> {
    let is_one = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.starts_with(program) && command.contains(argument)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

/// Reaps every child of this process that ends within the limit: orphans of a killed program are
/// this process's to reap, and hold their pids until then. So are their orphans.
pub fn reap_orphans(limit: Duration) {
    let mut reaped = true;
    while reaped {
        reaped = false;
        for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                reaped |= Process::open(pid).is_ok_and(|process| process.gone(limit).is_ok());
            }
        }
    }
}

/// Kills what `processes_below` finds, and reaps what is the caller's to reap.
pub fn kill_below(dir: &Path) {
    for pid in processes_below(dir) {
        if let Ok(process) = Process::open(pid) {
            let _ = process.signal(Signal::KILL);
            let _ = process.wait(Duration::from_secs(5));
        }
    }
}
