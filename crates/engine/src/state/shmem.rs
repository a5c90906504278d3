//! Shared memory objects: memfds and shared anonymous mappings.
//!
//! An object is a file of the kernel's own tmpfs, reached through a descriptor or through
//! `/proc/PID/map_files`. Its pages with data go to `pagemap-shmem-ID.img` and a pages file, holes
//! stay holes. ID is the inode number, as CRIU has it; addresses are offsets into the object.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::pages::{PAGE_SIZE, PageFlags, PagemapReader, PagemapWriter, PagesIds};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{CaptureError, RestoreError, Subject};

/// Bytes moved at a time.
const STEP: usize = 1 << 20;

/// Copies the pages of `file` (a description of the caller's own, its offset is moved) into the
/// images as object `id`.
///
/// # Errors
/// The memory cannot be read, or the images cannot be written.
pub fn capture(
    file: &File,
    id: u64,
    images: &ImageDir,
    pages: &PagesIds,
) -> Result<(), CaptureError> {
    let failed = |source: io::Error| CaptureError::Kernel {
        subject: subject(id),
        what: "copy its pages".to_owned(),
        source,
    };
    let size = file.metadata().map_err(failed)?.len();
    let mut writer = PagemapWriter::create(images, ImageKind::PagemapShmem, id, pages.next())?;
    let mut at = 0;
    let mut buffer = Vec::new();
    while let Some((start, end)) = next_data(file, at, size).map_err(failed)? {
        let mut position = start;
        while position < end {
            let pages = (end - position).div_ceil(PAGE_SIZE).min(STEP as u64 / PAGE_SIZE);
            let offset = writer.push(position, pages, PageFlags::STORED)?;
            buffer.resize((pages * PAGE_SIZE) as usize, 0);
            read_padded(file, position, &mut buffer).map_err(failed)?;
            writer.pages().write_all_at(&buffer, offset).map_err(failed)?;
            position += pages * PAGE_SIZE;
        }
        at = position;
    }
    writer.finish()?;
    Ok(())
}

/// Writes the pages of object `id` into the empty `file`. An object without images is all holes.
///
/// # Errors
/// The images are damaged, or the kernel refuses the memory.
pub fn restore(file: &File, id: u64, images: &ImageDir) -> Result<(), RestoreError> {
    let Some(reader) = PagemapReader::open(images, ImageKind::PagemapShmem, id)? else {
        return Ok(());
    };
    let failed = |source: io::Error| RestoreError::Kernel {
        subject: subject(id),
        what: "put its pages back".to_owned(),
        source,
    };
    let size = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; STEP];
    for extent in reader.extents() {
        let source = reader.file(extent)?;
        let mut done = 0;
        // A last page that is cut by the end of the object is stored whole.
        let length = extent.len().min(size.saturating_sub(extent.vaddr));
        while done < length {
            let step = (length - done).min(STEP as u64) as usize;
            source.read_exact_at(&mut buffer[..step], extent.offset + done).map_err(failed)?;
            file.write_all_at(&buffer[..step], extent.vaddr + done).map_err(failed)?;
            done += step as u64;
        }
    }
    Ok(())
}

fn subject(id: u64) -> Subject {
    Subject { pid: 0, comm: String::new(), part: format!("shared memory {id}") }
}

/// The next range of whole pages with data at or after `at`.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match lseek(file, at as i64, Whence::SeekData) {
        Ok(start) => start as u64 & !(PAGE_SIZE - 1),
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek(file, start.max(at) as i64, Whence::SeekHole)? as u64;
    Ok(Some((start, end.min(size))))
}

/// Fills the buffer; what lies after the end of the file is zero.
fn read_padded(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn memory(size: u64) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn pages_go_and_come_back_and_holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let size = 3 * STEP as u64 + 100;
        let file = memory(size);
        file.write_all_at(b"first", 10).unwrap();
        file.write_all_at(&vec![7; STEP + 5000], STEP as u64).unwrap();
        file.write_all_at(b"last", size - 4).unwrap();
        capture(&file, 38, &images, &PagesIds::new()).unwrap();
        let stored = PagemapReader::open(&images, ImageKind::PagemapShmem, 38).unwrap().unwrap();
        assert_eq!(stored.total_pages(), 1 + STEP as u64 / PAGE_SIZE + 2 + 1);
        let again = memory(size);
        restore(&again, 38, &images).unwrap();
        let mut bytes = [vec![0; size as usize], vec![0; size as usize]];
        file.read_exact_at(&mut bytes[0], 0).unwrap();
        again.read_exact_at(&mut bytes[1], 0).unwrap();
        assert!(bytes[0] == bytes[1]);
        assert_eq!(
            std::os::unix::fs::MetadataExt::blocks(&again.metadata().unwrap()),
            std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap())
        );
    }

    #[test]
    fn an_object_without_pages_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let file = memory(8192);
        restore(&file, 5, &images).unwrap();
        capture(&file, 5, &images, &PagesIds::new()).unwrap();
        restore(&file, 5, &images).unwrap();
    }
}
