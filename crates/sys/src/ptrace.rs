//! ptrace(2) requests for seized threads, one function a request.
//!
//! All of them but [`seize`] demand that the calling thread is the tracer and, but for
//! [`interrupt`], that the tracee is in a ptrace stop; the kernel says ESRCH otherwise, so misuse
//! is an error and not unsafe.

use std::io;

use crate::{Pid, check};

/// General registers as the kernel gives them (`struct user_regs_struct`).
pub type Registers = libc::user_regs_struct;

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
/// Kill the tracee when the tracer dies.
pub const O_EXITKILL: u64 = 0x0010_0000;
/// Suspend the tracee's seccomp filters while it is traced.
pub const O_SUSPEND_SECCOMP: u64 = 0x0020_0000;
/// Stop at and trace fork, vfork and clone.
pub const O_TRACE_CHILDREN: u64 = 0x2 | 0x4 | 0x8;

fn request(request: libc::c_uint, tid: Pid, addr: u64, data: u64) -> io::Result<i64> {
    // SAFETY: callers in this module pass addresses of live objects of the size that the request
    // demands, or plain numbers where it takes numbers.
    check(unsafe { libc::syscall(libc::SYS_ptrace, request as u64, tid.0, addr, data) })
}

/// Attaches without stopping (PTRACE_SEIZE).
pub fn seize(tid: Pid, options: u64) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options).map(drop)
}

/// Sets `PTRACE_O_*` options.
pub fn set_options(tid: Pid, options: u64) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options).map(drop)
}

/// Asks a seized thread to stop (PTRACE_INTERRUPT); wait for the stop with [`wait`].
pub fn interrupt(tid: Pid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Detaches and lets the thread run, delivering `signal` if it is not 0.
pub fn detach(tid: Pid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as u64).map(drop)
}

/// Lets the thread run until its next stop.
pub fn cont(tid: Pid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as u64).map(drop)
}

/// Lets the thread run until it enters a system call, or leaves it.
pub fn to_system_call(tid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Lets the thread run one instruction.
pub fn single_step(tid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// The pid that the last fork, vfork or clone event made, as the tracer sees it.
pub fn event_message(tid: Pid) -> io::Result<u64> {
    let mut message: u64 = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as u64)?;
    Ok(message)
}

/// Reads the general registers.
pub fn registers(tid: Pid) -> io::Result<Registers> {
    // SAFETY: the struct is plain integers, for which zero is valid.
    let mut regs: Registers = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as u64)?;
    Ok(regs)
}

/// Writes the general registers.
pub fn set_registers(tid: Pid, regs: &Registers) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as u64).map(drop)
}

/// Reads the extended state in XSAVE's standard (not compacted) layout.
pub fn xstate(tid: Pid) -> io::Result<Vec<u8>> {
    let mut buf = [0u8; 16 * 1024];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE as u64, &raw mut iov as u64)?;
    // Kept for every thread of a tree, so in no more room than it takes.
    Ok(buf[..iov.iov_len].to_vec())
}

/// Writes the extended state; `state` must have the size that this machine's [`xstate`] gives.
pub fn set_xstate(tid: Pid, state: &[u8]) -> io::Result<()> {
    let iov = libc::iovec { iov_base: state.as_ptr() as *mut libc::c_void, iov_len: state.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE as u64, &raw const iov as u64).map(drop)
}

/// Reads the blocked signals (bit n-1 is signal n).
pub fn signal_mask(tid: Pid) -> io::Result<u64> {
    let mut mask: u64 = 0;
    request(PTRACE_GETSIGMASK, tid, 8, &raw mut mask as u64)?;
    Ok(mask)
}

/// Sets the blocked signals.
pub fn set_signal_mask(tid: Pid, mask: u64) -> io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, 8, &raw const mask as u64).map(drop)
}

/// The siginfo of the signal-delivery stop that the thread is in.
pub fn stop_siginfo(tid: Pid) -> io::Result<SigInfo> {
    let mut info = SigInfo([0; 128]);
    request(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as u64)?;
    Ok(info)
}

/// A `siginfo_t` as bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo(pub [u8; 128]);

impl SigInfo {
    fn word(&self, at: usize) -> i32 {
        i32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }
    /// `si_signo`.
    pub fn signo(&self) -> i32 {
        self.word(0)
    }
    /// `si_code`.
    pub fn code(&self) -> i32 {
        self.word(8)
    }
    /// `si_pid`, where the code says that there is one.
    pub fn pid(&self) -> i32 {
        self.word(16)
    }
}

