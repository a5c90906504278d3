//! Opens descriptions and gives every descriptor its number.
//!
//! Shared descriptions wait in the closest common ancestor of their holders, under the number that
//! they will have where that is free, so that most of them never move. Own descriptions are opened
//! in ascending order of their numbers, so that most land on them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;

use arctern_image::messages::FdinfoEntry;
use arctern_tracee::stub::Stub;

use super::groups::Group;
use super::restore::FilesRestore;
use super::table::{Opener, Table};
use super::{epoll, event, inotify, memfd, pipe, regular};
use crate::error::{RestoreError, Subject};
use crate::restore_context::RestoreContext;

impl FilesRestore {
    /// Makes the descriptions that tasks with different tables share and whose closest common
    /// ancestor is this task. Call before the task's children are cloned, parents first.
    ///
    /// # Errors
    /// Something cannot be made.
    pub fn open_shared(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        task: usize,
    ) -> Result<(), RestoreError> {
        self.prepare(ctx, stub)?;
        if self.tasks[task].zombie || self.table_owner[task] != task {
            return Ok(());
        }
        let inherited = match self.tables[task].take() {
            Some(table) => Some(table),
            None => self.tasks[task]
                .parent
                .map(|parent| self.table_owner[parent])
                .and_then(|parent| self.tables[parent].clone()),
        };
        let mut table = inherited.unwrap_or_default();
        self.look_above(ctx, stub, &mut table)?;
        let groups = self.shared_groups.get(&task).cloned().unwrap_or_default();
        let groups: Vec<Group> =
            groups.into_iter().map(|group| self.groups[group].clone()).collect();
        let (pid, comm) = (self.tasks[task].pid, self.tasks[task].comm.clone());
        let mut o = Opener::new(ctx, stub, &mut table, pid, &comm);
        for group in &groups {
            for (id, fd) in self.make(&mut o, group)? {
                let to = self.parking_place(&mut o, task, id, fd);
                if to == fd {
                    o.table.take(fd, id);
                } else {
                    o.duplicate(fd, to, id, false);
                    o.close(fd);
                }
            }
        }
        o.flush()?;
        self.tables[task] = Some(table);
        Ok(())
    }

    /// Notes which of the numbers for temporary descriptors are taken: other rooms use them too.
    fn look_above(
        &self,
        ctx: &RestoreContext,
        stub: &Stub,
        table: &mut Table,
    ) -> Result<(), RestoreError> {
        let numbers = arctern_sys::proc::descriptors(stub.tid()).map_err(|source| {
            let subject = Subject { pid: stub.tid().0, comm: String::new(), part: String::new() };
            let what = "list its descriptors".to_owned();
            RestoreError::Kernel { subject, what, source }
        })?;
        for fd in numbers.into_iter().filter(|fd| *fd >= ctx.base()) {
            if table.get(fd).is_none() {
                table.take(fd, 0);
            }
        }
        Ok(())
    }

    /// Says that `task` was cloned from another task than its parent, whose descriptors it has now.
    pub fn cloned_from(&mut self, task: usize, creator: usize) {
        self.tables[task] = self.tables[self.table_owner[creator]].clone();
    }

    /// Where a shared description waits: its number in this task or in another holder, if nothing
    /// is in the way there, else a temporary one.
    fn parking_place(&self, o: &mut Opener<'_>, task: usize, id: u32, landed: i32) -> i32 {
        let own = &self.wanted[&self.tasks[task].ids.files_id];
        let of_others = self.holders.get(&id).into_iter().flatten().map(|(_, fd)| *fd);
        let own_number = own.iter().find(|d| d.id == id).map(|d| d.fd as i32);
        let wanted_here = |fd: i32| own.binary_search_by_key(&(fd as u32), |d| d.fd).is_ok();
        // Another of its group may have landed there for the moment.
        let free = |o: &Opener<'_>, fd: i32| fd == landed || o.table.get(fd).is_none();
        if let Some(fd) = own_number
            && free(o, fd)
        {
            return fd;
        }
        for fd in of_others {
            if free(o, fd) && !wanted_here(fd) {
                return fd;
            }
        }
        o.ctx.temporary()
    }

