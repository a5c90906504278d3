//! CRIU-compatible images, the page store, checkpoint archives and the manifest: bytes, no kernel.
//!
//! - [`messages`]: CRIU's protobuf messages.
//! - [`images`]: files of them in a directory.
//! - [`pages`]: the page store, the largest part of a checkpoint.
//! - [`describe`]: images as JSON for people.
//! - [`summary`]: what is in a checkpoint, and what is different in another one.
//! - [`archive`] and [`manifest`]: a checkpoint as one file, with digests.
//! - [`seal`]: signatures and encryption of that file.
#![forbid(unsafe_code)]

pub mod archive;
pub mod describe;
pub mod digest;
pub mod images;
pub mod manifest;
#[expect(missing_docs, reason = "fields carry CRIU's names; their meaning is in docs/format.md")]
pub mod messages;
pub mod pages;
pub mod seal;
mod section;
pub mod summary;
