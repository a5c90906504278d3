//! The container's log: one line a record, `TIME STREAM F|P TEXT`, as Podman's k8s-file driver.
//!
//! `P` marks a piece of a line that goes on in the next record of its stream, `F` the last piece.
//! Pieces are written as they arrive, so nothing is lost when the shim dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::time::Timestamp;

/// Output stream of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Writes a log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
}

impl LogWriter {
    /// Opens a log at its end.
    pub fn open(path: &Path) -> io::Result<LogWriter> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(LogWriter { file })
    }

    /// Writes what arrived on a stream.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(&format_chunk(Timestamp::now(), stream, bytes))
    }
}

fn format_chunk(time: Timestamp, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let mut time = time.rfc3339();
    if time.ends_with('Z') {
        time.truncate(time.len() - 1);
        time.push_str("+00:00");
    }
    let mut out = Vec::with_capacity(bytes.len() + 64);
    for piece in bytes.split_inclusive(|b| *b == b'\n') {
        let (tag, text) = match piece.strip_suffix(b"\n") {
            Some(text) => ('F', text),
            None => ('P', piece),
        };
        out.extend_from_slice(format!("{time} {} {tag} ", stream.as_str()).as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    }
    out
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// When it arrived, as written.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// Whether its line ends here.
    pub full: bool,
    /// The text.
    pub text: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// Reads one line of a log; None for a damaged one.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<LogRecord<'a>> {
        let mut fields = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let full = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(LogRecord { time, stream, full, text: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_pieces() {
        let log = format_chunk(Timestamp(0), Stream::Stderr, b"one\n\ntw");
        assert_eq!(
            String::from_utf8(log).expect("text"),
            "1970-01-01T00:00:00.000000000+00:00 stderr F one\n\
             1970-01-01T00:00:00.000000000+00:00 stderr F \n\
             1970-01-01T00:00:00.000000000+00:00 stderr P tw\n"
        );
    }

    #[test]
    fn records_are_read_back() {
        let record = LogRecord::parse(b"T stdout P a b ").expect("record");
        assert_eq!(
            (record.stream, record.full, record.text),
            (Stream::Stdout, false, &b"a b "[..])
        );
        assert!(LogRecord::parse(b"T stdout F ").expect("empty").text.is_empty());
        assert!(LogRecord::parse(b"garbage").is_none());
    }
}
