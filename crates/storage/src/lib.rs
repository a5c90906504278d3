//! Images, layers, overlay root file systems, volumes and checkpoints at rest.
//!
//! # Layout
//!
//! ```text
//! ROOT/version                 format of this layout; a newer one is refused
//! ROOT/lock                    flock(2) of every mutation
//! ROOT/images.json             images with their names
//! ROOT/blobs/sha256/HEX        configurations, manifests and layer archives, by digest
//! ROOT/layers/HEX/diff         a layer unpacked once, by the digest of its plain archive
//! ROOT/containers/ID/upper     what a container changed; beside it `work` and `root.json`
//! ROOT/volumes/NAME/_data      files of a volume; beside it `volume.json`
//! ROOT/checkpoints/ID          the checkpoint of a stopped container
//! ROOT/tmp                     what running commands are making or removing
//! RUNROOT/mounts/ID            where a container's root is mounted
//! ```
//!
//! Two stores with different roots are two hosts: nothing is shared.
//!
//! # What survives a crash
//!
//! Things are made in `tmp`, synced, and renamed into place; things are removed by a rename into
//! `tmp` first. Each directory there is locked by the command that uses it, so that the next
//! [`Store::open`] knows which ones are leftovers of a killed one and removes them. References go
//! away before what they refer to, and come after it: a crash leaves files that nothing refers to,
//! never an image without its files.
//!
//! # Hostile archives
//!
//! Layers and changes are unpacked by [`unpack`] below a directory that they cannot leave
//! ([`beneath`]): no `..`, no absolute paths, no way through links, no attributes that steer
//! overlayfs. [`tarstream`] limits every length before it allocates.
#![forbid(unsafe_code)]

pub mod audit;
pub mod beneath;
mod change;
mod checkpoint_image;
pub mod diff;
mod error;
mod image;
mod layer;
mod layout;
mod names;
pub mod pack;
pub mod registry;
mod remove;
mod rootfs;
mod save;
mod store;
pub mod tarstream;
pub mod tree;
pub mod unpack;
mod volume;

pub use change::Changes;
pub use checkpoint_image::Draft;
pub use error::{StoreError, chain};
pub use image::{Image, ImportOptions};
pub use names::ImageName;
pub use oci_spec::image::ImageConfiguration;
pub use remove::Removed;
pub use rootfs::RootFs;
pub use save::{ImageArchive, LayerBlob, SaveFormat};
pub use store::Store;
pub use volume::Volume;