    /// Opens a task's own descriptions and gives every descriptor its number and flags.
    ///
    /// # Errors
    /// Something cannot be opened.
    pub fn install(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        task: usize,
    ) -> Result<(), RestoreError> {
        if self.tasks[task].zombie || self.table_owner[task] != task {
            return Ok(());
        }
        let mut table = self.tables[task].take().unwrap_or_default();
        self.look_above(ctx, stub, &mut table)?;
        let wanted = self.wanted[&self.tasks[task].ids.files_id].clone();
        let (pid, comm) = (self.tasks[task].pid, self.tasks[task].comm.clone());
        let mut o = Opener::new(ctx, stub, &mut table, pid, &comm);
        let sources = clear(&mut o, &wanted);
        let numbers = numbers_of(&wanted);
        let mut placed: HashSet<u32> = HashSet::new();
        for (id, from) in sources {
            o.item(self.part(id))?;
            place(&mut o, id, from, &numbers[&id], false);
            placed.insert(id);
        }
        for descriptor in &wanted {
            if placed.contains(&descriptor.id) {
                continue;
            }
            let group = self.groups[self.group_of[&descriptor.id]].clone();
            if self.is_late(&group.ids) {
                continue;
            }
            let made = self.make(&mut o, &group)?;
            for (id, from) in step_aside(&mut o, made, &numbers) {
                if self.passed.contains_key(&id) {
                    park(&mut o, id, from);
                    continue;
                }
                place(&mut o, id, from, numbers.get(&id).map_or(&[], Vec::as_slice), true);
                placed.insert(id);
            }
        }
        o.flush()?;
        self.tables[task] = Some(table);
        Ok(())
    }

    /// Makes the descriptions of a group in the opener's stub: ids with their numbers.
    pub(super) fn make(
        &mut self,
        o: &mut Opener<'_>,
        group: &Group,
    ) -> Result<Vec<(u32, i32)>, RestoreError> {
        let Some(&first) = group.ids.first() else { return Ok(Vec::new()) };
        o.item(self.part(first))?;
        let file = &self.files[&first];
        if let Some(pipe) = &file.pipe {
            let ends: Vec<_> = group
                .ids
                .iter()
                .filter_map(|id| Some((*id, self.files[id].pipe.as_deref()?)))
                .collect();
            let key = format!("pipe:[{}]", pipe.pipe_id);
            return pipe::open(o, &ends, self.pipes.get(&pipe.pipe_id), self.inherited(&key));
        }
        if let Some(fifo) = &file.fifo {
            let mut ends = Vec::new();
            let mut path = Vec::new();
            for id in &group.ids {
                let regf = self.files[id].fifo.as_deref().and_then(|fifo| fifo.regf_id);
                let reg =
                    regf.and_then(|regf| self.files.get(&regf)).and_then(|f| f.reg.as_deref());
                let Some(reg) = reg else {
                    return Err(RestoreError::Inconsistent(format!("named pipe {id} has no path")));
                };
                ends.push((*id, reg.flags));
                path = self.path_of(reg);
            }
            return pipe::open_fifo(o, &ends, &path, self.fifos.get(&fifo.pipe_id));
        }
        if file.isk.is_some() || file.usk.is_some() || file.nlsk.is_some() {
            return self.make_sockets(o, group);
        }
        if file.tty.is_some() {
            return self.make_terminals(o, group);
        }
        let mut made = Vec::new();
        for &id in &group.ids {
            made.push((id, self.make_one(o, id)?));
        }
        Ok(made)
    }

    /// Makes a description that stands alone: its number.
    pub(super) fn make_one(&mut self, o: &mut Opener<'_>, id: u32) -> Result<i32, RestoreError> {
        let file = &self.files[&id];
        if let Some(reg) = &file.reg {
            if reg.ext() {
                return match self.inherited(&reg.name) {
                    Some(fd) => o.inject(fd.as_fd()),
                    None => Err(self.missing_external(id, &reg.name)),
                };
            }
            let path = self.path_of(reg);
            return Ok(regular::open(o, reg, &path, self.options.plain_paths));
        }
        if let Some(event) = &file.efd {
            return Ok(event::open_eventfd(o, event));
        }
        if let Some(signal) = &file.sgfd {
            return Ok(event::open_signalfd(o, signal));
        }
        if let Some(timer) = &file.tfd {
            return event::open_timerfd(o, timer);
        }
        if let Some(epoll) = &file.epfd {
            return Ok(epoll::open(o, epoll));
        }
        if let Some(pidfd) = &file.pidfd {
            return Ok(event::open_pidfd(o, pidfd));
        }
        if let Some(memfd) = &file.memfd {
            let memfd = memfd.clone();
            return memfd::open(o, &self.images, &mut self.memfds, &memfd);
        }
        if let Some(inotify) = &file.ify {
            return Ok(inotify::open(o, inotify));
        }
        if let Some(tty) = &file.tty {
            let path = o.c_string(b"/dev/tty");
            let flags = tty.flags & !libc::O_ASYNC as u32;
            let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
            return Ok(o.create(libc::SYS_openat, &args, "open its controlling terminal"));
        }
        Err(RestoreError::Refused(vec![self.unknown_kind(id)]))
    }
}

