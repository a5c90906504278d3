//! Capture and restore of process trees.
#![forbid(unsafe_code)]

mod capture;
mod check;
pub mod confinement;
pub mod error;
mod faults;
pub mod freeze;
pub mod options;
pub mod park;
mod patience;
pub mod plan;
pub mod precopy;
mod restore;
pub mod restore_context;
pub mod room;
pub mod state;
pub mod tracking;
pub mod tree;
mod writer;

pub use capture::{STEPS as CAPTURE_STEPS, capture};
pub use check::check;
pub use error::{CaptureError, Refusal, Remedy, RestoreError, Subject};
pub use precopy::{PageDirectory, PageSink, Precopy, RoundFigures};
pub use restore::{describe_plan, examine, restore};
