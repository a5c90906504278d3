//! Run containers and move them, running, from host to host.
#![forbid(unsafe_code)]
fn main() {}
