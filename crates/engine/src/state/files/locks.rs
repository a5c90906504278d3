//! File locks: POSIX, flock and open-file-description locks.
//!
//! fdinfo lists with each descriptor the locks that belong to it. POSIX locks belong to the
//! descriptor table and show with every descriptor of the file, the others belong to the description.
//! Each must be taken by the process that has it, after every file is open. Refused: leases, and any
//! lock unless the caller asked for locks, since a lock says that somebody outside may wait for it.

use std::path::Path;

use arctern_image::images::ImageKind;
use arctern_image::messages::FileLockEntry;
use arctern_sys::proc::locks::{Lock, Owner};
use arctern_tracee::Batch;
use arctern_tracee::stub::Stub;

use super::capture::FileCollector;
use super::descriptor::part;
use super::restore::FilesRestore;
use crate::error::{Refusal, RestoreError, Subject};
use crate::tree::FrozenTask;

/// Kinds of locks in CRIU's images.
const POSIX: u32 = 1;
const FLOCK: u32 = 2;
const OFD: u32 = 4;
/// fcntl(2) lock commands of 64-bit kernels.
const F_SETLK: i32 = 6;
const F_OFD_SETLK: i32 = 37;

impl FileCollector {
    /// A lock that a descriptor shows.
    pub(super) fn lock(
        &mut self,
        task: &FrozenTask,
        fd: i32,
        link: &Path,
        id: u32,
        lock: Lock,
        refusals: &mut Vec<Refusal>,
    ) {
        let flag = match lock.owner {
            Owner::Posix => POSIX,
            Owner::Flock => FLOCK,
            Owner::Ofd => OFD,
            Owner::Lease => {
                refusals.push(task.refuse(
                    part(fd, link),
                    "a lease (F_SETLEASE) on the file cannot be carried",
                    "give the lease up before the checkpoint",
                ));
                return;
            }
        };
        // A POSIX lock shows with each descriptor of its file, the others with each duplicate.
        let owner = if lock.owner == Owner::Posix { task.ids.files } else { id };
        if !self.seen_locks.insert((lock.owner, owner, lock.file, lock.start, lock.end)) {
            return;
        }
        if !self.options.file_locks {
            refusals.push(task.refuse(
                part(fd, link),
                "the file is locked, and a lock may matter to processes outside of the tree",
                "checkpoint with --file-locks if nobody outside waits for it",
            ));
            return;
        }
        self.locks.push(FileLockEntry {
            flag,
            r#type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as u32,
            pid: task.inner_pid,
            fd,
            start: lock.start,
            len: lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1)),
        });
    }
}

impl FilesRestore {
    /// Takes all locks again.
    pub(super) fn restore_locks(&self, stubs: &[(usize, Stub)]) -> Result<(), RestoreError> {
        let locks: Vec<FileLockEntry> = self.images.read_all(ImageKind::Filelocks, 0)?;
        for lock in &locks {
            let task = self.tasks.iter().position(|task| task.pid == lock.pid);
            let found = task.and_then(|task| stubs.iter().find(|(index, _)| *index == task));
            let Some((task, stub)) = found else {
                return Err(RestoreError::Inconsistent(format!(
                    "a lock belongs to process {}, which is not in the images",
                    lock.pid
                )));
            };
            let mut batch = Batch::new();
            let call = if lock.flag & FLOCK != 0 {
                let exclusive = lock.r#type == libc::F_WRLCK as u32;
                let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
                batch.call(libc::SYS_flock, &[lock.fd.into(), (kind | libc::LOCK_NB).into()])
            } else {
                // struct flock: type, whence, start, length, pid.
                let mut bytes = [0; 32];
                bytes[0..2].copy_from_slice(&(lock.r#type as u16).to_ne_bytes());
                bytes[8..16].copy_from_slice(&lock.start.to_ne_bytes());
                bytes[16..24].copy_from_slice(&lock.len.to_ne_bytes());
                let value = batch.bytes(&bytes);
                let command = if lock.flag & OFD != 0 { F_OFD_SETLK } else { F_SETLK };
                batch.call(libc::SYS_fcntl, &[lock.fd.into(), command.into(), value.into()])
            };
            stub.run(&mut batch)?;
            batch.result(call).map_err(|source| RestoreError::Kernel {
                subject: Subject {
                    pid: lock.pid,
                    comm: self.tasks[*task].comm.clone(),
                    part: format!("fd {}", lock.fd),
                },
                what: "take its file lock again; somebody else may hold it now".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Refuses locks that the caller did not ask for.
    pub(super) fn check_locks(&self, refusals: &mut Vec<Refusal>) {
        let locks: Vec<FileLockEntry> =
            self.images.read_all(ImageKind::Filelocks, 0).unwrap_or_default();
        if let Some(lock) = locks.first()
            && !self.options.file_locks
        {
            let task = self.tasks.iter().find(|task| task.pid == lock.pid);
            refusals.push(Refusal {
                subject: Subject {
                    pid: lock.pid,
                    comm: task.map(|task| task.comm.clone()).unwrap_or_default(),
                    part: format!("fd {}", lock.fd),
                },
                cause: format!("the images hold {} file lock(s)", locks.len()),
                remedy: "restore with --file-locks".into(),
            });
        }
    }
}
