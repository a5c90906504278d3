//! Descriptor tables, open file descriptions and the objects behind them.
//!
//! Three levels, as in the kernel: a descriptor table holds numbers with close-on-exec flags
//! (`fdinfo-%u.img`); a number leads to an open file description, which tasks share after fork or
//! dup and which has position, status flags and an owner of signals (`files.img`); a description
//! leads to an object (a path, a pipe, a socket, …).
//!
//! Capture ([`FileCollector`]): every descriptor is looked at through /proc/PID/fd and fdinfo and
//! duplicated with pidfd_getfd(2); kcmp(2) tells which descriptions are one. Nothing is changed in
//! the tasks. What has contents outside of the file system (pipes, memfds, queues, deleted files)
//! is copied by [`FileCollector::write`].
//!
//! Restore ([`FilesRestore`]): a description that one descriptor table holds is opened by remote
//! calls in its own task; one that several hold is opened in their closest common ancestor before
//! they are cloned, and inherited. What refers to other tasks or descriptors (epoll, locks, signal
//! owners, pidfds) comes last, when everything else is in place.
//!
//! One module a kind; each has its capture, its restore and its refusals.

mod beneath;
pub mod build_id;
mod capture;
mod confined;
mod descriptor;
mod epoll;
mod event;
mod finish;
mod ghost;
mod groups;
mod inet;
mod inotify;
mod install;
mod locks;
mod memfd;
mod netlink;
mod owner;
mod passed;
mod passed_restore;
mod pipe;
mod regular;
mod restore;
mod socket;
mod sockopts;
mod table;
mod tcp;
mod tty;
mod tty_restore;
mod udp;
mod udp_restore;
mod unix;
mod unix_outside;
mod unix_peer;
mod unix_peer_restore;
mod unix_pending;
mod unix_queue;
mod unix_restore;
mod unix_senders;

pub use capture::{FileCollector, FileOptions};
pub use restore::{FileRestoreOptions, FilesRestore};
pub(crate) use tcp::{ClosedWindows, examine as examine_waiting};
pub use tty_restore::orphans as orphan_terminals;
