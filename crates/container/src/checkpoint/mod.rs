//! Checkpoint and restore of containers.

pub(crate) mod restore;
