//! Whole directory trees as tar streams, and copies of them: the files of volumes, in archives
//! (`volumes/NAME.tar`) and when an image's content goes into a new volume.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::diff::{self, ApplyError, CaptureError, Source};
use crate::pack::Packed;
use crate::unpack::{Devices, Unpacked};

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

/// What the regular files of a tree amount to, in bytes. One with several names counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Their lengths.
    pub length: u64,
    /// What a copy takes at least: holes need not be copied.
    pub least: u64,
}

/// Measures the files below `dir`. What vanishes meanwhile or cannot be read counts nothing.
///
/// # Errors
/// `dir` itself cannot be read.
pub fn measure(dir: &Path) -> io::Result<Measured> {
    let mut sum = Measured::default();
    let mut known = HashSet::new();
    let mut add = |file: &Metadata| {
        if file.is_file() && (file.nlink() == 1 || known.insert((file.dev(), file.ino()))) {
            sum.length += file.len();
            sum.least += file.len().min(file.blocks().saturating_mul(512));
        }
    };
    let mut open = vec![std::fs::read_dir(dir)?];
    while let Some(entries) = open.last_mut() {
        let Some(entry) = entries.next() else {
            open.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => open.extend(std::fs::read_dir(entry.path())),
            Ok(metadata) => add(&metadata),
            Err(_) => {}
        }
    }
    Ok(sum)
}

/// Writes everything in `dir` to `out`: paths relative to it, itself first.
///
/// # Errors
/// [`TreeError::Archive`].
pub fn archive(dir: &Path, out: impl Write) -> Result<Packed, TreeError> {
    let source = Source { upper: dir, lowers: &[], excludes: &[] };
    Ok(diff::pack(&source, out)?)
}

/// Writes the files of a stream below `dir`, over what is there; of device nodes only `devices`.
///
/// # Errors
/// [`TreeError::Extract`].
pub fn extract(mut stream: impl Read, dir: &Path, devices: Devices) -> Result<Unpacked, TreeError> {
    Ok(diff::apply(Some(&mut stream), &[], dir, devices)?)
}

/// Writes everything of the file system that `dir` is on to disk.
///
/// # Errors
/// The directory is not there, or the disk fails.
pub fn sync(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(dir)?)?)
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
        let extracted = extract(reader, to, Devices::All);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_second_names_take_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("a/b")).expect("directories");
        std::fs::write(path("a/b/full"), vec![1; 70_000]).expect("a file");
        std::fs::hard_link(path("a/b/full"), path("again")).expect("a link");
        std::os::unix::fs::symlink("/", path("root")).expect("a link");
        let sparse = std::fs::File::create(path("sparse")).expect("a file");
        sparse.set_len(1 << 30).expect("a length");
        let measured = measure(dir.path()).expect("measured");
        assert_eq!(measured.length, 70_000 + (1 << 30));
        assert_eq!(measured.least, 70_000);
        assert!(measure(&path("missing")).is_err());
    }
}
