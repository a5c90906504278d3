//! The log of CRIU's command line: `(SECONDS.MICROSECONDS) text`, errors with `Error` before them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use arctern_engine::options::{Event, Events};

/// CRIU's levels.
const ERROR: u8 = 1;
const WARNING: u8 = 2;
const INFO: u8 = 3;

/// Where the engine's events go.
pub struct Log {
    begin: Instant,
    /// None for standard error.
    file: Option<File>,
    level: u8,
}

impl Log {
    /// Opens the log.
    pub fn open(path: Option<&Path>, level: u8) -> io::Result<Log> {
        let file = path.map(File::create).transpose()?;
        Ok(Log { begin: Instant::now(), file, level })
    }

    /// Tells what was done.
    pub fn info(&mut self, text: &str) {
        self.write(INFO, "", text);
    }

    /// Tells what the user should know.
    pub fn warning(&mut self, text: &str) {
        self.write(WARNING, "Warn: ", text);
    }

    /// Tells what went wrong.
    pub fn error(&mut self, text: &str) {
        self.write(ERROR, "Error: ", text);
    }

    fn write(&mut self, level: u8, prefix: &str, text: &str) {
        if level > self.level {
            return;
        }
        let time = self.begin.elapsed();
        let mut lines = String::new();
        for line in text.lines() {
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            lines.push_str(&format!("({seconds:02}.{micros:06}) {prefix}{line}\n"));
        }
        // A log that cannot be written is no reason to fail what it tells of.
        let _ = match &mut self.file {
            Some(file) => file.write_all(lines.as_bytes()),
            // Errors are shown on standard error by the command itself.
            None if level == ERROR => Ok(()),
            None => io::stderr().write_all(lines.as_bytes()),
        };
    }
}

impl Events for Log {
    fn event(&mut self, event: Event) {
        match event {
            Event::Phase(name) => self.write(INFO, "", name),
            Event::Warning(text) => self.warning(&text),
            Event::Progress { .. } => {}
        }
    }
}
