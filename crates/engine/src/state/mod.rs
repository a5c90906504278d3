//! One module per kind of kernel state: how it is captured, how it is restored, what is refused.
//!
//! The rooms speak CRIU's messages directly (docs/adr/0003): what is captured is what the image
//! holds, so there is no second representation that could drift.

pub mod cgroup;
pub mod files;
pub mod memory;
pub mod mount;
pub mod namespaces;
pub mod restart;
pub mod shmem;
pub mod sleep;
pub mod task;
pub mod xstate;