/// Numbers and close-on-exec of every description of a table.
pub(super) fn numbers_of(wanted: &[FdinfoEntry]) -> HashMap<u32, Vec<(i32, bool)>> {
    let mut numbers: HashMap<u32, Vec<(i32, bool)>> = HashMap::new();
    for descriptor in wanted {
        let cloexec = descriptor.flags & libc::FD_CLOEXEC as u32 != 0;
        numbers.entry(descriptor.id).or_default().push((descriptor.fd as i32, cloexec));
    }
    numbers
}

/// Frees every number that has something else than is wanted there. What is inherited and wanted
/// under other numbers is kept out of the way: id and number, in order of numbers.
fn clear(o: &mut Opener<'_>, wanted: &[FdinfoEntry]) -> Vec<(u32, i32)> {
    let at_number: HashMap<i32, u32> = wanted.iter().map(|d| (d.fd as i32, d.id)).collect();
    let ids: HashSet<u32> = wanted.iter().map(|d| d.id).collect();
    let inherited: Vec<(i32, u32)> = o.table.iter().filter(|(fd, _)| *fd < o.ctx.base()).collect();
    let waiting: Vec<(i32, u32)> = o.table.iter().filter(|(fd, _)| *fd >= o.ctx.base()).collect();
    let mut sources: BTreeMap<u32, i32> = BTreeMap::new();
    for (fd, id) in &inherited {
        if at_number.get(fd) == Some(id) {
            sources.entry(*id).or_insert(*fd);
        }
    }
    for (fd, id) in &waiting {
        if ids.contains(id) {
            sources.entry(*id).or_insert(*fd);
        }
    }
    for (fd, id) in inherited {
        if at_number.get(&fd) == Some(&id) {
            continue;
        }
        if ids.contains(&id) && !sources.contains_key(&id) {
            let aside = o.ctx.temporary();
            o.duplicate(fd, aside, id, false);
            sources.insert(id, aside);
        }
        o.close(fd);
    }
    let mut sources: Vec<(u32, i32)> = sources.into_iter().collect();
    sources.sort_by_key(|(_, fd)| *fd);
    sources
}

/// Moves what has landed on a number of another of its group out of the way of that.
fn step_aside(
    o: &mut Opener<'_>,
    made: Vec<(u32, i32)>,
    numbers: &HashMap<u32, Vec<(i32, bool)>>,
) -> Vec<(u32, i32)> {
    let wants = |id: u32, fd: i32| numbers.get(&id).is_some_and(|n| n.iter().any(|n| n.0 == fd));
    let in_the_way =
        |id: u32, fd: i32| made.iter().any(|(other, _)| *other != id && wants(*other, fd));
    let apart = made.iter().map(|&(id, from)| {
        if !in_the_way(id, from) {
            return (id, from);
        }
        let aside = o.ctx.temporary();
        o.duplicate(from, aside, id, false);
        o.close(from);
        (id, aside)
    });
    apart.collect()
}

/// Moves a description out of the way of the numbers that are wanted, until the end of the restore.
pub(super) fn park(o: &mut Opener<'_>, id: u32, from: i32) {
    let to = o.ctx.temporary();
    o.duplicate(from, to, id, false);
    o.close(from);
}

/// Gives a description all its numbers; `passing`: `from` is closed unless it is one of them.
pub(super) fn place(
    o: &mut Opener<'_>,
    id: u32,
    from: i32,
    numbers: &[(i32, bool)],
    passing: bool,
) {
    for &(to, cloexec) in numbers {
        if to == from {
            o.table.take(to, id);
            if cloexec {
                o.set_cloexec(to, true);
            }
        } else {
            o.duplicate(from, to, id, cloexec);
        }
    }
    if passing && !numbers.iter().any(|(to, _)| *to == from) {
        o.close(from);
    }
}
