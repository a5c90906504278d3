//! What a blocked thread waits in and since when: `/proc/PID/task/TID/syscall` and `…/sched`.
//!
//! `sched` is for people (CONFIG_SCHED_DEBUG); without it nothing is known and callers do without.

use crate::Pid;

/// A system call in which a thread is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedCall {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Parses a `syscall` file; None for a running thread or one outside of a call.
pub fn parse_call(text: &str) -> Option<BlockedCall> {
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    (number >= 0).then_some(BlockedCall { number, args })
}

/// When a thread last left its processor, and how often it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// Clock of the processor's scheduler when the thread was last accounted, nanoseconds.
    pub exec_start: u64,
    /// Number of switches.
    pub switches: u64,
}

/// Parses a `sched` file.
pub fn parse_sched(text: &str) -> Option<Scheduling> {
    let value = |key: &str| {
        let line = text.lines().find(|l| l.split([':', ' ']).next() == Some(key))?;
        Some(line.rsplit(':').next()?.trim())
    };
    // Milliseconds with six decimals.
    let (whole, part) = value("se.exec_start")?.split_once('.')?;
    let exec_start =
        whole.parse::<u64>().ok()?.checked_mul(1_000_000)? + part.parse::<u64>().ok()?;
    Some(Scheduling { exec_start, switches: value("nr_switches")?.parse().ok()? })
}

/// Reads the call in which a thread is blocked.
pub fn call(pid: Pid, tid: Pid) -> Option<BlockedCall> {
    parse_call(&super::read_single(pid, &format!("task/{tid}/syscall")).ok()?)
}

/// Reads the scheduling of a thread.
pub fn scheduling(pid: Pid, tid: Pid) -> Option<Scheduling> {
    parse_sched(&super::read(pid, &format!("task/{tid}/sched")).ok()?)
}

/// The clock of a processor's scheduler now, in which [`Scheduling::exec_start`] counts. The calling
/// thread visits that processor for a moment.
pub fn scheduler_clock(cpu: usize) -> Option<u64> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};
    use nix::unistd::{Pid as NixPid, gettid};
    let this = NixPid::from_raw(0);
    let before = sched_getaffinity(this).ok()?;
    let mut there = CpuSet::new();
    there.set(cpu).ok()?;
    sched_setaffinity(this, &there).ok()?;
    // Leaving the processor brings the account up to date.
    let _ = sched_yield();
    let me = Pid(std::process::id() as i32);
    let clock = scheduling(me, Pid(gettid().as_raw())).map(|s| s.exec_start);
    let _ = sched_setaffinity(this, &before);
    clock
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread() {
        let text = "230 0x0 0x0 0x7ffc49ce91e0 0x7ffc49ce9220 0x0 0x0 0x7ffc49ce91c8 0x7fd8\n";
        let call = parse_call(text).unwrap();
        assert_eq!((call.number, call.args[2]), (230, 0x7ffc_49ce_91e0));
        assert_eq!(parse_call("running\n"), None);
        assert_eq!(parse_call("-1 0x7ffc 0x7fd8\n"), None);
    }

    #[test]
    fn times_of_the_scheduler() {
        let text = "sleep (7976, #threads: 1)\n---\nse.exec_start      :    2233038.675861\n\
                    se.vruntime   :   45779.584443\nnr_switches     :     12\n\
                    nr_voluntary_switches   :   3\n";
        let parsed = parse_sched(text).unwrap();
        assert_eq!(parsed, Scheduling { exec_start: 2_233_038_675_861, switches: 12 });
    }

    #[test]
    fn the_clock_goes_forward() {
        let Some(first) = scheduler_clock(0) else {
            println!("skipped: no /proc/PID/sched on this kernel");
            return;
        };
        assert!(scheduler_clock(0).unwrap() >= first);
    }
}
