//! Control groups: in which groups each thread is, the groups' directories and settings.
//!
//! Captured from `/proc/PID/task/TID/cgroup`, read in the controller's cgroup namespace (whole
//! paths) and in the task's own (to learn where its namespace begins), and from the mounted
//! hierarchies of the host. Both versions and mixtures of them are carried as they are: one list of
//! memberships is a *set*; set 1 is the controller's.
//!
//! On restore the caller says into which groups the tree goes; groups that the tree had below its
//! own are made below those. Settings are put back as far as the host allows: a group whose limit
//! cannot be set is better than a program that does not come back. The caller's groups themselves
//! keep the caller's settings.
//!
//! Not captured: usage counters, pressure, who holds files of the group open.

mod capture;
mod entrance;
pub mod freezer;
pub(crate) mod hierarchy;
mod properties;
mod restore;

pub use capture::CgroupCollector;
pub use entrance::Entrance;
pub use restore::CgroupRestore;
