//! Descriptors that were sent over a unix socket and not received (SCM_RIGHTS): capture. The restore
//! is in [`super::passed_restore`].
//!
//! Peeking gives the controller descriptors of the same descriptions. Those that a task has open too
//! are known already; the others are on their way only and are collected through the controller's
//! descriptor. They have no number in `fdinfo-%u.img`; `sk-queues.img` names their ids, as CRIU does.
//!
//! Refused: what is on its way only and needs a task to be put back: epoll, inotify, terminals,
//! pidfds, netlink sockets, locked files.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use arctern_image::messages::FileEntry;
use arctern_sys::{Pid, proc};
use nix::sys::stat::fstat;

use super::capture::FileCollector;
use super::descriptor::{self, Descriptor};
use crate::error::{CaptureError, Refusal, Remedy};
use crate::tree::{FrozenTask, FrozenTree};

/// Descriptors of the controller's that lead to what is on its way only.
#[derive(Debug, Default)]
pub(super) struct Passed(HashMap<i32, OwnedFd>);

impl FileCollector {
    /// A descriptor that was met before, once more: a task's, or one that is on its way.
    pub(super) fn again(&self, task: &FrozenTask, fd: i32, passed: bool) -> io::Result<OwnedFd> {
        match self.passed.0.get(&fd).filter(|_| passed) {
            Some(kept) => kept.try_clone(),
            None => task.pidfd.getfd(fd),
        }
    }

    /// Finds out what is on its way in the unix sockets. A socket may be on its way itself, with
    /// descriptors in its queue.
    pub(super) fn collect_passed(
        &mut self,
        tree: &FrozenTree,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), CaptureError> {
        let mut at = 0;
        while at < self.unix.members.len() {
            let member = &self.unix.members[at];
            if member.descriptors != 0 {
                let index = member.index;
                let mut queue = self.unread(tree, member)?;
                for message in &mut queue {
                    for fd in std::mem::take(&mut message.descriptors) {
                        message.rights.extend(self.on_its_way(tree, index, fd, refusals)?);
                    }
                }
                self.unix.members[at].queue = Some(queue);
            }
            at += 1;
        }
        Ok(())
    }

    /// The id of a description that was sent to a socket of task `index`; None if it was refused.
    fn on_its_way(
        &mut self,
        tree: &FrozenTree,
        index: usize,
        file: OwnedFd,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<u32>, CaptureError> {
        let task = &tree.tasks[index];
        let (own, fd) = (Pid(std::process::id() as i32), file.as_raw_fd());
        let failed = |e| task.failed("a descriptor on its way", "look at it")(e);
        let link = nix::fcntl::readlink(&proc::path(own, &format!("fd/{fd}")));
        let link = PathBuf::from(link.map_err(|e| failed(e.into()))?);
        let info = proc::fdinfo::read(own, fd).map_err(failed)?;
        let stat = fstat(&file).map_err(|e| failed(e.into()))?;
        let flags = info.flags & !(libc::O_CLOEXEC as u32);
        let bucket = (stat.st_dev, stat.st_ino, info.pos, flags, info.mnt_id, info.eventfd_id);
        let place = match self.find_known(bucket, own, fd).map_err(failed)? {
            Ok((id, _)) => return Ok(Some(id)),
            Err(place) => place,
        };
        let locked = !info.locks.is_empty();
        let fown = descriptor::owner(tree, &file).map_err(failed)?;
        let kept = file.try_clone().map_err(failed)?;
        let mut d = Descriptor {
            tree,
            index,
            fd,
            passed: true,
            link,
            stat,
            info,
            file,
            fown: fown.clone().unwrap_or_default(),
        };
        if locked || fown.is_none_or(|fown| fown.pid != 0) {
            refusals.push(d.refuse(
                "it is locked or has a signal owner, and no task has it open",
                Remedy::try_again("when the program has received it"),
            ));
            return Ok(None);
        }
        // The number that is kept is the one that its room will use.
        d.fd = kept.as_raw_fd();
        let fd = d.fd;
        self.passed.0.insert(fd, kept);
        let Some(entry) = self.object(&d, refusals)? else { return Ok(None) };
        if !carried(&entry) {
            refusals.push(d.refuse(
                "this kind of file cannot be carried while no task has it open",
                Remedy::try_again("when the program has received it"),
            ));
            return Ok(None);
        }
        let known = super::capture::Known { id: entry.id, kind: entry.r#type, pid: own, fd };
        self.files.push(entry);
        self.known.entry(bucket).or_default().insert(place, known);
        Ok(Some(known.id))
    }
}

/// Whether a description can be made that no task has open.
pub(super) fn carried(file: &FileEntry) -> bool {
    file.reg.as_deref().is_some_and(|reg| !reg.name.starts_with("/proc/"))
        || file.pipe.is_some()
        || file.fifo.is_some()
        || file.efd.is_some()
        || file.sgfd.is_some()
        || file.tfd.is_some()
        || file.memfd.is_some()
        || file.usk.is_some()
        || file.isk.is_some()
}
