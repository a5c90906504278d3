//! What is in the way of a freeze for moments only: it is waited for while the tasks run.

use std::time::{Duration, Instant};

use arctern_sys::Pid;
use arctern_sys::proc;

use crate::error::{CaptureError, Refusal, Remedy, Subject};

/// How often something is tried when all that is in its way is a matter of moments.
pub(crate) const ATTEMPTS: u32 = 8;

/// For how long a tree that is being frozen waits for a child made by vfork. Most call execve within
/// a millisecond.
pub(crate) const VFORK_PATIENCE: Duration = Duration::from_millis(50);

/// Time between two looks at a task that waits for a child which lives longer.
const LOOK: Duration = Duration::from_millis(10);

/// Tries again, after some milliseconds, longer each time, while all refusals are of a moment. What
/// waits in vfork is waited for until `timeout` is over: nobody can stop it, and the kernel tells
/// nobody but its parent that a child calls execve.
pub(crate) fn patiently<T>(
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    let until = Instant::now() + timeout;
    for number in 1..ATTEMPTS {
        match attempt() {
            Err(CaptureError::Refused(list)) if list.iter().all(Refusal::is_momentary) => {
                tracing::debug!("attempt {number}: {} refusal(s) of a moment", list.len());
                std::thread::sleep(Duration::from_millis(1 << number));
                let waits = |refusal: &Refusal| waits_for_child(Pid(refusal.subject.pid));
                while Instant::now() < until && list.iter().any(waits) {
                    std::thread::sleep(LOOK);
                }
            }
            other => return other,
        }
    }
    attempt()
}

/// Whether a thread of the process stands in a call that makes a child, where it cannot be stopped.
pub(crate) fn waits_for_child(pid: Pid) -> bool {
    !waits(pid).is_empty()
}

/// The threads of a process that do, and how often each has been switched from: as long as that stays
/// the same, it is the same wait.
pub(crate) fn waits(pid: Pid) -> Vec<(Pid, String)> {
    const CALLS: [i64; 3] = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
    let waits = |tid: &Pid| {
        let deep = proc::stat::read(*tid).is_ok_and(|stat| stat.state == 'D');
        let call = || proc::read(*tid, "syscall").ok()?.split(' ').next()?.parse().ok();
        deep && call().is_some_and(|call| CALLS.contains(&call))
    };
    let switches = |tid: Pid| {
        let text = proc::read_single(tid, "status").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        (tid, line.unwrap_or_default().to_owned())
    };
    let threads = proc::threads(pid).unwrap_or_default();
    threads.into_iter().filter(waits).map(switches).collect()
}

/// What is said about such a process.
const IN_VFORK: &str = "it waits for a child that it made by vfork";

/// The refusal of such a process.
pub(crate) fn in_vfork(pid: Pid, comm: String) -> Refusal {
    Refusal {
        subject: Subject { pid: pid.0, comm, part: String::new() },
        cause: IN_VFORK.to_owned(),
        remedy: Remedy::try_again("when the child has called execve or ended"),
    }
}

/// Whether it is that refusal.
pub(crate) fn is_vfork(refusal: &Refusal) -> bool {
    refusal.cause == IN_VFORK
}

/// What is said about a process that has the memory of another; its number follows.
pub(crate) const SHARES_MEMORY: &str = "shares its memory with process";

/// Whether it is the refusal of such a process: between vfork and execve a child is one.
pub(crate) fn shares_memory(refusal: &Refusal) -> bool {
    refusal.cause.starts_with(SHARES_MEMORY)
}
