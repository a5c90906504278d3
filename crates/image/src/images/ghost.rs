//! Ghost files: files without a name that travel with the images.
//!
//! `ghost-file-%x.img` holds one [`GhostFileEntry`] and, for a regular file, its content: a small
//! file follows as it is until the end of the image; a larger one (`chunks`) as [`GhostChunkEntry`]
//! records, each followed by its bytes, with holes left out. Other file types have metadata only.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{ImageDir, ImageError, ImageErrorKind, ImageKind, RecordReader};
use crate::messages::{GhostChunkEntry, GhostFileEntry};
use crate::section::Section;

/// Regular files smaller than this, in bytes, are stored without chunks.
pub const GHOST_INLINE_BELOW: u64 = 12288;

/// The largest chunk that is written, in bytes; a reader takes any size.
const CHUNK: u64 = 64 << 20;

/// Bytes moved at a time.
const STEP: usize = 128 << 10;

/// Writes a ghost file. `content` is given for regular files; its offset is moved, so it must be an
/// open file description of the caller's own. `chunks` and `size` of `entry` are set here.
///
/// # Errors
/// The kernel refuses to read the content or to write the image, or the content shrinks meanwhile.
pub fn write_ghost(
    images: &ImageDir,
    id: u64,
    mut entry: GhostFileEntry,
    content: Option<&File>,
) -> Result<(), ImageError> {
    let path = images.path_of(ImageKind::GhostFile, id);
    let mut writer = images.writer(ImageKind::GhostFile, id)?;
    let Some(content) = content else {
        writer.record(&entry)?;
        writer.finish()?;
        return Ok(());
    };
    let read_error = |error| ImageErrorKind::io("read the deleted file")(error).at(&path);
    let size = content.metadata().map_err(read_error)?.len();
    if size < GHOST_INLINE_BELOW {
        writer.record(&entry)?;
        writer.payload_from(&mut Section::new(content, 0, size))?;
        writer.finish()?;
        return Ok(());
    }
    entry.chunks = Some(true);
    entry.size = Some(size);
    writer.record(&entry)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(content, at, size).map_err(read_error)? {
        let end = end.min(start + CHUNK);
        writer.record(&GhostChunkEntry { len: end - start, off: start })?;
        if writer.payload_from(&mut Section::new(content, start, end))? != end - start {
            return Err(read_error(io::ErrorKind::UnexpectedEof.into()));
        }
        at = end;
    }
    writer.finish()?;
    Ok(())
}

/// The next range with data at or after `at` and before `size`.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match lseek(file, offset(at)?, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if start >= size {
        return Ok(None);
    }
    let end = lseek(file, offset(start)?, Whence::SeekHole)? as u64;
    Ok(Some((start, end.min(size))))
}

fn offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// An open ghost file image.
pub struct GhostReader {
    entry: GhostFileEntry,
    records: RecordReader<BufReader<File>>,
}

impl GhostReader {
    /// Opens the image of a ghost file that must be there.
    pub fn open(images: &ImageDir, id: u64) -> Result<Self, ImageError> {
        let mut records = images
            .reader(ImageKind::GhostFile, id)?
            .ok_or_else(|| ImageErrorKind::Missing.at(images.path_of(ImageKind::GhostFile, id)))?;
        let entry = records.required()?;
        Ok(Self { entry, records })
    }

    /// Owner, mode, device and times.
    pub fn entry(&self) -> &GhostFileEntry {
        &self.entry
    }

    /// The size of a regular file in bytes, with holes.
    pub fn size(&self) -> u64 {
        match self.entry.chunks {
            Some(true) => self.entry.size(),
            _ => self.records.left(),
        }
    }

    /// Writes the content of a regular file into the empty file `target`, holes left out.
    ///
    /// # Errors
    /// The image is damaged (a chunk outside the file or before the one before it), or the kernel
    /// refuses the write.
    pub fn copy_to(mut self, target: &File) -> Result<(), ImageError> {
        let size = self.size();
        if self.entry.chunks != Some(true) {
            return self.copy_range(target, 0, size);
        }
        let mut at = 0;
        while let Some(chunk) = self.records.next_record::<GhostChunkEntry>()? {
            let end = chunk.off.checked_add(chunk.len);
            let Some(end) = end.filter(|&end| chunk.off >= at && end <= size) else {
                return Err(self.records.error(ImageErrorKind::Invalid {
                    field: "ghost_chunk_entry.off",
                    value: chunk.off,
                    reason: "the chunk overlaps the one before or leaves the file",
                }));
            };
            self.copy_range(target, chunk.off, chunk.len)?;
            at = end;
        }
        target.set_len(size).map_err(|error| self.write_error(error))
    }

    fn copy_range(
        &mut self,
        target: &File,
        mut at: u64,
        mut length: u64,
    ) -> Result<(), ImageError> {
        while length > 0 {
            let step = length.min(STEP as u64);
            let bytes = self.records.payload(step)?;
            target.write_all_at(&bytes, at).map_err(|error| self.write_error(error))?;
            at += step;
            length -= step;
        }
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> ImageError {
        self.records.error(ImageErrorKind::io("write the deleted file")(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(content: &File) -> (GhostFileEntry, File) {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let entry = GhostFileEntry { uid: 1, gid: 2, mode: 0o100_644, ..Default::default() };
        write_ghost(&images, 26, entry, Some(content)).unwrap();
        assert!(dir.path().join("ghost-file-1a.img").exists());
        let reader = GhostReader::open(&images, 26).unwrap();
        let entry = reader.entry().clone();
        let target = tempfile::tempfile().unwrap();
        reader.copy_to(&target).unwrap();
        (entry, target)
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn small_files_are_stored_whole() {
        let content = tempfile::tempfile().unwrap();
        content.write_all_at(b"unlinked", 0).unwrap();
        let (entry, target) = round_trip(&content);
        assert_eq!(entry.chunks, None);
        assert_eq!(bytes(&target), b"unlinked");
    }

    #[test]
    fn large_files_keep_content_and_size_around_holes() {
        let content = tempfile::tempfile().unwrap();
        content.write_all_at(&[7; 5000], 1 << 20).unwrap();
        content.write_all_at(b"end", 3 << 20).unwrap();
        content.set_len(4 << 20).unwrap();
        let (entry, target) = round_trip(&content);
        assert_eq!((entry.chunks, entry.size), (Some(true), Some(4 << 20)));
        assert!(bytes(&target) == bytes(&content));
    }

    #[test]
    fn chunks_outside_the_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        for (off, len) in [(0, 3), (u64::MAX, 2), (2, 1)] {
            let mut writer = images.writer(ImageKind::GhostFile, 1).unwrap();
            let entry = GhostFileEntry { chunks: Some(true), size: Some(2), ..Default::default() };
            writer.record(&entry).unwrap();
            writer.record(&GhostChunkEntry { len, off }).unwrap();
            writer.payload(b"abc").unwrap();
            writer.finish().unwrap();
            let reader = GhostReader::open(&images, 1).unwrap();
            let error = reader.copy_to(&tempfile::tempfile().unwrap()).unwrap_err();
            assert!(matches!(error.kind, ImageErrorKind::Invalid { .. }), "{error}");
        }
    }
}
