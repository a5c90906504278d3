//! kcmp(2): do two tasks share a kernel object?

use std::cmp::Ordering;
use std::io;

use crate::{Pid, check};

/// The kind of object that is compared (`enum kcmp_type`, linux/kcmp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Open file descriptions of two descriptors.
    File(i32, i32),
    /// Address spaces (CLONE_VM).
    Vm,
    /// Descriptor tables (CLONE_FILES).
    Files,
    /// Working directory, root and umask (CLONE_FS).
    Fs,
    /// Signal handlers (CLONE_SIGHAND).
    Sighand,
    /// I/O contexts (CLONE_IO).
    Io,
    /// System V semaphore adjustments (CLONE_SYSVSEM).
    SysvSem,
}

/// Compares an object of `a` with the same kind of object of `b`.
///
/// The order is total and stable while both objects live, so that sorted containers work.
pub fn kcmp(a: Pid, b: Pid, kind: Kind) -> io::Result<Ordering> {
    let (kind, x, y) = match kind {
        Kind::File(x, y) => (0, x, y),
        Kind::Vm => (1, 0, 0),
        Kind::Files => (2, 0, 0),
        Kind::Fs => (3, 0, 0),
        Kind::Sighand => (4, 0, 0),
        Kind::Io => (5, 0, 0),
        Kind::SysvSem => (6, 0, 0),
    };
    // SAFETY: for these kinds kcmp takes five integers and touches no memory of ours.
    let ret = check(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind, x as i64, y as i64) })?;
    match ret {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::other("kcmp: the kernel gives no order")),
    }
}

#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Is descriptor `fd` of `owner` the file that the epoll descriptor `epfd` of `epoll_owner` watches
/// as number `tfd` (the `toff`-th such item)? KCMP_EPOLL_TFD, kernel 4.13.
pub fn epoll_target(
    owner: Pid,
    fd: i32,
    epoll_owner: Pid,
    epfd: i32,
    tfd: i32,
    toff: u32,
) -> io::Result<bool> {
    let slot = EpollSlot { efd: epfd as u32, tfd: tfd as u32, toff };
    // SAFETY: `slot` lives across the call and has the layout of struct kcmp_epoll_slot.
    let ret = check(unsafe {
        libc::syscall(libc::SYS_kcmp, owner.0, epoll_owner.0, 7, fd as i64, &raw const slot)
    })?;
    Ok(ret == 0)
}
