//! One descriptor of a frozen task, as every kind's capture sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use arctern_image::messages::{FdTypes, FileEntry, FownEntry};
use arctern_sys::Pid;
use arctern_sys::fd::{SignalOwner, signal_owner};
use arctern_sys::proc::fdinfo::FdInfo;
use nix::sys::stat::FileStat;

use crate::error::{CaptureError, Refusal, Remedy};
use crate::tree::{FrozenTask, FrozenTree};

/// A descriptor with everything that the kernel tells about it.
pub(super) struct Descriptor<'a> {
    pub tree: &'a FrozenTree,
    /// Index of the task.
    pub index: usize,
    pub fd: i32,
    /// The number is the controller's own: the description was sent to a socket of the task and not
    /// received.
    pub passed: bool,
    /// Text of `/proc/PID/fd/FD`.
    pub link: PathBuf,
    pub stat: FileStat,
    pub info: FdInfo,
    /// The description, shared with the task.
    pub file: OwnedFd,
    pub fown: FownEntry,
}

impl Descriptor<'_> {
    pub fn task(&self) -> &FrozenTask {
        &self.tree.tasks[self.index]
    }

    /// For errors and refusals.
    pub fn part(&self) -> String {
        if self.passed {
            return format!("a descriptor on its way ({})", self.link.display());
        }
        part(self.fd, &self.link)
    }

    pub fn refuse(&self, cause: impl Into<String>, remedy: impl Into<Remedy>) -> Refusal {
        self.task().refuse(self.part(), cause, remedy)
    }

    pub fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> CaptureError + use<> {
        let (subject, what) = (self.task().subject(self.part()), what.to_owned());
        move |source| CaptureError::Kernel { subject, what, source }
    }

    /// Status and access flags without O_CLOEXEC, which belongs to the descriptor.
    pub fn flags(&self) -> u32 {
        self.info.flags & !(libc::O_CLOEXEC as u32)
    }

    /// `/proc/PID/fd/FD`: opens the same object as a new description.
    pub fn path(&self) -> PathBuf {
        let own = Pid(std::process::id() as i32);
        let pid = if self.passed { own } else { self.task().pid };
        arctern_sys::proc::path(pid, &format!("fd/{}", self.fd))
    }
}

/// `fd 7 (socket:[88213])`.
pub(super) fn part(fd: i32, link: &std::path::Path) -> String {
    format!("fd {fd} ({})", link.display())
}

/// An empty entry of a kind; the caller fills the kind's own message.
pub(super) fn entry(kind: FdTypes, id: u32) -> FileEntry {
    FileEntry { r#type: kind as i32, id, ..FileEntry::default() }
}

/// Reads the signal owner of a description. Ids are translated into the tree's own; an owner outside
/// of the tree is None.
pub(super) fn owner(tree: &FrozenTree, file: impl AsFd) -> io::Result<Option<FownEntry>> {
    let owner = match signal_owner(file) {
        // O_PATH descriptors have no owner.
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => SignalOwner::default(),
        other => other?,
    };
    let mut fown = FownEntry {
        uid: owner.uid,
        euid: owner.euid,
        signum: owner.signal as u32,
        pid_type: 0,
        pid: 0,
    };
    if owner.pid == 0 {
        return Ok(Some(fown));
    }
    // CRIU writes the kernel's enum pid_type of F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP: 0, 1, 2.
    fown.pid_type = owner.kind as u32;
    let mut tasks = tree.tasks.iter();
    let inner = match owner.kind {
        0 => tree
            .tasks
            .iter()
            .flat_map(|task| &task.thread_status)
            .find(|thread| thread.ns_pid.first() == Some(&owner.pid))
            .map(|thread| thread.inner_pid()),
        1 => tasks.find(|task| task.pid.0 == owner.pid).map(|task| task.inner_pid),
        _ => tasks
            .find(|task| task.status.ns_pgid.first() == Some(&owner.pid))
            .and_then(|task| task.status.ns_pgid.last().copied()),
    };
    Ok(inner.map(|pid| FownEntry { pid: pid as u32, ..fown }))
}
