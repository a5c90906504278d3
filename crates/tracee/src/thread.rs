//! A live thread in ptrace stop, with everything that it needs to go on as if nothing happened.

use arctern_sys::Pid;
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::ptrace::{self, EVENT_STOP, Registers, RseqConfiguration, WaitStatus};

use crate::error::TraceeError;

/// What was done to a stopped thread since it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// Nothing: it is in its event stop.
    None,
    /// Calls are made in it; its registers and its mask are ours.
    Busy,
    /// It made calls and stands in the stop for its own signal (signal-delivery-stop) with the
    /// registers and the mask that it had. That stop is on the kernel's signal path, where
    /// restart codes are looked at, so it can go on from there.
    PutBack,
}

/// A stopped thread and its state at the stop.
#[derive(Debug)]
pub struct StoppedThread {
    /// The thread.
    pub tid: Pid,
    /// The thread's id in its innermost pid namespace.
    pub inner_tid: i32,
    /// General registers at the stop. If the thread stood inside a restartable sequence, rip is
    /// its abort handler already: any system call that we inject makes the kernel forget the
    /// sequence.
    pub registers: Registers,
    /// Extended state, XSAVE standard layout.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub mask: u64,
    /// rseq registration.
    pub rseq: RseqConfiguration,
    disturbance: Disturbance,
}

impl StoppedThread {
    /// Takes a thread that is in ptrace stop. `inner_tid` is its id in its own pid namespace.
    pub fn take(tid: Pid, inner_tid: i32) -> Result<Self, TraceeError> {
        let mut registers =
            ptrace::registers(tid).map_err(TraceeError::request(tid, "read the registers"))?;
        if interrupted_by_the_stop(&registers) {
            registers.rax = ERESTARTNOHAND as u64;
        }
        let rseq = ptrace::rseq_configuration(tid).unwrap_or_default();
        if let Some(abort) = rseq_abort(tid, &rseq, registers.rip) {
            registers.rip = abort;
        }
        Ok(StoppedThread {
            tid,
            inner_tid,
            registers,
            xstate: ptrace::xstate(tid)
                .map_err(TraceeError::request(tid, "read the extended state"))?,
            mask: ptrace::signal_mask(tid)
                .map_err(TraceeError::request(tid, "read the signal mask"))?,
            rseq,
            disturbance: Disturbance::None,
        })
    }

    /// From here on its registers and its mask are ours.
    pub(crate) fn disturb(&mut self) {
        self.disturbance = Disturbance::Busy;
    }

    /// Puts registers and signal mask back between two batches of remote calls, so that a thread
    /// that merely waits for its turn goes on unharmed if its tracer dies.
    pub(crate) fn put_back(&mut self) -> Result<(), TraceeError> {
        // The mask first: if we die in between, the gadget still leads the thread home.
        ptrace::set_signal_mask(self.tid, self.mask)
            .map_err(TraceeError::request(self.tid, "set the signal mask"))?;
        ptrace::set_registers(self.tid, &self.registers)
            .map_err(TraceeError::request(self.tid, "set the registers"))?;
        self.disturbance = Disturbance::PutBack;
        Ok(())
    }

    /// Lets the thread go on as it was. A thread that died meanwhile is no error.
    pub fn detach(mut self) -> Result<(), TraceeError> {
        self.begin_detach()?;
        self.finish_detach()
    }

    /// First half of [`StoppedThread::detach`], so that many threads can be let go at a time.
    ///
    /// Only the signal path of the kernel looks at restart codes, so a thread whose calls did not end
    /// as they should makes one more event stop before it goes.
    pub fn begin_detach(&mut self) -> Result<(), TraceeError> {
        let tid = self.tid;
        unless_dead((|| {
            if self.disturbance == Disturbance::Busy {
                ptrace::interrupt(tid).map_err(TraceeError::request(tid, "interrupt"))?;
                ptrace::cont(tid, 0).map_err(TraceeError::request(tid, "resume"))?;
            }
            Ok(())
        })())
    }

    /// Second half of [`StoppedThread::detach`].
    pub fn finish_detach(mut self) -> Result<(), TraceeError> {
        self.settle()?;
        self.let_go()
    }

