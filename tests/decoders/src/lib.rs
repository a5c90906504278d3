//! Everything that reads bytes from elsewhere, as functions of bytes.
//!
//! `fuzz/` has a program for each of them; `tests/corpus.rs` runs them over `fuzz/corpus/`, what
//! fuzzing found interesting so far. A function returns whatever the bytes are; it panics when a
//! decoder does, or when something was done that must not be.
#![forbid(unsafe_code)]

mod archive;
#[cfg(feature = "documents")]
mod documents;
mod images;
mod inside;
mod layer;
mod plan;
mod sealed;
mod wire;

use std::path::PathBuf;

/// A decoder: its name, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All of them. The names are those of the programs in `fuzz/fuzz_targets/`.
pub const TARGETS: &[Target] = &[
    ("answers", wire::answers),
    ("archive", archive::archive),
    #[cfg(feature = "documents")]
    ("conversation", wire::conversation),
    #[cfg(feature = "documents")]
    ("documents", documents::documents),
    ("elf", inside::elf),
    ("image_archive", layer::image_archive),
    ("images", images::images),
    ("layer", layer::layer),
    ("manifest", images::manifest),
    ("network_status", images::network_status),
    ("pagemap", images::pagemap),
    #[cfg(feature = "documents")]
    ("pages", wire::pages),
    ("plan", plan::plan),
    #[cfg(feature = "documents")]
    ("podman", documents::podman),
    ("proc", inside::proc),
    ("registry", wire::registry),
    ("sealed", sealed::sealed),
    #[cfg(feature = "documents")]
    ("users", documents::users),
];

/// Runs one of [`TARGETS`].
///
/// # Panics
/// There is no such target; or what it found.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no decoder {name}"));
    target(bytes);
}

/// A directory of its own, in memory where there is room.
fn scratch() -> tempfile::TempDir {
    let shm = PathBuf::from("/dev/shm");
    let made = match shm.is_dir() {
        true => tempfile::Builder::new().prefix("arctern-decoder-").tempdir_in(shm),
        false => tempfile::Builder::new().prefix("arctern-decoder-").tempdir(),
    };
    made.expect("a temporary directory")
}
