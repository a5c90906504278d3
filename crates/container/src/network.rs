//! The container's side of the network crate: what a container's options mean for it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::config::{ContainerConfig, NetworkMode};
use crate::error::Result;
use crate::paths::Paths;

/// What a container got.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// Network namespace that its processes join; None for the host's.
    pub netns: Option<PathBuf>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// State of the network crate, as JSON, for the database.
    pub status: Option<String>,
}

/// Makes the network of a container.
pub fn setup(_paths: &Paths, config: &ContainerConfig) -> Result<Attachment> {
    match config.network {
        NetworkMode::Host | NetworkMode::None | NetworkMode::Bridge => Ok(Attachment::default()),
    }
}

/// Removes the network of a container; what is gone already is no error.
pub fn teardown(_paths: &Paths, _id: &str) -> Result<()> {
    Ok(())
}

/// The address in a stored status.
pub fn address(_status: &str) -> Option<Ipv4Addr> {
    None
}
