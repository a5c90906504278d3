//! Where archives go that a command makes: standard output, a device or pipe, or a file that has its name
//! only when all of it is there.

use std::fs::File;
use std::io::{self, StdoutLock, Write};
use std::path::Path;

use arctern_image::archive::Target;

/// An archive that is being written.
pub enum Output {
    /// Standard output.
    Stdout(StdoutLock<'static>),
    /// Something that is no file, and written to as it is.
    Device(File),
    /// A file without its name.
    File(Target),
}

impl Output {
    /// Opens it; none stands for standard output.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Output> {
        let Some(file) = file else { return Ok(Output::Stdout(io::stdout().lock())) };
        match std::fs::metadata(file) {
            Ok(there) if !there.is_file() && !there.is_dir() => {
                Ok(Output::Device(File::options().write(true).open(file)?))
            }
            _ => Ok(Output::File(Target::create_for_all(file)?)),
        }
    }

    /// Ends it, and gives a file its name. Dropped before, a file leaves nothing.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        match self {
            Output::File(file) => Ok(file.publish().map(drop)?),
            Output::Stdout(_) | Output::Device(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(bytes),
            Output::Device(out) => out.write(bytes),
            Output::File(out) => Write::write(out, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::Device(out) => out.flush(),
            Output::File(out) => Write::flush(out),
        }
    }
}
