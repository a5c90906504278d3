//! Private anonymous memory of this process at addresses that the caller chose: what a child that is
//! cloned from here finds at the same place.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::PAGE_SIZE;

/// Memory from one address to another. No reference to it is ever made: it is filled by the kernel, and
/// read by others. Dropped, it is unmapped.
#[derive(Debug)]
pub struct Placed {
    start: u64,
    end: u64,
    reserved: bool,
}

impl Placed {
    /// Maps `start..end`, multiples of the page size. `reserved` is what MAP_NORESERVE is not.
    ///
    /// # Errors
    /// `AlreadyExists`: something is there.
    pub fn map(start: u64, end: u64, reserved: bool) -> io::Result<Placed> {
        map(start, end, reserved)?;
        Ok(Placed { start, end, reserved })
    }

    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Address after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Gives it another end: what is beyond is gone, what is new is empty.
    ///
    /// # Errors
    /// `AlreadyExists`: something is where it would grow. It is as it was then.
    pub fn set_end(&mut self, end: u64) -> io::Result<()> {
        if end <= self.start || !end.is_multiple_of(PAGE_SIZE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if end > self.end {
            map(self.end, end, self.reserved)?;
        } else {
            unmap(end, self.end);
        }
        self.end = end;
        Ok(())
    }

    /// Fills `at..at + length` from a file.
    ///
    /// # Errors
    /// It is not within the memory (`InvalidInput`), or the file ends or fails.
    pub fn read_at(&self, file: &File, offset: u64, at: u64, length: u64) -> io::Result<()> {
        if at < self.start || at > self.end || length > self.end - at {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut done = 0;
        while done < length {
            let left = usize::try_from(length - done).map_err(io::Error::other)?;
            let from = i64::try_from(offset + done).map_err(io::Error::other)?;
            // SAFETY: the range is within memory that this value mapped and owns, and to which there
            // is no reference.
            let read = unsafe {
                libc::pread(file.as_raw_fd(), (at + done) as *mut libc::c_void, left, from)
            };
            match u64::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        unmap(self.start, self.end);
    }
}

fn map(start: u64, end: u64, reserved: bool) -> io::Result<()> {
    let length = end.checked_sub(start).filter(|length| *length > 0);
    let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    if !reserved {
        flags |= libc::MAP_NORESERVE;
    }
    // SAFETY: MAP_FIXED_NOREPLACE takes no address that is in use, so no memory of ours changes.
    let at = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(start as *mut libc::c_void, length, prot, flags, -1, 0)
    };
    match at {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at if at as u64 == start => Ok(()),
        // A kernel that takes the address for a hint only.
        at => {
            // SAFETY: exactly what was mapped above.
            unsafe { libc::munmap(at, length) };
            Err(io::ErrorKind::AlreadyExists.into())
        }
    }
}

fn unmap(start: u64, end: u64) {
    if end > start {
        // SAFETY: the range was mapped by `map` for one value, which lets go of it here; there are no
        // references to it.
        unsafe { libc::munmap(start as *mut libc::c_void, (end - start) as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, RemoteAddr};
    use std::os::unix::fs::FileExt;

    const AT: u64 = 0x5a5a_0000_0000;

    #[test]
    fn it_is_where_it_should_be_and_grows_and_shrinks() {
        let file = File::open("/proc/self/exe").unwrap();
        let mut expected = [0; 8192];
        file.read_exact_at(&mut expected, 0).unwrap();
        let own = crate::Pid(std::process::id() as i32);
        let mut placed = Placed::map(AT, AT + 0x3000, true).unwrap();
        let taken = Placed::map(AT + 0x2000, AT + 0x4000, true).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        placed.read_at(&file, 4096, AT + 0x1000, 4096).unwrap();
        let mut page = [0; 4096];
        memory::read(own, RemoteAddr(AT + 0x1000), &mut page).unwrap();
        assert_eq!(page, expected[4096..]);
        assert!(placed.read_at(&file, 0, AT + 0x2000, 8192).is_err());
        placed.set_end(AT + 0x5000).unwrap();
        placed.read_at(&file, 0, AT + 0x4000, 4096).unwrap();
        let mut byte = [0];
        memory::read(own, RemoteAddr(AT + 0x4000), &mut byte).unwrap();
        assert_eq!(byte, [0x7f]);
        placed.set_end(AT + 0x1000).unwrap();
        assert!(memory::read(own, RemoteAddr(AT + 0x1000), &mut byte).is_err());
        drop(placed);
        assert!(memory::read(own, RemoteAddr(AT), &mut byte).is_err());
    }
}
