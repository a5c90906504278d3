//! `logs`: what a container wrote, and what it goes on writing.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::process::ProcessHandle;
use crate::shim::log::{LogRecord, Stream};
use crate::state::Record;
use crate::time::Timestamp;

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, RFC 3339.
    pub time: String,
    /// Where to.
    pub stream: Stream,
    /// The text, with its line end if it is complete.
    pub text: Vec<u8>,
}

impl LogLine {
    /// Whether it is a whole line, or the end of one.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.text.ends_with(b"\n")
    }
}

/// Reads a container's log from its beginning.
#[derive(Debug)]
pub struct LogReader {
    file: BufReader<File>,
    partial: Vec<u8>,
    watch: std::os::fd::OwnedFd,
    init: Option<ProcessHandle>,
}

impl Host {
    /// Opens the log of a container.
    pub fn logs(&mut self, name_or_id: &str) -> Result<(Record, LogReader)> {
        let record = self.find(name_or_id)?;
        let path = self.paths.container(record.id()).log();
        let reader =
            LogReader::open(&path, self.init(&record)).map_err(Error::io("open", &path))?;
        Ok((record, reader))
    }
}

impl LogReader {
    fn open(path: &Path, init: Option<ProcessHandle>) -> io::Result<LogReader> {
        // A container that never ran has no log yet.
        let file = std::fs::OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
        Ok(LogReader { file: BufReader::new(file), partial: Vec::new(), watch, init })
    }

    /// The next piece that is there; None at the end of what is written so far.
    pub fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            self.file.read_until(b'\n', &mut self.partial)?;
            let Some(line) = self.partial.strip_suffix(b"\n") else { return Ok(None) };
            let parsed = LogRecord::parse(line).map(|record| LogLine {
                time: record.time.to_owned(),
                stream: record.stream,
                text: [record.text, if record.full { b"\n" } else { b"" }].concat(),
            });
            self.partial.clear();
            if parsed.is_some() {
                return Ok(parsed);
            }
        }
    }

    /// Waits until there may be more; false when the container has ended and nothing will come, or
    /// when it is `until`.
    pub fn wait_for_more(&mut self, until: Option<Timestamp>) -> io::Result<bool> {
        let Some(init) = &self.init else { return Ok(false) };
        let mut fds = [PollFd::new(&self.watch, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        loop {
            let left = until.map(|until| until.0.saturating_sub(Timestamp::now().0));
            let left = left.map(|nanos| Timespec {
                tv_sec: nanos.max(0) / 1_000_000_000,
                tv_nsec: nanos.max(0) % 1_000_000_000,
            });
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => break,
            }
        }
        let modified = !fds[0].revents().is_empty();
        if modified {
            let mut buffer = [0u8; 4096];
            let _ = rustix::io::read(&self.watch, &mut buffer);
        } else {
            // Ended: what the shim still writes is read once more, then it is over.
            self.init = None;
        }
        Ok(true)
    }
}
