//! Address spaces: mappings (`mm-PID.img`) and private pages (`pagemap-PID.img`, `pages-N.img`).
//!
//! - [`vma`]: from `/proc/PID/smaps` to CRIU's entries, and what is refused.
//! - [`dump`]: which pages hold something private, and their copying.
//! - [`marks`]: NUMA policies and seals.
//! - [`vdso`]: is the kernel's code in the task this kernel's?
//! - [`space`]: an address space of the images, checked.
//! - [`rebuild`]: mappings and pages put back by remote calls, copy-on-write sharing kept.
//! - `preloaded`: a root task that was born with some of its memory.

pub mod dump;
pub mod marks;
mod preloaded;
mod reads;
pub mod rebuild;
pub mod space;
pub mod vdso;
pub mod vma;
