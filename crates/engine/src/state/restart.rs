//! System calls that the stop interrupted.
//!
//! A thread that is stopped inside a call shows the kernel's own restart codes in rax. Resumed as
//! it is, the kernel decides: run the call again, or say EINTR after a handler. CRIU's images have
//! no room for that decision, so `core` holds registers that are right without it (the call is
//! prepared to run again, or EINTR where only the kernel knew the time left), and a file of our own,
//! `arctern-restarts.json`, holds what our restore needs to do it exactly. The same file holds the
//! CPU affinity of threads, their settings ([`ThreadSettings`]) and marks of mappings ([`Marks`]), for
//! which CRIU's images have no field either.

use arctern_image::messages::UserX86RegsEntry;
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::ptrace::Registers;
use arctern_tracee::thread::StoppedThread;
use serde::{Deserialize, Serialize};

use super::memory::marks::Marks;
use super::task::settings::ThreadSettings;

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
    /// Its arguments.
    pub args: [u64; 6],
    /// Address of the instruction after the call.
    pub rip: u64,
    /// Nanoseconds that were left of a relative time limit.
    pub left: Option<u64>,
}

/// All interrupted calls of a checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Restarts {
    /// The calls.
    pub calls: Vec<Restart>,
    /// Processors of threads that may not use all: inner tid and numbers.
    #[serde(default)]
    pub affinities: Vec<(i32, Vec<usize>)>,
    /// Settings of threads that have any but the usual ones.
    #[serde(default)]
    pub settings: Vec<ThreadSettings>,
    /// PR_GET_MDWE of processes that may not make memory executable: inner pid and bits.
    #[serde(default)]
    pub no_new_code: Vec<(i32, u64)>,
    /// Mappings that have a NUMA policy or are sealed.
    #[serde(default)]
    pub marks: Vec<Marks>,
    /// Stopped processes whose stop their parent has been told (wait(2)), by inner pid.
    #[serde(default)]
    pub told: Vec<i32>,
    /// Number of processors of the host, once asked for.
    #[serde(skip)]
    online: Option<i64>,
}

impl Restarts {
    /// Notes the call that `thread` stands in, if it does; `waited` is for how many nanoseconds it
    /// had waited, None if not long.
    pub fn note(&mut self, thread: &StoppedThread, waited: Option<u64>) {
        let regs = &thread.registers;
        if !is_interrupted(regs) {
            return;
        }
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        let mut call = regs.orig_rax as i64;
        if call == libc::SYS_restart_syscall {
            // The kernel itself has restarted it before; the program's own number stands in the
            // instruction before the call: mov $number, %eax.
            call = number_before(thread).unwrap_or(call);
        }
        let left = if regs.rax as i64 == ERESTART_RESTARTBLOCK {
            time_left(thread, call, &args, waited.unwrap_or(0))
        } else {
            None
        };
        self.calls.push(Restart {
            tid: thread.inner_tid,
            code: regs.rax as i64,
            call,
            args,
            rip: regs.rip,
            left,
        });
    }

    /// Notes the processors of a thread that may not use all of them.
    pub fn note_affinity(&mut self, thread: &StoppedThread) {
        use nix::sched::{CpuSet, sched_getaffinity};
        let Ok(set) = sched_getaffinity(nix::unistd::Pid::from_raw(thread.tid.0)) else { return };
        let cpus: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        let online = *self.online.get_or_insert_with(|| {
            let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
            online.ok().flatten().unwrap_or(0)
        });
        if (cpus.len() as i64) < online {
            self.affinities.push((thread.inner_tid, cpus));
        }
    }

    /// What a thread has that is not as usual.
    pub fn settings_of(&self, tid: i32) -> Option<&ThreadSettings> {
        self.settings.iter().find(|settings| settings.tid == tid)
    }

    /// The marks of a process's mappings, by inner pid.
    pub fn marks_of(&self, pid: i32) -> impl Iterator<Item = &Marks> {
        self.marks.iter().filter(move |marks| marks.pid == pid)
    }

    /// The interrupted call of a thread, if the registers of the image agree with it.
    ///
    /// Images of others say of a call only that it shall run again. That is wrong for calls that wait
    /// for a signal: one that arrives just before they run would not end them. Neither returns its own
    /// number, so that these registers cannot mean anything else.
    pub fn find(&self, tid: i32, image: &UserX86RegsEntry) -> Option<Restart> {
        let noted = self
            .calls
            .iter()
            .find(|r| r.tid == tid && (image.ip == r.rip || image.ip == r.rip.wrapping_sub(2)));
        if let Some(noted) = noted {
            return Some(noted.clone());
        }
        let call = image.ax as i64;
        let waits = matches!(call, libc::SYS_pause | libc::SYS_rt_sigsuspend);
        (waits && image.orig_ax == image.ax).then(|| Restart {
            tid,
            code: ERESTARTNOHAND,
            call,
            args: [image.di, image.si, image.dx, image.r10, image.r8, image.r9],
            rip: image.ip.wrapping_add(2),
            left: None,
        })
    }
}

fn number_before(thread: &StoppedThread) -> Option<i64> {
    let mut code = [0; 7];
    memory::read(thread.tid, RemoteAddr(thread.registers.rip.wrapping_sub(7)), &mut code).ok()?;
    let [0xb8, a, b, c, d, 0x0f, 0x05] = code else { return None };
    Some(i64::from(u32::from_le_bytes([a, b, c, d])))
}

