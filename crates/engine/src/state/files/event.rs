//! Descriptors that are made of a number or two: eventfd, signalfd, timerfd, pidfd.
//!
//! Everything comes from fdinfo. A timerfd's time is what is left of it, so that it goes on from
//! where it was, as CRIU keeps it. A pidfd is kept as the pid that its process has inside; it can be
//! opened when that process is there. Refused: pidfds of processes that are gone or outside.

use arctern_image::messages::{
    EventfdFileEntry, FdTypes, FileEntry, PidfdEntry, SignalfdEntry, TimerfdEntry,
};

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::table::Opener;
use crate::error::{CaptureError, Refusal, RestoreError};

/// In the flags of our images: the eventfd counts down by one (EFD_SEMAPHORE). The kernel opens
/// every eventfd for reading and writing, so the bit of O_WRONLY is free, and it is EFD_SEMAPHORE.
const SEMAPHORE: u32 = 1;

/// TFD_IOC_SET_TICKS (linux/timerfd.h, kernel 3.17).
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

impl FileCollector {
    pub(super) fn eventfd(&mut self, d: &Descriptor<'_>) -> FileEntry {
        let id = self.new_id();
        let semaphore = if d.info.eventfd_semaphore { SEMAPHORE } else { 0 };
        FileEntry {
            efd: Some(Box::new(EventfdFileEntry {
                id,
                flags: d.flags() | semaphore,
                fown: d.fown.clone(),
                counter: d.info.eventfd_count.unwrap_or(0),
            })),
            ..entry(FdTypes::Eventfd, id)
        }
    }

    pub(super) fn signalfd(&mut self, d: &Descriptor<'_>) -> FileEntry {
        let id = self.new_id();
        FileEntry {
            sgfd: Some(Box::new(SignalfdEntry {
                id,
                flags: d.flags(),
                fown: d.fown.clone(),
                sigmask: d.info.sigmask.unwrap_or(0),
            })),
            ..entry(FdTypes::Signalfd, id)
        }
    }

    pub(super) fn timerfd(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let Some(timer) = d.info.timer else {
            refusals.push(d.refuse(
                "the kernel does not tell about its timer",
                "use a kernel with CONFIG_TIMERFD and CONFIG_PROC_FS",
            ));
            return Ok(None);
        };
        let id = self.new_id();
        Ok(Some(FileEntry {
            tfd: Some(Box::new(TimerfdEntry {
                id,
                flags: d.flags(),
                fown: d.fown.clone(),
                clockid: timer.clock as u32,
                ticks: timer.ticks,
                settime_flags: timer.settime_flags,
                vsec: timer.value.0 as u64,
                vnsec: timer.value.1 as u64,
                isec: timer.interval.0 as u64,
                insec: timer.interval.1 as u64,
            })),
            ..entry(FdTypes::Timerfd, id)
        }))
    }

    pub(super) fn pidfd(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Option<FileEntry> {
        let pid = d.info.pidfd.first().copied().unwrap_or(0);
        let Some(target) = d.tree.tasks.iter().find(|task| task.pid.0 == pid) else {
            let cause = if pid == -1 {
                "it stands for a process that is gone".to_owned()
            } else {
                format!("it stands for process {pid}, which is outside of the tree")
            };
            refusals.push(d.refuse(cause, "close it before the checkpoint"));
            return None;
        };
        let id = self.new_id();
        Some(FileEntry {
            pidfd: Some(Box::new(PidfdEntry {
                id,
                ino: d.stat.st_ino as u32,
                flags: d.flags() & !(libc::O_RDWR as u32),
                nspid: target.inner_pid,
                fown: d.fown.clone(),
            })),
            ..entry(FdTypes::Pidfd, id)
        })
    }
}

pub(super) fn open_eventfd(o: &mut Opener<'_>, event: &EventfdFileEntry) -> i32 {
    let flags = event.flags & SEMAPHORE;
    // The counter of eventfd2(2) has 32 bits; the rest is written.
    let direct = u32::try_from(event.counter).ok();
    let args = [direct.unwrap_or(0).into(), flags.into()];
    let fd = o.create(libc::SYS_eventfd2, &args, "make the eventfd");
    if direct.is_none() {
        let value = o.bytes(&event.counter.to_ne_bytes());
        o.call(libc::SYS_write, &[fd.into(), value.into(), 8.into()], "set its counter");
    }
    o.set_status(fd, event.flags & !SEMAPHORE);
    fd
}

pub(super) fn open_signalfd(o: &mut Opener<'_>, signal: &SignalfdEntry) -> i32 {
    let mask = o.bytes(&signal.sigmask.to_ne_bytes());
    let flags = signal.flags & libc::O_NONBLOCK as u32;
    let args = [(-1i32).into(), mask.into(), 8.into(), flags.into()];
    o.create(libc::SYS_signalfd4, &args, "make the signalfd")
}

/// Makes and arms a timer. An absolute one needs the clock of the task's own time namespace.
pub(super) fn open_timerfd(o: &mut Opener<'_>, timer: &TimerfdEntry) -> Result<i32, RestoreError> {
    let flags = timer.flags & libc::O_NONBLOCK as u32;
    let args = [timer.clockid.into(), flags.into()];
    let fd = o.create(libc::SYS_timerfd_create, &args, "make the timerfd");
    let (mut seconds, mut nanoseconds) = (timer.vsec, timer.vnsec);
    if (seconds, nanoseconds) != (0, 0) {
        if timer.settime_flags & 1 != 0 {
            let now = o.batch().reserve(16);
            o.call(libc::SYS_clock_gettime, &[timer.clockid.into(), now.into()], "read its clock");
            let batch = o.run_collected()?;
            let now = batch.memory(now);
            let word =
                |at: usize| now[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
            nanoseconds = nanoseconds.saturating_add(word(8));
            seconds = seconds.saturating_add(word(0)).saturating_add(nanoseconds / 1_000_000_000);
            nanoseconds %= 1_000_000_000;
        }
        let words = [timer.isec, timer.insec, seconds, nanoseconds];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let value = o.bytes(&bytes);
        // Flags: TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET.
        let args = [fd.into(), (timer.settime_flags & 3).into(), value.into(), 0.into()];
        o.call(libc::SYS_timerfd_settime, &args, "arm the timer");
    }
    if timer.ticks != 0 {
        let ticks = o.bytes(&timer.ticks.to_ne_bytes());
        let args = [fd.into(), TFD_IOC_SET_TICKS.into(), ticks.into()];
        o.call(libc::SYS_ioctl, &args, "set its expirations");
    }
    Ok(fd)
}

pub(super) fn open_pidfd(o: &mut Opener<'_>, pidfd: &PidfdEntry) -> i32 {
    // PIDFD_NONBLOCK and PIDFD_THREAD.
    let flags = pidfd.flags & (libc::O_NONBLOCK | libc::O_EXCL) as u32;
    o.create(libc::SYS_pidfd_open, &[pidfd.nspid.into(), flags.into()], "open the process")
}
