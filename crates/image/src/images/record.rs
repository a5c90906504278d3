//! Records: how they follow each other in a file.
//!
//! A record is a `u32` with its size and that many bytes of protobuf. A size of 0 is legal (a message
//! with every field at its default). Some kinds put raw bytes after a record; how many is a field of
//! it, so reader and writer leave the payload to the caller.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::{Head, ImageError, ImageErrorKind, ImageKind};

/// The largest record, in bytes. The largest that occur are address spaces, with 40 bytes a mapping:
/// 400,000 mappings. A record of empty mappings takes 40 times its size in memory.
pub const MAX_RECORD: u64 = 16 << 20;

/// The most memory that the records of one file may take once decoded, in bytes, counted by the size
/// of their structs: a record without content takes 4 bytes in a file and some hundred in memory.
pub const MAX_DECODED: u64 = 1 << 30;

/// Reads the records of one file in order.
pub struct RecordReader<R> {
    source: R,
    /// Bytes between the current position and the end of the file.
    left: u64,
    file: PathBuf,
    buffer: Vec<u8>,
}

impl RecordReader<BufReader<File>> {
    /// Reads from an open file, whose length is taken from its metadata.
    pub fn open(file: File, kind: ImageKind, name: &Path) -> Result<Self, ImageError> {
        let length = file
            .metadata()
            .map_err(|error| ImageErrorKind::io("ask for its size")(error).at(name))?
            .len();
        Self::new(BufReader::new(file), length, kind, name)
    }
}

impl<R: Read> RecordReader<R> {
    /// Reads from `source`, which has `length` bytes, and checks the magic words of `kind`; `name` is
    /// for errors.
    pub fn new(source: R, length: u64, kind: ImageKind, name: &Path) -> Result<Self, ImageError> {
        let mut reader = Self { source, left: length, file: name.to_owned(), buffer: Vec::new() };
        if kind.head() != Head::Raw {
            let mut word = reader.word("the magic word")?;
            // V1.1 has a head word first, V1 has not; either head is fine before the right type.
            if [Head::Common.word(), Head::Service.word()].contains(&Some(word)) {
                word = reader.word("the type word")?;
            }
            if word != kind.type_word() {
                return Err(
                    reader.error(ImageErrorKind::Magic { found: word, expected: kind.type_word() })
                );
            }
        }
        Ok(reader)
    }

    /// The next record, None at the end of the file. The payload of the record before must have been
    /// read or skipped.
    ///
    /// # Errors
    /// The file ends in the middle, the record is larger than [`MAX_RECORD`], or it is no `M`.
    pub fn next_record<M: Message + Default>(&mut self) -> Result<Option<M>, ImageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let size = u64::from(self.word("the size of a record")?);
        if size > MAX_RECORD {
            return Err(self.error(ImageErrorKind::RecordTooLarge { size, limit: MAX_RECORD }));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.take(size, "a record", &mut buffer)?;
        let message = M::decode(buffer.as_slice())
            .map_err(|error| self.error(ImageErrorKind::Decode(error)))?;
        self.buffer = buffer;
        Ok(Some(message))
    }

    /// The next record of a file that must have one more.
    pub fn required<M: Message + Default>(&mut self) -> Result<M, ImageError> {
        self.next_record()?.ok_or_else(|| self.error(ImageErrorKind::Empty))
    }

    /// All remaining records of a file without payloads.
    ///
    /// # Errors
    /// As [`RecordReader::next_record`], and when the records would take more than [`MAX_DECODED`] bytes.
    pub fn all<M: Message + Default>(&mut self) -> Result<Vec<M>, ImageError> {
        let limit = MAX_DECODED / size_of::<M>().max(1) as u64;
        let mut records = Vec::new();
        while let Some(record) = self.next_record()? {
            if records.len() as u64 >= limit {
                return Err(self.error(ImageErrorKind::TooManyRecords { limit }));
            }
            records.push(record);
        }
        Ok(records)
    }

