//! Moving running containers from host to host.
//!
//! [`source`] has the container and asks; [`receive`] runs on the other host and answers. What they
//! say is in [`message`], how it is framed in [`wire`], how they are connected in [`transport`].
//! [`policy`] decides how often memory is copied ahead.
#![forbid(unsafe_code)]

pub mod destination;
mod error;
pub mod message;
pub mod pages;
pub mod policy;
mod receive;
mod source;
mod throttle;
pub mod transport;
pub mod wire;

pub use error::MigrateError;
pub use receive::receive;
pub use source::{
    Estimate, Forwarding, Freezing, MigrateOptions, Moved, Outcome, Plan, RoundDone, Watch,
    migrate, resolve,
};
