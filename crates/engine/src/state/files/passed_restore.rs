//! Descriptors that were sent over a unix socket and not received: restore.
//!
//! What is on its way only is made in the task that holds the receiving socket, or with what it
//! belongs to (the other end of a pipe), and waits there under a temporary number. The messages are
//! sent when every description is in place; what was shut down comes after them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use arctern_sys::pidfd::PidFd;
use arctern_tracee::stub::Stub;

use super::install::park;
use super::passed::carried;
use super::restore::FilesRestore;
use super::table::Opener;
use super::unix_restore::Late;
use super::unix_senders::deliver;
use crate::error::{Refusal, RestoreError};
use crate::restore_context::{RestoreContext, failed};

impl FilesRestore {
    /// Finds the descriptions that are on their way only. A socket that is on its way itself may
    /// have descriptors in its queue.
    pub(super) fn find_passed(&mut self) -> Result<(), RestoreError> {
        loop {
            let mut found = BTreeMap::new();
            for (socket, queue) in &self.queues {
                let holder = self.holders.get(socket).and_then(|holders| holders.first());
                let task = holder.map(|(task, _)| *task).or(self.passed.get(socket).copied());
                let Some(task) = task else { continue };
                for id in queue.iter().flat_map(|message| &message.rights) {
                    if !self.files.contains_key(id) {
                        return Err(RestoreError::Inconsistent(format!(
                            "file {id} was sent to socket {socket}, and files.img does not list it"
                        )));
                    }
                    if !self.holders.contains_key(id) && !self.passed.contains_key(id) {
                        found.insert(*id, task);
                    }
                }
            }
            if found.is_empty() {
                return Ok(());
            }
            self.passed.extend(found);
        }
    }

    /// What is on its way only and cannot be made.
    pub(super) fn check_passed(&self, refusals: &mut Vec<Refusal>) {
        for id in self.passed.keys().filter(|id| !carried(&self.files[id])) {
            refusals.push(Refusal {
                subject: self.named_subject(*id),
                cause: "it was sent over a unix socket, and no task has it open".to_owned(),
                remedy: "checkpoint when the program has received it".into(),
            });
        }
    }

    /// Makes what is on its way only and was not made together with something else.
    pub(super) fn make_passed(
        &mut self,
        ctx: &mut RestoreContext,
        owners: &BTreeMap<usize, Stub>,
    ) -> Result<(), RestoreError> {
        for id in self.passed.keys().copied().collect::<Vec<_>>() {
            if self.parked(id).is_some() {
                continue;
            }
            let group = self.groups[self.group_of[&id]].clone();
            let task = group.opener;
            let Some(stub) = owners.get(&task) else { continue };
            let mut table = self.tables[task].take().unwrap_or_default();
            let (pid, comm) = (self.tasks[task].pid, self.tasks[task].comm.clone());
            let mut o = Opener::new(ctx, stub, &mut table, pid, &comm);
            for (id, from) in self.make(&mut o, &group)? {
                park(&mut o, id, from);
            }
            o.flush()?;
            self.tables[task] = Some(table);
        }
        Ok(())
    }

    /// Task and number of what is on its way only, once it is made.
    fn parked(&self, id: u32) -> Option<(usize, i32)> {
        let task = self.groups[*self.group_of.get(&id)?].opener;
        let (fd, _) = self.tables[task].as_ref()?.iter().find(|(_, known)| *known == id)?;
        Some((task, fd))
    }

    /// Sends the messages with descriptors, and what comes with and after them.
    pub(super) fn deliver_late(
        &mut self,
        owners: &BTreeMap<usize, Stub>,
    ) -> Result<(), RestoreError> {
        let Late { queues, shutdowns } = std::mem::take(&mut self.late_unix);
        for (socket, through, shown) in queues {
            let failed = |e| failed(self.named_subject(socket), "put unread messages back")(e);
            for message in self.queues.get(&socket).into_iter().flatten() {
                let rights = message.rights.iter().map(|id| self.anywhere(*id, owners));
                let rights = rights.collect::<io::Result<Vec<_>>>().map_err(failed)?;
                deliver(&through, None, message, &rights, shown).map_err(failed)?;
            }
        }
        for (socket, how) in shutdowns {
            let how = match how {
                0 => nix::sys::socket::Shutdown::Read,
                1 => nix::sys::socket::Shutdown::Write,
                _ => nix::sys::socket::Shutdown::Both,
            };
            nix::sys::socket::shutdown(socket.as_raw_fd(), how).map_err(|errno| {
                failed(self.named_subject(0), "shut the unix socket down")(errno.into())
            })?;
        }
        Ok(())
    }

    /// A description, from whoever has it.
    fn anywhere(&self, id: u32, owners: &BTreeMap<usize, Stub>) -> io::Result<OwnedFd> {
        let held = self.holders.get(&id).into_iter().flatten().copied();
        let mut places = held.chain(self.parked(id));
        let found = places.find_map(|(task, fd)| Some((owners.get(&task)?, fd)));
        let (stub, fd) = found.ok_or(io::ErrorKind::NotFound)?;
        PidFd::open(stub.tid())?.getfd(fd)
    }
}
