//! Capture and restore of process trees.
#![forbid(unsafe_code)]

pub mod options;