    /// First part of [`StoppedThread::finish_detach`]: afterwards the thread stands as it was, and
    /// needs not move any more to be let go.
    pub fn settle(&mut self) -> Result<(), TraceeError> {
        unless_dead((|| {
            if self.disturbance == Disturbance::Busy && wait_for_stop(self.tid)? {
                self.put_back()?;
            }
            Ok(())
        })())
    }

    /// Second part of [`StoppedThread::finish_detach`].
    pub fn let_go(self) -> Result<(), TraceeError> {
        let tid = self.tid;
        unless_dead(ptrace::detach(tid, 0).map_err(TraceeError::request(tid, "detach")))
    }
}

fn unless_dead(result: Result<(), TraceeError>) -> Result<(), TraceeError> {
    match result {
        Err(TraceeError::Died { .. }) => Ok(()),
        other => other,
    }
}

/// «Run the call again unless a signal handler comes in between» (linux/errno.h).
const ERESTARTNOHAND: i64 = -514;

/// Whether the thread was about to see EINTR only because we stopped it.
///
/// Some calls answer EINTR even to a stop (signal(7), «Interruption of system calls and library
/// functions by stop signals»). Where such a call waits without a limit it can simply run again,
/// and the kernel decides: after a handler the program still sees EINTR.
fn interrupted_by_the_stop(regs: &Registers) -> bool {
    if regs.rax as i64 != -i64::from(libc::EINTR) {
        return false;
    }
    match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => regs.r10 as i32 == -1,
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => regs.r10 == 0,
        libc::SYS_rt_sigtimedwait => regs.rdx == 0,
        libc::SYS_semop => true,
        _ => false,
    }
}

/// If `ip` lies in the restartable sequence that the thread has announced: its abort address.
///
/// struct rseq holds the address of a struct rseq_cs at offset 8; that has version and flags
/// (u32), start_ip, post_commit_offset and abort_ip (u64) (include/uapi/linux/rseq.h).
fn rseq_abort(tid: Pid, rseq: &RseqConfiguration, ip: u64) -> Option<u64> {
    if rseq.pointer == 0 {
        return None;
    }
    let mut word = [0; 8];
    memory::read(tid, RemoteAddr(rseq.pointer + 8), &mut word).ok()?;
    let cs = u64::from_le_bytes(word);
    if cs == 0 {
        return None;
    }
    let mut descriptor = [0; 32];
    memory::read(tid, RemoteAddr(cs), &mut descriptor).ok()?;
    let field =
        |at: usize| u64::from_le_bytes(descriptor[at..at + 8].try_into().expect("eight bytes"));
    let (start, length, abort) = (field(8), field(16), field(24));
    (ip.wrapping_sub(start) < length).then_some(abort)
}

/// Waits until an interrupted thread is in its stop. Returns false if it is gone.
///
/// A signal may be delivered first: such a stop is kept, the signal goes back to the thread when it
/// is resumed towards its event stop.
pub fn wait_for_stop(tid: Pid) -> Result<bool, TraceeError> {
    loop {
        match ptrace::wait(tid) {
            Ok(status) => {
                if let Some(stopped) = accept_stop(tid, status)? {
                    return Ok(stopped);
                }
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECHILD | libc::ESRCH)) => {
                return Ok(false);
            }
            Err(e) => return Err(TraceeError::request(tid, "wait")(e)),
        }
    }
}

/// Handles one status of an interrupted thread: Some(true) when it is in its event stop,
/// Some(false) when it is gone, None when it must be waited for again.
pub fn accept_stop(tid: Pid, status: WaitStatus) -> Result<Option<bool>, TraceeError> {
    match status {
        WaitStatus::Event { event: EVENT_STOP, .. } => Ok(Some(true)),
        WaitStatus::Exited(_) | WaitStatus::Killed(_) => Ok(Some(false)),
        WaitStatus::Signal(signal) => {
            resume_with(tid, signal)?;
            Ok(None)
        }
        WaitStatus::Event { .. } => {
            resume_with(tid, 0)?;
            Ok(None)
        }
    }
}

fn resume_with(tid: Pid, signal: i32) -> Result<(), TraceeError> {
    match ptrace::cont(tid, signal) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(TraceeError::request(tid, "resume")),
    }
}
