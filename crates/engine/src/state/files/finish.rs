//! What comes last, when all tasks and descriptors are in place: pidfds, epoll, watches, locks, signal
//! owners, terminals of sessions, seals.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use arctern_image::messages::{RegFileEntry, RemapType};
use arctern_sys::pidfd::PidFd;
use arctern_tracee::stub::Stub;

use super::install::{numbers_of, place};
use super::restore::FilesRestore;
use super::table::Opener;
use super::{epoll, ghost, inotify, owner, regular};
use crate::error::RestoreError;
use crate::restore_context::RestoreContext;

impl FilesRestore {
    /// What needs all tasks in place: pidfds, epoll, watches, locks, signal owners, seals; then
    /// closes what only the restore needed. `stubs` has one stub of every task that is no zombie.
    ///
    /// # Errors
    /// Something cannot be put in place.
    pub fn finish(
        &mut self,
        ctx: &mut RestoreContext,
        stubs: &[(usize, Stub)],
    ) -> Result<(), RestoreError> {
        let owners: BTreeMap<usize, Stub> = stubs
            .iter()
            .filter(|(task, _)| !self.tasks[*task].zombie && self.table_owner[*task] == *task)
            .copied()
            .collect();
        // Before /dev/tty is opened, which is the terminal of its opener's session.
        self.set_controlling_terminals(stubs)?;
        self.install_late(ctx, &owners)?;
        self.make_passed(ctx, &owners)?;
        self.deliver_late(&owners)?;
        let mut first: HashMap<usize, Vec<(u32, i32)>> = HashMap::new();
        for (id, holders) in &self.holders {
            if let Some((task, fd)) = holders.first() {
                first.entry(*task).or_default().push((*id, *fd));
            }
        }
        for (task, stub) in &owners {
            let mut table = self.tables[*task].take().unwrap_or_default();
            let (pid, comm) = (self.tasks[*task].pid, self.tasks[*task].comm.clone());
            let mut o = Opener::new(ctx, stub, &mut table, pid, &comm);
            let mine = first.remove(task).unwrap_or_default();
            self.finish_task(&mut o, *task, mine, &owners)?;
            o.flush()?;
            self.tables[*task] = Some(table);
        }
        self.restore_locks(stubs)?;
        self.memfds.seal()?;
        for stub in owners.values() {
            let args = [ctx.base().into(), u32::MAX.into(), 0.into()];
            stub.call("close_range of temporary descriptors", libc::SYS_close_range, &args)?;
        }
        self.ghost_names.remove();
        let linked: Vec<&RegFileEntry> = self
            .remaps
            .values()
            .filter(|remap| remap.remap_type == Some(RemapType::Linked as i32))
            .filter_map(|remap| self.files.get(&remap.remap_id)?.reg.as_deref())
            .collect();
        if let (false, Some((_, stub))) = (linked.is_empty(), stubs.first()) {
            let root = regular::root_of(stub.tid())?;
            let names: HashSet<&str> = linked.iter().map(|reg| reg.name.as_str()).collect();
            names.into_iter().for_each(|name| ghost::Names::remove_made(root.as_fd(), name));
        }
        Ok(())
    }

    /// Opens late descriptions in their first holder and hands them to the others.
    fn install_late(
        &mut self,
        ctx: &mut RestoreContext,
        owners: &BTreeMap<usize, Stub>,
    ) -> Result<(), RestoreError> {
        let late: Vec<u32> =
            self.holders.keys().copied().filter(|id| self.is_late(&[*id])).collect();
        for id in late {
            let mut shared: Option<OwnedFd> = None;
            for (task, _) in self.holders[&id].clone() {
                let Some(stub) = owners.get(&task) else { continue };
                let mut table = self.tables[task].take().unwrap_or_default();
                let (pid, comm) = (self.tasks[task].pid, self.tasks[task].comm.clone());
                let mut o = Opener::new(ctx, stub, &mut table, pid, &comm);
                o.item(self.part(id))?;
                let from = match &shared {
                    None => {
                        let from = self.make_one(&mut o, id)?;
                        if self.holders[&id].len() > 1 {
                            shared = Some(o.fetch(from)?);
                        }
                        from
                    }
                    Some(fd) => o.inject(fd.as_fd())?,
                };
                let wanted = &self.wanted[&self.tasks[task].ids.files_id];
                place(&mut o, id, from, &numbers_of(wanted)[&id], true);
                o.flush()?;
                self.tables[task] = Some(table);
            }
        }
        Ok(())
    }

    /// epoll items, watches and signal owners of the descriptions whose first holder is `task`.
    fn finish_task(
        &mut self,
        o: &mut Opener<'_>,
        task: usize,
        mine: Vec<(u32, i32)>,
        owners: &BTreeMap<usize, Stub>,
    ) -> Result<(), RestoreError> {
        for (id, fd) in mine {
            let file = self.files[&id].clone();
            if let Some(epoll) = &file.epfd
                && !epoll.tfd.is_empty()
            {
                o.item(self.part(id))?;
                for item in &epoll.tfd {
                    let here = o.table.get(item.tfd as i32);
                    let elsewhere = match item.id {
                        0 if here.is_some() => None,
                        target => Some(self.bring(o, task, target, item.tfd, owners)?),
                    };
                    epoll::add(o, fd, item, elsewhere.map(|(fd, _)| fd));
                    if let Some((fd, true)) = elsewhere {
                        o.close(fd);
                    }
                    if let Some(kept) = here.filter(|_| elsewhere.is_some()) {
                        let wanted = &self.wanted[&self.tasks[task].ids.files_id];
                        let cloexec = wanted
                            .iter()
                            .any(|d| d.id == kept && d.fd == item.tfd && d.flags & 1 != 0);
                        o.set_cloexec(item.tfd as i32, cloexec);
                    }
                    o.item(self.part(id))?;
                }
            }
            if let Some(inotify) = &file.ify {
                o.item(self.part(id))?;
                inotify::watch(o, fd, inotify)?;
            }
            if let Some(fown) = owner::of(&file) {
                o.item(self.part(id))?;
                owner::set(o, fd, fown, owner::flags(&file));
            }
        }
        Ok(())
    }

    /// A number in the opener's stub that leads to description `id`, and whether it is a passing
    /// one. `id` 0: CRIU's images name no file, and the number `tfd` leads nowhere here.
    fn bring(
        &self,
        o: &mut Opener<'_>,
        task: usize,
        id: u32,
        tfd: u32,
        owners: &BTreeMap<usize, Stub>,
    ) -> Result<(i32, bool), RestoreError> {
        let holders = self.holders.get(&id).map_or(&[][..], Vec::as_slice);
        if let Some((_, fd)) = holders.iter().find(|(holder, _)| *holder == task) {
            return Ok((*fd, false));
        }
        let other = holders.iter().find_map(|(holder, fd)| Some((owners.get(holder)?, *fd)));
        let Some((stub, fd)) = other else {
            return Err(RestoreError::Inconsistent(format!(
                "process {} watches descriptor {tfd}, which it does not have",
                self.tasks[task].pid
            )));
        };
        let fetched = PidFd::open(stub.tid())
            .and_then(|handle| handle.getfd(fd))
            .map_err(o.failed_here("fetch what it watches"))?;
        Ok((o.inject(fetched.as_fd())?, true))
    }
}
