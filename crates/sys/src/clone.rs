//! clone3(2): a stub child that waits to be built up by remote system calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{Pid, check};

/// [`CloneArgs::cgroup`] is meant (linux/sched.h); the libc crate has it cut off.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` (linux/sched.h), 88 bytes: also written into remote memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// `CLONE_*` flags.
    pub flags: u64,
    /// Where the pidfd goes (CLONE_PIDFD).
    pub pidfd: u64,
    /// See clone(2).
    pub child_tid: u64,
    /// See clone(2).
    pub parent_tid: u64,
    /// Signal to the parent at exit.
    pub exit_signal: u64,
    /// Lowest byte of the stack, 0 to keep the stack pointer.
    pub stack: u64,
    /// Size of the stack.
    pub stack_size: u64,
    /// TLS base (CLONE_SETTLS).
    pub tls: u64,
    /// Address of an array of pids, innermost namespace first.
    pub set_tid: u64,
    /// Length of the array.
    pub set_tid_size: u64,
    /// Descriptor of a cgroup2 directory (CLONE_INTO_CGROUP).
    pub cgroup: u64,
}

impl CloneArgs {
    /// The bytes as the kernel reads them.
    pub fn to_bytes(&self) -> [u8; 88] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut bytes = [0; 88];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

std::arch::global_asm!(
    ".pushsection .text",
    ".globl arctern_stub_wait",
    ".globl arctern_stub_syscall",
    "arctern_stub_wait:",
    "mov %edi, %ebx",
    "mov $157, %eax", // prctl(PR_SET_PDEATHSIG, SIGKILL): until somebody traces the stub
    "mov $1, %edi",
    "mov $9, %esi",
    "syscall",
    // The parent may have died before that. A parent in another pid namespace shows as 0.
    "mov $110, %eax", // getppid
    "syscall",
    "test %eax, %eax",
    "jz arctern_stub_pause",
    "cmp %eax, %ebx",
    "je arctern_stub_pause",
    "mov $231, %eax", // exit_group(1)
    "mov $1, %edi",
    "syscall",
    "arctern_stub_pause:",
    "mov $34, %eax", // pause
    "arctern_stub_syscall:",
    "syscall",
    "jmp arctern_stub_pause",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    fn arctern_stub_wait(parent: i32) -> !;
    static arctern_stub_syscall: u8;
}

/// Address of a `syscall` instruction that a fresh stub has mapped.
pub fn stub_syscall_address() -> u64 {
    (&raw const arctern_stub_syscall) as u64
}

/// Clones a child that executes nothing but pause(2) until somebody traces it. `flags` are
/// `CLONE_*` flags without CLONE_VM and CLONE_THREAD; `set_tid` lists the wanted pids, innermost
/// namespace first (empty: any). Returns the pid as the caller sees it.
///
/// It dies with its parent until its PR_SET_PDEATHSIG is taken back, which whoever traces it must do.
///
/// With `group`, the directory of a control group of version 2, it is born in that group.
///
/// The child shares nothing with the caller and inherits all descriptors, close-on-exec or not.
pub fn spawn_stub(
    flags: u64,
    exit_signal: i32,
    set_tid: &[i32],
    group: Option<BorrowedFd<'_>>,
) -> io::Result<Pid> {
    assert_eq!(
        flags & (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_VFORK) as u64,
        0,
        "a stub has an address space of its own"
    );
    let parent = if flags & libc::CLONE_PARENT as u64 != 0 {
        std::os::unix::process::parent_id()
    } else {
        std::process::id()
    } as i32;
    let into = group.map_or(0, |_| CLONE_INTO_CGROUP);
    let args = CloneArgs {
        flags: flags | into,
        exit_signal: exit_signal as u64,
        set_tid: if set_tid.is_empty() { 0 } else { set_tid.as_ptr() as u64 },
        set_tid_size: set_tid.len() as u64,
        cgroup: group.map_or(0, |group| group.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is fork(2): the child has copies of everything. It calls one
    // function that needs no stack, takes no lock and allocates nothing, and never returns here.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if ret == 0 {
        // SAFETY: see above; the function is a loop around one system call.
        unsafe { arctern_stub_wait(parent) }
    }
    Ok(Pid(check(ret)? as i32))
}