    /// `length` bytes of payload. Never takes more memory than the file has bytes left.
    pub fn payload(&mut self, length: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.take(length, "a payload", &mut bytes)?;
        Ok(bytes)
    }

    /// Passes `length` bytes of payload on to `sink` in small pieces.
    pub fn copy_payload(&mut self, length: u64, sink: &mut impl Write) -> Result<(), ImageError> {
        self.check_left(length, "a payload")?;
        let copied = io::copy(&mut (&mut self.source).take(length), sink)
            .map_err(|error| self.error(ImageErrorKind::io("copy a payload")(error)))?;
        self.left -= copied;
        if copied < length {
            return Err(self.error(ImageErrorKind::Truncated {
                what: "a payload",
                needed: length,
                left: copied,
            }));
        }
        Ok(())
    }

    /// Passes over `length` bytes of payload.
    pub fn skip_payload(&mut self, length: u64) -> Result<(), ImageError> {
        self.copy_payload(length, &mut io::sink())
    }

    /// Bytes between the current position and the end of the file.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// An error about this file.
    pub fn error(&self, kind: ImageErrorKind) -> ImageError {
        kind.at(&self.file)
    }

    fn word(&mut self, what: &'static str) -> Result<u32, ImageError> {
        let mut word = [0; 4];
        self.check_left(4, what)?;
        self.source
            .read_exact(&mut word)
            .map_err(|error| self.error(ImageErrorKind::io("read it")(error)))?;
        self.left -= 4;
        Ok(u32::from_le_bytes(word))
    }

    fn take(
        &mut self,
        length: u64,
        what: &'static str,
        into: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        self.check_left(length, what)?;
        let read = (&mut self.source)
            .take(length)
            .read_to_end(into)
            .map_err(|error| self.error(ImageErrorKind::io("read it")(error)))?;
        self.left -= read as u64;
        if (read as u64) < length {
            return Err(self.error(ImageErrorKind::Truncated {
                what,
                needed: length,
                left: read as u64,
            }));
        }
        Ok(())
    }

    fn check_left(&self, needed: u64, what: &'static str) -> Result<(), ImageError> {
        if needed > self.left {
            return Err(self.error(ImageErrorKind::Truncated { what, needed, left: self.left }));
        }
        Ok(())
    }
}

/// Writes the records of one file in order, in format V1.1.
pub struct RecordWriter<W: Write> {
    sink: BufWriter<W>,
    file: PathBuf,
    buffer: Vec<u8>,
}

