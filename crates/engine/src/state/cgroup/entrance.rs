//! How the root task of a restore gets into the caller's groups.
//!
//! Whoever moves another process from group to group waits for a grace period of the kernel's (10 to
//! 16 ms: `cgroup_threadgroup_rwsem`). Neither a process that is born in its group (version 2,
//! CLONE_INTO_CGROUP, kernel 5.7) nor a thread that goes into a group by itself (version 1, «0» to
//! `tasks`) makes anybody wait.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use arctern_sys::Pid;
use arctern_tracee::Batch;
use arctern_tracee::stub::Stub;

use crate::error::RestoreError;
use crate::restore_context::{failed, subject};

/// The caller's groups, opened before the root task is made, which gets copies of the descriptors.
#[derive(Debug, Default)]
pub struct Entrance {
    /// Directory of the group of version 2, in which the task is born.
    unified: Option<(PathBuf, File)>,
    /// `tasks` of the groups of version 1.
    tasks: Vec<(PathBuf, File)>,
}

impl Entrance {
    /// Opens groups, at most one of each hierarchy.
    pub fn open(dirs: &[PathBuf]) -> Result<Entrance, RestoreError> {
        let mut entrance = Entrance::default();
        for dir in dirs {
            let what = format!("open the group {}", dir.display());
            let failed = failed(subject(0, "", "control groups"), what);
            let tasks = dir.join("tasks");
            match tasks.exists() {
                true => {
                    let file = OpenOptions::new().write(true).open(&tasks).map_err(failed)?;
                    entrance.tasks.push((dir.clone(), file));
                }
                false => {
                    let directory = File::open(dir).map_err(failed)?;
                    entrance.unified = Some((dir.clone(), directory));
                }
            }
        }
        Ok(entrance)
    }

    /// The group of version 2 for [`arctern_sys::clone::spawn_stub`].
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, directory)| directory.as_fd())
    }

    /// Where [`Entrance::unified`] is.
    pub fn unified_path(&self) -> Option<&Path> {
        self.unified.as_ref().map(|(path, _)| path.as_path())
    }

    /// Lets the task, which still has the controller's descriptors, go into the groups of version 1.
    pub(super) fn take_in(&self, stub: &Stub) -> Result<(), RestoreError> {
        let mut batch = Batch::new();
        let zero = batch.bytes(b"0");
        let calls: Vec<_> = (self.tasks.iter())
            .map(|(dir, file)| {
                let args = [file.as_raw_fd().into(), zero.into(), 1.into()];
                (dir, batch.call(libc::SYS_write, &args))
            })
            .collect();
        stub.run(&mut batch)?;
        for (dir, call) in calls {
            let Pid(pid) = stub.tid();
            let what = format!("put it into {}", dir.display());
            batch.result(call).map_err(failed(subject(pid, "", "control groups"), what))?;
        }
        Ok(())
    }
}
