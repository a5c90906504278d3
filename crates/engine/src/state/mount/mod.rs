//! The mounts of a tree's mount namespace.
//!
//! Captured from `/proc/PID/mountinfo` (read in the task's cgroup namespace, to which the roots of
//! cgroup mounts are relative). A mount is carried in one of these ways:
//!
//! - the root: the caller gives it at restore;
//! - an external mount: named by the caller at capture, bound from the host at restore;
//! - a file system that can be made anew (proc, sysfs, devpts, mqueue, cgroup, tmpfs with its
//!   contents, …);
//! - a bind of a piece of one of those, recognised by device number and root.
//!
//! Everything else is refused with the option that declares it external. Contents of tmpfs are read
//! through a private copy of the mount, so that what lies under other mounts is captured too.
//! Flags of mount and file system, peer groups and masters are kept. Not captured: POSIX message
//! queues (refused where there are some), mounts whose source was deleted, overmounted directories
//! of the root file system (they are the root file system's).
//!
//! On restore all is made with detached mounts held by descriptors: nothing is looked up by a path
//! that a link in the restored root could lead astray. The order is: sources on the host, new file
//! systems, contents and mount points, then the root is pivoted to and the mounts are attached,
//! parents first, and last the propagation is set, so that nothing propagates while it is built.

mod build;
mod calls;
mod capture;
mod confined;
mod contents;
mod groups;
mod plan;
mod table;

pub use build::MountRestore;
pub use capture::MountCollector;