impl<W: Write> RecordWriter<W> {
    /// Writes the magic words of `kind` to `sink`; `name` is for errors.
    pub fn new(sink: W, kind: ImageKind, name: &Path) -> Result<Self, ImageError> {
        let mut writer =
            Self { sink: BufWriter::new(sink), file: name.to_owned(), buffer: Vec::new() };
        if let Some(word) = kind.head().word() {
            writer.payload(&word.to_le_bytes())?;
        }
        if kind.head() != Head::Raw {
            writer.payload(&kind.type_word().to_le_bytes())?;
        }
        Ok(writer)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// The kernel refuses the write, or the record is larger than [`MAX_RECORD`].
    pub fn record<M: Message>(&mut self, message: &M) -> Result<(), ImageError> {
        let size = message.encoded_len();
        let word = u32::try_from(size)
            .ok()
            .filter(|&size| u64::from(size) <= MAX_RECORD)
            .ok_or_else(|| {
                ImageErrorKind::RecordTooLarge { size: size as u64, limit: MAX_RECORD }
                    .at(&self.file)
            })?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.reserve(size + 4);
        buffer.extend_from_slice(&word.to_le_bytes());
        message.encode_raw(&mut buffer);
        self.payload(&buffer)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Appends raw bytes that belong to the record before.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.sink
            .write_all(bytes)
            .map_err(|error| ImageErrorKind::io("write it")(error).at(&self.file))
    }

    /// Appends raw bytes until `source` ends; returns how many there were.
    pub fn payload_from(&mut self, source: &mut impl Read) -> Result<u64, ImageError> {
        io::copy(source, &mut self.sink)
            .map_err(|error| ImageErrorKind::io("write it")(error).at(&self.file))
    }

    /// Writes out what is buffered and returns the sink. A writer that is dropped instead may have
    /// lost the end of the file.
    pub fn finish(self) -> Result<W, ImageError> {
        let file = self.file;
        self.sink
            .into_inner()
            .map_err(|error| ImageErrorKind::io("write it")(error.into_error()).at(&file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{PipeDataEntry, PstreeEntry};

    fn reader(bytes: &[u8], kind: ImageKind) -> Result<RecordReader<&[u8]>, ImageError> {
        RecordReader::new(bytes, bytes.len() as u64, kind, Path::new("test.img"))
    }

    fn written(kind: ImageKind) -> RecordWriter<Vec<u8>> {
        RecordWriter::new(Vec::new(), kind, Path::new("test.img")).unwrap()
    }

    #[test]
    fn records_with_payload_come_back() {
        let mut writer = written(ImageKind::PipesData);
        for (pipe_id, data) in [(1, &b"abc"[..]), (2, b""), (3, b"defgh")] {
            let entry = PipeDataEntry { pipe_id, bytes: data.len() as u32, size: Some(65536) };
            writer.record(&entry).unwrap();
            writer.payload(data).unwrap();
        }
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes[..4], 0x5456_4319u32.to_le_bytes());
        let mut reader = reader(&bytes, ImageKind::PipesData).unwrap();
        let mut read = Vec::new();
        while let Some(entry) = reader.next_record::<PipeDataEntry>().unwrap() {
            read.push((entry.pipe_id, reader.payload(entry.bytes.into()).unwrap()));
        }
        assert_eq!(read, [(1, b"abc".to_vec()), (2, vec![]), (3, b"defgh".to_vec())]);
    }

    #[test]
    fn inventory_has_its_type_word_only() {
        let bytes = written(ImageKind::Inventory).finish().unwrap();
        assert_eq!(bytes, 0x5831_3116u32.to_le_bytes());
    }

    #[test]
    fn old_files_without_head_word_are_read() {
        let mut bytes = written(ImageKind::Pstree).finish().unwrap().split_off(4);
        bytes.extend_from_slice(&[0, 0, 0, 0]);
        let all: Vec<PstreeEntry> = reader(&bytes, ImageKind::Pstree).unwrap().all().unwrap();
        assert_eq!(all, [PstreeEntry::default()]);
    }

    #[test]
    fn another_kind_is_recognised() {
        let bytes = written(ImageKind::Files).finish().unwrap();
        let error = reader(&bytes, ImageKind::Pstree).err().unwrap();
        assert!(matches!(error.kind, ImageErrorKind::Magic { .. }), "{error}");
    }

    #[test]
    fn sizes_beyond_the_file_take_no_memory() {
        let mut bytes = written(ImageKind::Pstree).finish().unwrap();
        bytes.extend_from_slice(&(1u32 << 20).to_le_bytes());
        let mut short = reader(&bytes, ImageKind::Pstree).unwrap();
        let error = short.next_record::<PstreeEntry>().unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::Truncated { .. }), "{error}");

        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut large = reader(&bytes, ImageKind::Pstree).unwrap();
        let error = large.next_record::<PstreeEntry>().unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::RecordTooLarge { .. }), "{error}");

        let mut payload = reader(&bytes, ImageKind::Pstree).unwrap();
        assert!(payload.payload(u64::MAX).is_err());
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_list() {
        let mut writer = written(ImageKind::Pstree);
        let entry = PstreeEntry { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: vec![1, 2, 3] };
        writer.record(&entry).unwrap();
        writer.record(&entry).unwrap();
        let bytes = writer.finish().unwrap();
        for end in 0..bytes.len() {
            let Ok(mut reader) = reader(&bytes[..end], ImageKind::Pstree) else {
                continue;
            };
            if let Ok(all) = reader.all::<PstreeEntry>() {
                assert!(all.len() < 2 && all.iter().all(|read| *read == entry));
            }
        }
    }
}
