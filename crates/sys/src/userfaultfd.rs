//! userfaultfd(2) as a tracker of writes: asynchronous write protection (kernel 6.7).
//!
//! Pages of a registered range that are marked write-protected lose the mark when they are written;
//! nobody waits for anybody. Marks are set and read by [`crate::pagemap`]. The descriptor belongs to the
//! address space of the task that made it, whoever holds it, and closing its last copy ends all of it.
//!
//! Source: Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;
use crate::memory::RemoteAddr;

/// Flags of the system call for a descriptor that is used for write protection only: no privilege is
/// asked for (UFFD_USER_MODE_ONLY), and the kernel's own writes are tracked all the same, since
/// nothing has to be asked when they happen.
pub const OPEN_FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK | 1;

const UFFD_API: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f; // _IOWR(0xaa, 0x3f, struct uffdio_api)
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00; // _IOWR(0xaa, 0, struct uffdio_register)
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06; // _IOWR(0xaa, 6, struct uffdio_writeprotect)

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// A userfaultfd that tracks writes.
#[derive(Debug)]
pub struct WriteTracker(OwnedFd);

impl WriteTracker {
    /// Makes a tracker of a descriptor on which nothing was asked for yet.
    ///
    /// # Errors
    /// EINVAL: the kernel does not know asynchronous write protection.
    pub fn begin(fd: OwnedFd) -> io::Result<Self> {
        let mut api =
            Api { api: UFFD_API, features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED, ioctls: 0 };
        // SAFETY: `api` has the layout of struct uffdio_api and lives across the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) }.into())?;
        Ok(WriteTracker(fd))
    }

    /// Takes a tracker back that was begun elsewhere.
    pub fn from_fd(fd: OwnedFd) -> Self {
        WriteTracker(fd)
    }

    /// Tracks a range of whole pages. All of them count as written, whatever was known of them.
    ///
    /// They need not without that: a mapping that is moved (mremap(2)) beside one that is tracked becomes
    /// one with it, and the kernel ends the tracking of both and leaves the marks in the pages of the
    /// other. Written pages keep such marks from then on (seen in 6.18).
    ///
    /// # Errors
    /// EBUSY: another userfaultfd has a part of it. EINVAL: nothing is mapped there, or memory of a
    /// kind that cannot be tracked. ESRCH: the address space is gone.
    pub fn track(&self, start: RemoteAddr, end: RemoteAddr) -> io::Result<()> {
        let mut arg =
            Register { start: start.0, len: end.0 - start.0, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `arg` has the layout of struct uffdio_register and lives across the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut arg) }.into())?;
        // Mode 0 takes the marks away.
        let mut arg = WriteProtect { start: start.0, len: end.0 - start.0, mode: 0 };
        let fd = self.0.as_raw_fd();
        // SAFETY: `arg` has the layout of struct uffdio_writeprotect and lives across the call.
        check(unsafe { libc::ioctl(fd, UFFDIO_WRITEPROTECT, &raw mut arg) }.into())?;
        Ok(())
    }
}

impl AsFd for WriteTracker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<WriteTracker> for OwnedFd {
    fn from(tracker: WriteTracker) -> OwnedFd {
        tracker.0
    }
}

/// A tracker of the caller's own address space; the error says whether the kernel can.
pub fn of_self() -> io::Result<WriteTracker> {
    // SAFETY: userfaultfd takes one integer and touches no memory of ours.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    WriteTracker::begin(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
