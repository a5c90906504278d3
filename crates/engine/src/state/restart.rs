//! System calls that the stop interrupted.
//!
//! A thread that is stopped inside a call shows the kernel's own restart codes in rax. Resumed as
//! it is, the kernel decides: run the call again, or say EINTR after a handler. CRIU's images have
//! no room for that decision, so `core` holds registers that are right without it (the call is
//! prepared to run again, or EINTR where only the kernel knew the time left), and a file of our own,
//! `arctern-restarts.json`, holds what our restore needs to do it exactly.

use arctern_image::messages::UserX86RegsEntry;
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::ptrace::Registers;
use arctern_tracee::thread::StoppedThread;
use serde::{Deserialize, Serialize};

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Name of the file in the images directory.
pub const FILE_NAME: &str = "arctern-restarts.json";

/// One interrupted call.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Restart {
    /// Thread, inner id.
    pub tid: i32,
    /// rax at the stop: a restart code.
    pub code: i64,
    /// Number of the call.
    pub call: i64,
    /// Address of the instruction after the call.
    pub rip: u64,
    /// For a relative sleep: seconds and nanoseconds that were left, where the kernel told.
    pub left: Option<(u64, u64)>,
}

/// All interrupted calls of a checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Restarts {
    /// The calls.
    pub calls: Vec<Restart>,
}

impl Restarts {
    /// Notes the call that `thread` stands in, if it does.
    pub fn note(&mut self, thread: &StoppedThread) {
        let regs = &thread.registers;
        if !is_interrupted(regs) {
            return;
        }
        let call = regs.orig_rax as i64;
        // The kernel has written the time left to where the program wants it (nanosleep(2)).
        let remainder = match call {
            libc::SYS_nanosleep => regs.rsi,
            libc::SYS_clock_nanosleep => regs.r10,
            _ => 0,
        };
        let left = (regs.rax as i64 == ERESTART_RESTARTBLOCK && remainder != 0)
            .then(|| {
                let mut bytes = [0; 16];
                memory::read(thread.tid, RemoteAddr(remainder), &mut bytes).ok()?;
                let word = |at: usize| {
                    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
                };
                Some((word(0), word(8)))
            })
            .flatten();
        self.calls.push(Restart {
            tid: thread.inner_tid,
            code: regs.rax as i64,
            call,
            rip: regs.rip,
            left,
        });
    }

    /// The interrupted call of a thread, if the registers of the image agree with it.
    pub fn find(&self, tid: i32, image: &UserX86RegsEntry) -> Option<&Restart> {
        self.calls
            .iter()
            .find(|r| r.tid == tid && (image.ip == r.rip || image.ip == r.rip.wrapping_sub(2)))
    }
}

fn is_interrupted(regs: &Registers) -> bool {
    let code = regs.rax as i64;
    regs.orig_rax as i64 >= 0
        && matches!(code, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
}

/// Registers that are right for whoever knows no restart codes.
pub fn portable(regs: &Registers) -> Registers {
    let mut regs = *regs;
    if is_interrupted(&regs) {
        if regs.rax as i64 == ERESTART_RESTARTBLOCK {
            regs.rax = -i64::from(libc::EINTR) as u64;
        } else {
            regs.rax = regs.orig_rax;
            regs.rip = regs.rip.wrapping_sub(2);
        }
    }
    regs
}

/// How a restored thread goes on in its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// Registers as in the image.
    AsImage,
    /// The kernel's restart code and call number: the kernel decides.
    Code {
        /// For rax.
        code: i64,
        /// For orig_rax.
        call: i64,
        /// For rip.
        rip: u64,
    },
    /// A sleep of this long is begun in the thread and interrupted, which leaves the kernel with a
    /// restart block of its own.
    Sleep {
        /// Seconds and nanoseconds.
        left: (u64, u64),
        /// For rip.
        rip: u64,
    },
}

/// Chooses for one thread.
pub fn resumption(restart: Option<&Restart>) -> Resumption {
    let Some(restart) = restart else { return Resumption::AsImage };
    let Restart { code, call, rip, left, .. } = *restart;
    match code {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Resumption::Code { code, call, rip },
        ERESTART_RESTARTBLOCK => match (call, left) {
            (libc::SYS_nanosleep | libc::SYS_clock_nanosleep, Some(left)) => {
                Resumption::Sleep { left, rip }
            }
            // A futex wait until an absolute time can simply run again.
            (libc::SYS_futex, _) => Resumption::Code { code: ERESTARTNOHAND, call, rip },
            _ => Resumption::AsImage,
        },
        _ => Resumption::AsImage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restart(code: i64, call: i64, left: Option<(u64, u64)>) -> Restart {
        Restart { tid: 1, code, call, rip: 100, left }
    }

    #[test]
    fn what_is_left_of_a_sleep_is_slept() {
        let r = restart(ERESTART_RESTARTBLOCK, libc::SYS_nanosleep, Some((1, 5)));
        assert_eq!(resumption(Some(&r)), Resumption::Sleep { left: (1, 5), rip: 100 });
        let r = restart(ERESTART_RESTARTBLOCK, libc::SYS_poll, None);
        assert_eq!(resumption(Some(&r)), Resumption::AsImage);
        let r = restart(ERESTARTNOHAND, libc::SYS_pause, None);
        let call = libc::SYS_pause;
        assert_eq!(resumption(Some(&r)), Resumption::Code { code: ERESTARTNOHAND, call, rip: 100 });
        assert_eq!(resumption(None), Resumption::AsImage);
    }
}
