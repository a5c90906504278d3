//! Capture and restore of process trees.
#![forbid(unsafe_code)]

pub mod error;
pub mod options;
pub mod restore_context;
pub mod state;
pub mod tree;

pub use error::{CaptureError, Refusal, RestoreError, Subject};
