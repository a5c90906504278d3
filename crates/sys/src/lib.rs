//! Typed handles and parsers over the Linux kernel: /proc, pidfd, pagemap, ptrace, clone3.
//!
//! Three layers meet here: raw system calls (the only `unsafe`), typed handles that own their
//! descriptor, and pure parsers of `/proc` text. Policy lives above.

pub mod bpf;
pub mod btf;
pub mod capability;
pub mod clone;
pub mod cpu;
pub mod diag;
pub mod directory;
pub mod fd;
pub mod flight;
pub mod freezer;
pub mod guard;
pub mod handshake;
pub mod ipc;
pub mod kcmp;
pub mod memory;
pub mod message;
pub mod mount;
pub mod namespace;
pub mod packet;
pub mod pagemap;
pub mod pidfd;
pub mod placed;
pub mod proc;
pub mod ptrace;
pub mod sched;
pub mod shared_memory;
pub mod tcp;
pub mod unix_pending;
pub mod userfaultfd;

use std::fmt;

/// A process or thread id as the caller's pid namespace sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a page. The project supports x86_64 only, where it is fixed.
pub const PAGE_SIZE: u64 = 4096;

/// Turns a system call's `-1` into the error in `errno`.
pub(crate) fn check(ret: libc::c_long) -> std::io::Result<libc::c_long> {
    if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok(ret) }
}
