//! Scheduling parameters of a thread (sched_getattr(2), getpriority(2), sched(7)).

use std::io;

use crate::{Pid, check};

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority, 0 for the other policies.
    pub priority: u32,
}

/// `struct sched_attr`, its first version (linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    _size: u32,
    policy: u32,
    _flags: u64,
    _nice: i32,
    priority: u32,
    _times: [u64; 3],
}

/// Reads how the thread `tid` is scheduled.
pub fn read(tid: Pid) -> io::Result<Scheduling> {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` lives across the call and has the size that is passed along.
    check(unsafe {
        libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut attr, size_of::<SchedAttr>(), 0)
    })?;
    // The nice value of a real-time thread, to which it returns, is told by getpriority(2) alone; the
    // raw call gives 20 less the value.
    // SAFETY: getpriority takes two integers and touches no memory of ours.
    let less = check(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.0) })?;
    Ok(Scheduling { policy: attr.policy, nice: 20 - less as i32, priority: attr.priority })
}

/// Class and level of the thread's I/O (ioprio_get(2)), 0 if none was set.
pub fn io_priority(tid: Pid) -> io::Result<i32> {
    const IOPRIO_WHO_PROCESS: i32 = 1; // linux/ioprio.h
    // SAFETY: ioprio_get takes two integers and touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.0) })
        .map(|priority| priority as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_proc() {
        let me = Pid(std::process::id() as i32);
        let stat = crate::proc::stat::read(me).unwrap();
        let expected =
            Scheduling { policy: stat.policy, nice: stat.nice, priority: stat.rt_priority };
        assert_eq!(read(me).unwrap(), expected);
    }
}