/// Nanoseconds that are left of a call's time limit. None if the call has no relative one.
fn time_left(thread: &StoppedThread, call: i64, args: &[u64; 6], waited: u64) -> Option<u64> {
    let time = |address: u64| {
        let mut bytes = [0; 16];
        memory::read(thread.tid, RemoteAddr(address), &mut bytes).ok()?;
        let word =
            |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        word(0).checked_mul(1_000_000_000)?.checked_add(word(8))
    };
    let (limit, remainder) = match call {
        libc::SYS_nanosleep => (args[0], args[1]),
        libc::SYS_clock_nanosleep => (args[2], args[3]),
        libc::SYS_futex => (args[3], 0),
        libc::SYS_poll => {
            let limit = u64::try_from(args[2] as i32).ok()? * 1_000_000;
            return Some(limit.saturating_sub(waited));
        }
        _ => return None,
    };
    if remainder != 0 {
        // The kernel has written the rest to where the program wants it (nanosleep(2)).
        return time(remainder);
    }
    Some(time(limit)?.saturating_sub(waited))
}

fn is_interrupted(regs: &Registers) -> bool {
    let code = regs.rax as i64;
    regs.orig_rax as i64 >= 0
        && matches!(code, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
}

/// Whether a call is poll(2) without a time limit: the kernel gives that a restart block, too, with
/// nothing in it that the call would not find out again.
fn is_endless_poll(call: i64, limit: u64) -> bool {
    call == libc::SYS_poll && (limit as i32) < 0
}

/// Registers that are right for whoever knows no restart codes.
pub fn portable(regs: &Registers) -> Registers {
    let mut regs = *regs;
    if is_interrupted(&regs) {
        let endless = is_endless_poll(regs.orig_rax as i64, regs.rdx);
        if regs.rax as i64 == ERESTART_RESTARTBLOCK && !endless {
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
    /// The call is begun in the thread with what is left of its time and interrupted, which leaves
    /// the kernel with a restart block of its own.
    Begin {
        /// The call.
        call: i64,
        /// Its arguments as the program gave them.
        args: [u64; 6],
        /// Nanoseconds.
        left: u64,
        /// For rip.
        rip: u64,
    },
}

/// Chooses for one thread.
pub fn resumption(restart: Option<&Restart>) -> Resumption {
    let Some(restart) = restart else { return Resumption::AsImage };
    let Restart { code, call, args, rip, left, .. } = *restart;
    match (code, call, left) {
        (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND, ..) => Resumption::Code { code, call, rip },
        (
            ERESTART_RESTARTBLOCK,
            libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_poll,
            Some(left),
        ) => Resumption::Begin { call, args, left, rip },
        (ERESTART_RESTARTBLOCK, libc::SYS_futex, Some(left)) if args[1] & 127 == 0 => {
            Resumption::Begin { call, args, left, rip }
        }
        // A futex wait until an absolute time can simply run again.
        (ERESTART_RESTARTBLOCK, libc::SYS_futex, _) => {
            Resumption::Code { code: ERESTARTNOHAND, call, rip }
        }
        (ERESTART_RESTARTBLOCK, ..) if is_endless_poll(call, args[2]) => {
            Resumption::Code { code: ERESTARTNOHAND, call, rip }
        }
        _ => Resumption::AsImage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restart(code: i64, call: i64, left: Option<u64>) -> Restart {
        Restart { tid: 1, code, call, args: [0; 6], rip: 100, left }
    }

    #[test]
    fn a_wait_for_a_signal_is_known_by_its_registers() {
        let call = libc::SYS_rt_sigsuspend as u64;
        let image = UserX86RegsEntry { ax: call, orig_ax: call, ip: 98, ..Default::default() };
        let found = Restarts::default().find(1, &image).unwrap();
        assert_eq!((found.code, found.call, found.rip), (ERESTARTNOHAND, call as i64, 100));
        for other in [
            UserX86RegsEntry { orig_ax: u64::MAX, ..image.clone() },
            UserX86RegsEntry { ax: 0, orig_ax: 0, ..image },
        ] {
            assert_eq!(Restarts::default().find(1, &other), None);
        }
    }

    #[test]
    fn what_is_left_of_a_wait_is_waited() {
        let r = restart(ERESTART_RESTARTBLOCK, libc::SYS_nanosleep, Some(5));
        let (call, args) = (libc::SYS_nanosleep, [0; 6]);
        assert_eq!(resumption(Some(&r)), Resumption::Begin { call, args, left: 5, rip: 100 });
        let r = restart(ERESTART_RESTARTBLOCK, libc::SYS_restart_syscall, None);
        assert_eq!(resumption(Some(&r)), Resumption::AsImage);
        let r = restart(ERESTARTNOHAND, libc::SYS_pause, None);
        let call = libc::SYS_pause;
        assert_eq!(resumption(Some(&r)), Resumption::Code { code: ERESTARTNOHAND, call, rip: 100 });
        assert_eq!(resumption(None), Resumption::AsImage);
        let call = libc::SYS_poll;
        let mut r = restart(ERESTART_RESTARTBLOCK, call, None);
        assert_eq!(resumption(Some(&r)), Resumption::AsImage);
        r.args[2] = u64::from(u32::MAX);
        assert_eq!(resumption(Some(&r)), Resumption::Code { code: ERESTARTNOHAND, call, rip: 100 });
    }
}
