//! What the tests of whole programs share: running workloads, calling the engines, skipping with a
//! reason, and finding what was left behind.
#![forbid(unsafe_code)]

pub mod attempts;
pub mod capture;
pub mod crash;
pub mod disk;
pub mod engine;
pub mod fault;
pub mod host;
pub mod hostile;
pub mod kinds;
pub mod lab;
pub mod load;
pub mod machine;
pub mod peer;
pub mod place;
pub mod process;
pub mod random;
pub mod registry;
pub mod relay;
pub mod skips;
pub mod ssh;
pub mod travel;
pub mod workload;
