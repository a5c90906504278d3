//! A frozen process tree: every task stopped under ptrace, with handles on it.

use std::io;

use arctern_sys::Pid;
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc::smaps::Mapping;
use arctern_sys::proc::{stat::Stat, status::Status};
use arctern_tracee::live::LiveSession;
use arctern_tracee::thread::StoppedThread;
use arctern_tracee::{Batch, TraceeError};

use crate::error::{CaptureError, Refusal, Remedy, Subject};

/// Ids of the kernel objects that a task may share with others, unique in one checkpoint. Equal ids
/// mean the same object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedIds {
    /// Address space.
    pub vm: u32,
    /// Descriptor table.
    pub files: u32,
    /// Root, working directory, umask.
    pub fs: u32,
    /// Signal handlers.
    pub sighand: u32,
}

/// One process of the tree.
#[derive(Debug)]
pub struct FrozenTask {
    /// As the controller sees it.
    pub pid: Pid,
    /// In its innermost pid namespace.
    pub inner_pid: i32,
    /// Index of the parent in [`FrozenTree::tasks`], None for the root.
    pub parent: Option<usize>,
    /// Stat line at the freeze.
    pub stat: Stat,
    /// Status of the leader at the freeze.
    pub status: Status,
    /// Handle; duplicates descriptors.
    pub pidfd: PidFd,
    /// Whether it runs and is only looked at ([`crate::check()`]): then no thread of it is stopped.
    pub observed: bool,
    /// Its threads, leader first. Empty for a zombie.
    pub threads: Vec<StoppedThread>,
    /// The status of each thread, in the same order.
    pub thread_status: Vec<Status>,
    /// Its mappings, without the session's own. Empty for a zombie.
    pub mappings: Vec<Mapping>,
    /// The open remote session of its address space. None for zombies, and for tasks that share
    /// the address space of an earlier task.
    pub session: Option<LiveSession>,
    /// Shared objects.
    pub ids: SharedIds,
}

impl FrozenTask {
    /// Whether the task has exited and waits for its parent.
    pub fn is_zombie(&self) -> bool {
        self.threads.is_empty() && !self.observed
    }

    /// The task with a part of it, for errors.
    pub fn subject(&self, part: impl Into<String>) -> Subject {
        Subject { pid: self.pid.0, comm: self.stat.comm.clone(), part: part.into() }
    }

    /// Names a refusal.
    pub fn refuse(
        &self,
        part: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<Remedy>,
    ) -> Refusal {
        Refusal { subject: self.subject(part), cause: cause.into(), remedy: remedy.into() }
    }

    /// Wraps an error of the kernel's.
    pub fn failed(
        &self,
        part: impl Into<String>,
        what: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> CaptureError {
        let (subject, what) = (self.subject(part), what.into());
        move |source| CaptureError::Kernel { subject, what, source }
    }

    /// Runs remote calls in the task's leader. The task must own the session of its address space
    /// (it does unless it shares the address space with an earlier task).
    pub fn run(&mut self, batch: &mut Batch) -> Result<(), TraceeError> {
        self.run_in(0, batch)
    }

    /// Runs a batch in each thread but the leader, all at the same time.
    pub fn run_others(&mut self, batches: &mut [Batch]) -> Result<(), TraceeError> {
        match &mut self.session {
            Some(session) => session.run_each(&mut self.threads[1..], batches),
            None => Err(TraceeError::NoVdso { pid: self.pid, why: "no session is open in it" }),
        }
    }

    /// Runs remote calls in the `index`-th thread.
    pub fn run_in(&mut self, index: usize, batch: &mut Batch) -> Result<(), TraceeError> {
        match &mut self.session {
            Some(session) => session.run(&mut self.threads[index], batch),
            None => Err(TraceeError::NoVdso { pid: self.pid, why: "no session is open in it" }),
        }
    }
}

/// The whole tree, root first, parents before children.
#[derive(Debug, Default)]
pub struct FrozenTree {
    /// The tasks.
    pub tasks: Vec<FrozenTask>,
}
