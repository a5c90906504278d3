//! Images, layers, overlay root file systems and checkpoint archives at rest.
#![forbid(unsafe_code)]

pub mod beneath;
mod change;
pub mod diff;
mod image;
mod names;
pub mod pack;
mod rootfs;
mod store;
pub mod tarstream;
pub mod unpack;
mod volume;

pub use change::Changes;
pub use image::{Image, ImportOptions, Removed};
pub use names::ImageName;
pub use oci_spec::image::ImageConfiguration;
pub use rootfs::RootFs;
pub use store::{Store, StoreError};
pub use volume::Volume;
