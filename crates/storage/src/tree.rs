//! Whole directory trees as tar streams, and copies of them: the files of volumes, in archives
//! (`volumes/NAME.tar`) and when an image's content goes into a new volume.

use std::io::{self, Read, Write};
use std::path::Path;

use crate::diff::{self, ApplyError, CaptureError, Source};
use crate::pack::Packed;
use crate::unpack::Unpacked;

/// A tree that could not be archived, extracted or copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Reading the tree or writing the stream.
    #[error(transparent)]
    Archive(#[from] CaptureError),
    /// Reading the stream or writing the tree.
    #[error(transparent)]
    Extract(#[from] ApplyError),
    /// No pipe or thread could be had.
    #[error("cannot set up a copy")]
    Setup(#[source] io::Error),
}

/// Writes everything in `dir` to `out`: paths relative to it, itself first.
///
/// # Errors
/// [`TreeError::Archive`].
pub fn archive(dir: &Path, out: impl Write) -> Result<Packed, TreeError> {
    let source = Source { upper: dir, lowers: &[], excludes: &[] };
    Ok(diff::pack(&source, out)?)
}

/// Writes the files of a stream below `dir`, over what is there.
///
/// # Errors
/// [`TreeError::Extract`].
pub fn extract(mut stream: impl Read, dir: &Path) -> Result<Unpacked, TreeError> {
    Ok(diff::apply(Some(&mut stream), &[], dir)?)
}

/// Copies the tree `from` over the tree `to`, which exists.
///
/// # Errors
/// [`TreeError`]; what was copied stays.
pub fn copy(from: &Path, to: &Path) -> Result<Unpacked, TreeError> {
    let (reader, writer) = io::pipe().map_err(TreeError::Setup)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| archive(from, io::BufWriter::with_capacity(1 << 16, writer)));
        // Dropped when extraction ends, so that a failure there ends the packing too.
        let extracted = extract(reader, to);
        match packing.join() {
            Ok(Ok(_)) => extracted,
            // The stream's end came early because of this.
            Ok(Err(error)) if extracted.is_ok() || !is_broken_pipe(&error) => Err(error),
            Ok(Err(_)) => extracted,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether packing failed only because nobody reads any more.
fn is_broken_pipe(error: &TreeError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::BrokenPipe;
        }
        source = error.source();
    }
    false
}
