//! Entering namespaces: a function runs in a thread of its own that joins them and then ends.
//!
//! A thread may join network, UTS, IPC and cgroup namespaces at any time and a mount namespace once
//! it has stopped sharing its working directory with the other threads (setns(2)). User and time
//! namespaces cannot be joined so. Nothing ever switches back: the thread is gone afterwards.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sched::{CloneFlags, setns, unshare};

use crate::Pid;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Process ids.
    Pid,
    /// Network devices, addresses, sockets.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Offsets of the monotonic and boot-time clocks.
    Time,
    /// Mounts.
    Mount,
    /// Users, groups and capabilities.
    User,
    /// The root of cgroup paths.
    Cgroup,
}

impl Kind {
    /// Every kind, in the order in which CRIU numbers namespaces.
    pub const ALL: [Kind; 8] = [
        Kind::Pid,
        Kind::Net,
        Kind::Ipc,
        Kind::Uts,
        Kind::Time,
        Kind::Mount,
        Kind::User,
        Kind::Cgroup,
    ];

    /// Its file name in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Time => "time",
            Kind::Mount => "mnt",
            Kind::User => "user",
            Kind::Cgroup => "cgroup",
        }
    }

    /// Its `CLONE_NEW*` flag.
    pub fn flag(self) -> u64 {
        let flag = match self {
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Time => libc::CLONE_NEWTIME,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
        };
        flag as u32 as u64
    }
}

/// Opens the namespace of a process.
pub fn open(pid: Pid, kind: Kind) -> io::Result<File> {
    File::open(crate::proc::path(pid, &format!("ns/{}", kind.name())))
}

/// Runs `work` in a thread that has joined the namespaces of `pid` of the given kinds: network, UTS,
/// IPC, cgroup or mount. In a mount namespace the thread's root and working directory are the root
/// of that namespace.
pub fn inside<T: Send>(
    pid: Pid,
    kinds: &[Kind],
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let opened = kinds.iter().map(|&kind| open(pid, kind)).collect::<io::Result<Vec<_>>>()?;
    let opened: Vec<BorrowedFd<'_>> = opened.iter().map(AsFd::as_fd).collect();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)?;
            for namespace in &opened {
                setns(namespace, CloneFlags::empty())?;
            }
            work()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_kernels_names() {
        for kind in Kind::ALL {
            let ino = crate::proc::namespace(Pid(std::process::id() as i32), kind.name()).unwrap();
            assert!(ino.is_some(), "{kind:?}");
            assert_eq!(kind.flag().count_ones(), 1);
        }
    }
}
