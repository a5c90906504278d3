//! Anonymous shared memory as a file: an object like the one behind MAP_SHARED | MAP_ANONYMOUS,
//! opened through /proc/self/map_files.

use std::fs::{File, OpenOptions};
use std::io;

/// Makes an anonymous shared object of `size` bytes (rounded up to pages). Mappings of the file
/// show up as `/dev/zero (deleted)`, as the kernel's own do. Needs CAP_CHECKPOINT_RESTORE.
pub fn create(size: u64) -> io::Result<File> {
    let len = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let len = len.max(1).next_multiple_of(crate::PAGE_SIZE as usize);
    // SAFETY: a new anonymous mapping at an address that the kernel chooses changes no memory of
    // ours.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = addr as usize;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/map_files/{start:x}-{:x}", start + len));
    // SAFETY: exactly the mapping made above, to which no reference was taken.
    unsafe { libc::munmap(addr, len) };
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_object_outlives_its_first_mapping() {
        let file = match super::create(10_000) {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                println!("skipped: map_files needs CAP_CHECKPOINT_RESTORE");
                return;
            }
            Err(e) => panic!("{e}"),
        };
        file.write_all_at(b"abc", 8192).unwrap();
        let mut back = [0; 3];
        file.read_exact_at(&mut back, 8192).unwrap();
        assert_eq!(&back, b"abc");
        assert_eq!(file.metadata().unwrap().len(), 12288);
    }
}
