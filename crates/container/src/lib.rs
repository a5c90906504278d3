//! Container lifecycle: create, start, exec, logs, the shim, state, checkpoint and restore.
//!
//! A [`Host`] is one pair of `--root` and `--runroot`. There is no daemon: every command opens the
//! host, checks what the database claims against the kernel, does its work and ends. What lives
//! longer is one [`shim`] a container, the parent of the container's init.
#![forbid(unsafe_code)]

pub mod audit;
pub mod cancel;
pub mod cgroup;
pub mod checkpoint;
pub mod config;
mod console;
pub mod error;
mod etc;
pub mod extras;
pub mod health;
mod host;
pub mod ids;
pub mod keeper;
mod leftovers;
pub mod lifecycle;
mod lock;
mod netlock;
mod network;
mod networks;
pub mod paths;
pub mod policy;
pub mod process;
mod room;
mod runtime;
pub mod shim;
pub mod signal;
pub mod spec;
pub mod state;
pub mod time;
pub mod transfer;
pub mod units;
pub mod volumes;

pub use error::{Error, Result};
pub use host::{ExitRecord, Host};
pub use lock::Lock;
