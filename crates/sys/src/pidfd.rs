//! pidfd: a handle on a process that a reused pid cannot confuse (pidfd_open(2), kernel 5.3).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::{Pid, check};

/// An open pidfd.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`. Thread ids other than the leader's are refused by the kernel.
    pub fn open(pid: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })?;
        // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Opens the thread `tid`, a leader or not (PIDFD_THREAD, kernel 6.9); on older kernels leaders
    /// only. Such a descriptor hangs up (POLLHUP) when the thread was reaped and its id is free.
    pub fn open_task(tid: Pid) -> io::Result<Self> {
        const PIDFD_THREAD: i32 = libc::O_EXCL; // linux/pidfd.h
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        match check(unsafe { libc::syscall(libc::SYS_pidfd_open, tid.0, PIDFD_THREAD) }) {
            // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
            Ok(fd) => Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Self::open(tid),
            Err(e) => Err(e),
        }
    }

    /// Duplicates descriptor `fd` of the process into ours (pidfd_getfd(2), kernel 5.6). The copy
    /// shares the open file description and is close-on-exec.
    pub fn getfd(&self, fd: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let got =
            check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) })?;
        // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
    }

    /// Sends `signal` to the process (pidfd_send_signal(2)).
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a null siginfo is allowed and means «as kill(2) would send it».
        check(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        })?;
        Ok(())
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
