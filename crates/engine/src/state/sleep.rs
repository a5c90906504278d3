//! How much of its time limit a blocked call has used.
//!
//! The kernel knows when a sleep ends and does not tell. What can be seen is when the thread left
//! its processor, which is when the call began to wait: looked up just before the freeze for every
//! thread in such a call, and believed only if the thread has not run since (it made exactly the
//! one switch into our stop). A thread that has run since began its wait within the last moments.

use std::collections::HashMap;
use std::time::Instant;

use arctern_sys::Pid;
use arctern_sys::proc::wait::{self, BlockedCall, Scheduling};
use arctern_sys::proc::{self, stat};

/// Whether a call waits for a relative time that only the kernel knows once it waits.
pub fn is_relative_wait(call: &BlockedCall) -> bool {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_WAIT: u64 = 0;
    const FUTEX_COMMAND: u64 = 127;
    match call.number {
        libc::SYS_nanosleep => true,
        libc::SYS_clock_nanosleep => call.args[1] & TIMER_ABSTIME == 0,
        libc::SYS_poll => (call.args[2] as i32) > 0,
        libc::SYS_futex => call.args[1] & FUTEX_COMMAND == FUTEX_WAIT && call.args[3] != 0,
        libc::SYS_restart_syscall => true,
        _ => false,
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    pid: Pid,
    scheduling: Scheduling,
    cpu: usize,
}

/// The threads of a tree that were in such a call just before the freeze.
#[derive(Debug, Default)]
pub struct Sleepers {
    waiting: HashMap<Pid, Waiting>,
}

impl Sleepers {
    /// Looks at every thread of these processes. They still run.
    pub fn look(processes: &[Pid]) -> Self {
        let mut sleepers = Sleepers::default();
        for &pid in processes {
            for tid in proc::threads(pid).unwrap_or_default() {
                let Some(call) = wait::call(pid, tid).filter(is_relative_wait) else { continue };
                let stat = stat::read_thread(pid, tid);
                if let (Some(scheduling), Ok(stat)) = (wait::scheduling(pid, tid), stat) {
                    let waiting = Waiting { pid, scheduling, cpu: stat.processor };
                    sleepers.waiting.insert(tid, waiting);
                    tracing::trace!("thread {tid} waits in {call:?}");
                }
            }
        }
        sleepers
    }

    /// For how long, in nanoseconds, each thread had waited when it stopped; `stopped` is the
    /// moment of the freeze. A thread that is not in the result began to wait just before.
    pub fn waited(&self, stopped: Instant) -> HashMap<Pid, u64> {
        let mut clocks: HashMap<usize, Option<(u64, Instant)>> = HashMap::new();
        let mut waited = HashMap::new();
        for (tid, before) in &self.waiting {
            let now = wait::scheduling(before.pid, *tid);
            if now.is_none_or(|now| now.switches != before.scheduling.switches + 1) {
                continue;
            }
            let clock = clocks
                .entry(before.cpu)
                .or_insert_with(|| Some((wait::scheduler_clock(before.cpu)?, Instant::now())));
            if let Some((clock, read)) = clock {
                let since = clock.saturating_sub(before.scheduling.exec_start);
                let frozen = read.duration_since(stopped).as_nanos() as u64;
                waited.insert(*tid, since.saturating_sub(frozen));
            }
        }
        waited
    }
}
