//! Memory of another process (process_vm_readv(2), process_vm_writev(2), /proc/PID/mem).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::{Pid, check};

/// An address in another process: a number, never a pointer of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteAddr(pub u64);

impl std::fmt::Debug for RemoteAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl RemoteAddr {
    /// The address `bytes` further.
    pub fn offset(self, bytes: u64) -> RemoteAddr {
        RemoteAddr(self.0.wrapping_add(bytes))
    }
}

/// Reads `buf.len()` bytes at `addr` of `pid`. A short read is an error (EFAULT).
pub fn read(pid: Pid, addr: RemoteAddr, buf: &mut [u8]) -> io::Result<()> {
    let done = read_some(pid, addr, buf)?;
    if done == buf.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Reads up to `buf.len()` bytes at `addr` of `pid`; the kernel stops at the first page that
/// cannot be read.
pub fn read_some(pid: Pid, addr: RemoteAddr, buf: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which is exclusively borrowed; the remote side is a number
    // that the kernel checks against the other process.
    let ret = unsafe { libc::process_vm_readv(pid.0, &local, 1, &remote, 1, 0) };
    Ok(check(ret as libc::c_long)? as usize)
}

/// Reads many ranges of `pid` into `buf`, back to back. At most 1024 ranges (IOV_MAX) a call; the
/// ranges' lengths must add up to `buf.len()`. A short read is an error (EFAULT).
pub fn read_ranges(pid: Pid, ranges: &[(RemoteAddr, usize)], buf: &mut [u8]) -> io::Result<()> {
    debug_assert_eq!(ranges.iter().map(|r| r.1).sum::<usize>(), buf.len());
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .map(|(addr, len)| libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: *len })
        .collect();
    // SAFETY: `local` describes `buf`, which is exclusively borrowed; `remote` lives across the
    // call and its addresses are checked by the kernel against the other process.
    let ret = unsafe {
        libc::process_vm_readv(pid.0, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
    };
    if check(ret as libc::c_long)? as usize == buf.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Writes all of `bytes` at `addr` of `pid`; respects page protections.
pub fn write(pid: Pid, addr: RemoteAddr, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: addr.0 as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `local` describes `bytes`, which the call only reads; the remote side is a number
    // that the kernel checks against the other process.
    let ret = unsafe { libc::process_vm_writev(pid.0, &local, 1, &remote, 1, 0) };
    if check(ret as libc::c_long)? as usize == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Opens `/proc/PID/mem` for reading: reads pages that the process itself may not (PROT_NONE).
pub fn open_mem(pid: Pid) -> io::Result<File> {
    File::open(format!("/proc/{pid}/mem"))
}

/// [`open_mem`], the first time only.
pub fn open_once(mem: &mut Option<File>, pid: Pid) -> io::Result<&File> {
    match mem {
        Some(file) => Ok(file),
        None => Ok(mem.insert(open_mem(pid)?)),
    }
}

/// Writes `bytes` at `addr` of `pid` whatever the pages' protection: private pages are copied first, as
/// for a debugger's breakpoint. The caller must be the tracer: a kernel may allow it to nobody else, or
/// to nobody (`proc_mem.force_override`, kernel 6.12).
pub fn write_forced(pid: Pid, addr: RemoteAddr, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mem = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
    mem.write_all_at(bytes, addr.0)
}

/// Reads exactly `buf.len()` bytes at `addr` through an open `/proc/PID/mem`.
pub fn pread_mem(mem: &File, addr: RemoteAddr, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        // SAFETY: the buffer is exclusively borrowed and its length is passed along. The offset is
        // an address; addresses above i64::MAX do not occur in user space.
        let ret = unsafe {
            libc::pread(
                mem.as_raw_fd(),
                rest.as_mut_ptr().cast(),
                rest.len(),
                (addr.0 + done as u64) as libc::off_t,
            )
        };
        match check(ret as libc::c_long)? {
            0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
            n => done += n as usize,
        }
    }
    Ok(())
}

/// Reads up to `buf.len()` bytes at `addr` through an open `/proc/PID/mem`; the kernel stops before the
/// first page that cannot be read. 0: the address space is gone.
pub fn pread_mem_some(mem: &File, addr: RemoteAddr, buf: &mut [u8]) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    mem.read_at(buf, addr.0)
}

/// Clears the marks of written pages of `pid` ([`crate::pagemap::PAGE_IS_SOFT_DIRTY`]); see
/// Documentation/admin-guide/mm/soft-dirty.rst.
pub fn clear_soft_dirty(pid: Pid) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "4")
}