/// Reads the queue of pending signals without removing any: the thread's own, or the one that its
/// thread group shares.
pub fn pending_signals(tid: Pid, shared: bool) -> io::Result<Vec<SigInfo>> {
    #[repr(C)]
    struct PeekArgs {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut all = Vec::new();
    let mut chunk = [SigInfo([0; 128]); 32];
    loop {
        let args = PeekArgs { off: all.len() as u64, flags: shared as u32, nr: chunk.len() as i32 };
        let n =
            request(PTRACE_PEEKSIGINFO, tid, &raw const args as u64, chunk.as_mut_ptr() as u64)?;
        if n == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&chunk[..n as usize]);
    }
}

/// rseq registration of a thread (`struct ptrace_rseq_configuration`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of the thread's `struct rseq`, 0 when none is registered.
    pub pointer: u64,
    /// Its registered size.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}

/// Reads the rseq registration (kernel 5.13).
pub fn rseq_configuration(tid: Pid) -> io::Result<RseqConfiguration> {
    let mut conf = RseqConfiguration::default();
    request(
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>() as u64,
        &raw mut conf as u64,
    )?;
    Ok(conf)
}

/// Which system calls a thread catches itself (`struct ptrace_sud_config`, prctl(2),
/// PR_SET_SYSCALL_USER_DISPATCH): those from outside of a range, while a byte of its memory says so.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserDispatch {
    /// 0 off, 1 on.
    pub mode: u64,
    /// Address of the byte, or 0: always.
    pub selector: u64,
    /// Start of the range whose calls are let through.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Reads the thread's dispatch (kernel 6.4).
pub fn user_dispatch(tid: Pid) -> io::Result<UserDispatch> {
    let mut config = UserDispatch::default();
    request(
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<UserDispatch>() as u64,
        &raw mut config as u64,
    )?;
    Ok(config)
}

/// Sets it.
pub fn set_user_dispatch(tid: Pid, config: &UserDispatch) -> io::Result<()> {
    request(
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<UserDispatch>() as u64,
        std::ptr::from_ref(config) as u64,
    )
    .map(drop)
}

/// Reads the `index`-th seccomp filter, counted from the oldest (kernel/seccomp.c, `get_nth_filter`;
/// ptrace(2) says otherwise): BPF instructions of 8 bytes each.
/// None when there are not as many.
pub fn seccomp_filter(tid: Pid, index: u64) -> io::Result<Option<Vec<u8>>> {
    let len = match request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0) {
        Ok(len) => len as usize,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut program = vec![0u64; len];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as u64)?;
    Ok(Some(program.iter().flat_map(|word| word.to_ne_bytes()).collect()))
}

/// Writes eight bytes, whatever the page's protection: a private page is copied first, as for a
/// debugger's breakpoint (PTRACE_POKEDATA).
pub fn poke(tid: Pid, addr: u64, word: u64) -> io::Result<()> {
    request(libc::PTRACE_POKEDATA, tid, addr, word).map(drop)
}

/// What a wait saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    /// The thread exited with this code.
    Exited(i32),
    /// The thread was killed by this signal.
    Killed(i32),
    /// Signal-delivery stop.
    Signal(i32),
    /// PTRACE_EVENT_* stop with the signal number that came along.
    Event {
        /// `PTRACE_EVENT_*`.
        event: i32,
        /// SIGTRAP, or the stopping signal of a group stop.
        signal: i32,
    },
}

/// PTRACE_EVENT_STOP: interrupt, group stop, or a new child's first stop.
pub const EVENT_STOP: i32 = 128;
/// PTRACE_EVENT_EXIT is not used; fork-like events are 1 (fork), 2 (vfork), 3 (clone).
pub const EVENT_CLONE_MAX: i32 = 3;

fn decode(status: i32) -> WaitStatus {
    if libc::WIFEXITED(status) {
        WaitStatus::Exited(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        WaitStatus::Killed(libc::WTERMSIG(status))
    } else {
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            0 => WaitStatus::Signal(signal),
            event => WaitStatus::Event { event, signal },
        }
    }
}

/// Waits until `tid` changes state (waitpid with __WALL). A thread that is gone is ECHILD.
pub fn wait(tid: Pid) -> io::Result<WaitStatus> {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives across the call.
        let ret = unsafe { libc::waitpid(tid.0, &mut status, libc::__WALL) };
        if ret == tid.0 {
            return Ok(decode(status));
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
}

/// Waits until any child or tracee of the calling thread changes state; which one. ECHILD when there
/// is none.
pub fn wait_any() -> io::Result<(Pid, WaitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives across the call.
        let ret = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if ret > 0 {
            return Ok((Pid(ret), decode(status)));
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
}

/// As [`wait`], but returns None at once when nothing has happened.
pub fn try_wait(tid: Pid) -> io::Result<Option<WaitStatus>> {
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    let ret = unsafe { libc::waitpid(tid.0, &mut status, libc::__WALL | libc::WNOHANG) };
    match check(ret as i64)? {
        0 => Ok(None),
        _ => Ok(Some(decode(status))),
    }
}
