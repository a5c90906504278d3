//! CRIU-compatible images, the page store, checkpoint archives and the manifest: bytes, no kernel.
#![forbid(unsafe_code)]

pub mod images;
#[expect(missing_docs, reason = "fields carry CRIU's names; their meaning is in docs/format.md")]
pub mod messages;
pub mod pages;
