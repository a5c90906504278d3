//! The namespaces of a tree: which ones are the tree's own, what is in them, and how they are made
//! again.
//!
//! | namespace | what is carried | where it comes from |
//! |---|---|---|
//! | pid | that the root task is its pid 1; or the key of an external one | `/proc/PID/ns/pid` |
//! | net | the key of an external one; or an own one with nothing but `lo` | a thread inside |
//! | ipc | settings, shared memory, semaphores, message queues | `/proc/sys`, `/proc/sysvipc`, a thread inside |
//! | uts | host and domain name | a thread inside |
//! | time | both clocks | `/proc/PID/timens_offsets` |
//! | mnt | the mount tree, contents of its tmpfs | [`crate::state::mount`] |
//! | cgroup | that there is one | [`crate::state::cgroup`] |
//! | user | nothing: refused unless it is the controller's | |
//!
//! All tasks of a tree have the root task's namespaces; a task in another one is refused.
//!
//! On restore the pid, uts, ipc, mount and network namespaces begin with the clone of the root task.
//! The rest is done by remote calls in that task, in this order: network before sysfs is mounted;
//! cgroup after the task was put into its groups (the group is the root of the namespace) and before
//! cgroup file systems are mounted; time before anything looks at a clock; mounts last, since
//! afterwards the host's `/proc` is out of sight.

mod capture;
mod clocks;
mod ipc;
mod restore;

pub use capture::{NamespaceCollector, NamespaceOptions};
pub use restore::{NamespaceRestore, NamespaceRestoreOptions};
