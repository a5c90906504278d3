//! `logs`: what a container wrote, and what it goes on writing.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::process::ProcessHandle;
use crate::shim::log::{LogRecord, Stream};
use crate::state::Record;

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

    /// Waits until there may be more; false when the container has ended and nothing will come.
    pub fn wait_for_more(&mut self) -> io::Result<bool> {
        let Some(init) = &self.init else { return Ok(false) };
        let mut fds = [PollFd::new(&self.watch, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        loop {
            match poll(&mut fds, None) {
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
