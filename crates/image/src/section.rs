//! A range of a file as a reader that leaves the file's offset alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

pub(crate) struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Section<'a> {
    /// The bytes from `start` up to and without `end`.
    pub fn new(file: &'a File, start: u64, end: u64) -> Self {
        Self { file, at: start, end }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
