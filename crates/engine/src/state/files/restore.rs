//! Puts descriptor tables back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    FdTypes, FdinfoEntry, FileEntry, FsEntry, MntEntry, RegFileEntry, RemapFilePathEntry,
    RemapType, TtyInfoEntry,
};
use arctern_sys::pidfd::PidFd;
use arctern_tracee::stub::Stub;

use super::groups::{self, Bond, Group};
use super::table::{Opener, Table};
use super::{epoll, event, ghost, memfd, pipe, regular, unix_restore};
use crate::error::{Refusal, RestoreError, Subject};
use crate::options::External;
use crate::restore_context::{RestoreContext, TaskNode};

/// What the caller decided about files.
#[derive(Debug, Default)]
pub struct FileRestoreOptions {
    /// Descriptors that stand for things outside, by CRIU's keys (`pipe:[INO]`, `tty[…]`, …).
    pub inherit_fds: Vec<(String, OwnedFd)>,
    /// Where the externals are found here.
    pub externals: Vec<External>,
    /// Put file locks back.
    pub file_locks: bool,
    /// Terminals that belong to somebody outside become the caller's own.
    pub shell_job: bool,
}

/// Restores the descriptors of a tree.
#[derive(Debug)]
pub struct FilesRestore {
    pub(super) images: ImageDir,
    pub(super) options: FileRestoreOptions,
    pub(super) tasks: Vec<TaskNode>,
    pub(super) files: BTreeMap<u32, FileEntry>,
    /// Wanted descriptors, by files_id.
    pub(super) wanted: HashMap<u32, Vec<FdinfoEntry>>,
    /// Tasks (first of each table) that hold a description, with a number.
    pub(super) holders: BTreeMap<u32, Vec<(usize, i32)>>,
    /// First task of each descriptor table, by task.
    table_owner: Vec<usize>,
    groups: Vec<Group>,
    group_of: HashMap<u32, usize>,
    /// Groups that a task makes for others, by task.
    shared_groups: HashMap<usize, Vec<usize>>,
    /// Descriptions that are put in place last.
    late: HashSet<u32>,
    /// What each table has open, by owning task.
    pub(super) tables: Vec<Option<Table>>,
    pub(super) remaps: HashMap<u32, RemapFilePathEntry>,
    /// Paths that stand in for deleted files, by file id.
    stand_ins: HashMap<u32, Vec<u8>>,
    ghost_names: ghost::Names,
    pub(super) memfds: memfd::Inodes,
    /// Terminals, by the id of their info.
    pub(super) terminals: BTreeMap<u32, TtyInfoEntry>,
    /// Indices of pseudo terminals whose master somebody holds.
    pub(super) masters: HashSet<u32>,
    /// Those of them that are open by now.
    pub(super) made_masters: HashSet<u32>,
    pub(super) queues: unix_restore::Queues,
    /// Sockets to which descriptors were sent that nobody received.
    pub(super) with_descriptors: Vec<u32>,
    pipes: BTreeMap<u32, pipe::Refill>,
    fifos: BTreeMap<u32, pipe::Refill>,
    /// Ids of mounts that are the root of a mount namespace of the images.
    root_mounts: HashSet<i32>,
    prepared: bool,
}

impl FilesRestore {
    /// Reads the images of files.
    ///
    /// # Errors
    /// An image is missing or damaged, or they contradict each other.
    pub fn load(
        images: &ImageDir,
        tasks: &[TaskNode],
        options: FileRestoreOptions,
    ) -> Result<Self, RestoreError> {
        let duplicate =
            images.as_fd().try_clone_to_owned().map_err(|source| RestoreError::Kernel {
                subject: Subject { pid: 0, comm: String::new(), part: String::new() },
                what: "keep the directory of the images".to_owned(),
                source,
            })?;
        let (queues, with_descriptors) = unix_restore::read_queues(images)?;
        let mut restore = FilesRestore {
            images: ImageDir::from_fd(duplicate, images.path()),
            options,
            tasks: tasks.to_vec(),
            files: BTreeMap::new(),
            wanted: HashMap::new(),
            holders: BTreeMap::new(),
            table_owner: Vec::new(),
            groups: Vec::new(),
            group_of: HashMap::new(),
            shared_groups: HashMap::new(),
            late: HashSet::new(),
            tables: vec![None; tasks.len()],
            remaps: HashMap::new(),
            stand_ins: HashMap::new(),
            ghost_names: ghost::Names::default(),
            memfds: memfd::Inodes::load(images)?,
            terminals: BTreeMap::new(),
            masters: HashSet::new(),
            made_masters: HashSet::new(),
            queues,
            with_descriptors,
            pipes: pipe::read_contents(images, ImageKind::PipesData)?,
            fifos: pipe::read_contents(images, ImageKind::FifoData)?,
            root_mounts: HashSet::new(),
            prepared: false,
        };
        for file in images.read_all::<FileEntry>(ImageKind::Files, 0)? {
            restore.files.insert(file.id, file);
        }
        for remap in images.read_all::<RemapFilePathEntry>(ImageKind::RemapFpath, 0)? {
            restore.remaps.insert(remap.orig_id, remap);
        }
        for (kind, id) in images.list()? {
            if kind == ImageKind::Mountpoints {
                let mounts: Vec<MntEntry> = images.read_all(kind, id)?;
                let roots = mounts.iter().filter(|m| matches!(m.mountpoint.as_str(), "/" | "./"));
                restore.root_mounts.extend(roots.map(|m| m.mnt_id as i32));
            }
        }
        for info in images.read_all::<TtyInfoEntry>(ImageKind::TtyInfo, 0)? {
            restore.terminals.insert(info.id, info);
        }
        restore.load_tables()?;
        restore.form_groups()?;
        Ok(restore)
    }

    fn load_tables(&mut self) -> Result<(), RestoreError> {
        let mut first: HashMap<u32, usize> = HashMap::new();
        for index in 0..self.tasks.len() {
            let (zombie, files_id) = (self.tasks[index].zombie, self.tasks[index].ids.files_id);
            let owner = if zombie { index } else { *first.entry(files_id).or_insert(index) };
            self.table_owner.push(owner);
            if zombie || owner != index {
                continue;
            }
            let mut table: Vec<FdinfoEntry> =
                self.images.read_all(ImageKind::Fdinfo, files_id.into())?;
            table.sort_by_key(|descriptor| descriptor.fd);
            for descriptor in &table {
                if i32::try_from(descriptor.fd).is_err() {
                    return Err(RestoreError::Inconsistent(format!(
                        "descriptor number {} in fdinfo-{files_id}.img",
                        descriptor.fd
                    )));
                }
                if !self.files.contains_key(&descriptor.id) {
                    return Err(RestoreError::Inconsistent(format!(
                        "descriptor {} of process {} leads to file {}, which files.img does not list",
                        descriptor.fd, self.tasks[index].pid, descriptor.id
                    )));
                }
                let holders = self.holders.entry(descriptor.id).or_default();
                if holders.last().is_none_or(|(task, _)| *task != index) {
                    holders.push((index, descriptor.fd as i32));
                }
            }
            self.wanted.insert(files_id, table);
        }
        Ok(())
    }

    fn form_groups(&mut self) -> Result<(), RestoreError> {
        let held = self
            .holders
            .iter()
            .map(|(id, holders)| (*id, holders.iter().map(|(task, _)| *task).collect()))
            .collect();
        let mut bonds = Vec::new();
        for id in self.holders.keys() {
            let file = &self.files[id];
            if let Some(pipe) = &file.pipe {
                bonds.push((Bond::Pipe(pipe.pipe_id), *id));
            }
            if let Some(fifo) = &file.fifo {
                bonds.push((Bond::Fifo(fifo.pipe_id), *id));
            }
        }
        let infos = self.holders.keys().filter_map(|id| self.files[id].tty.as_deref());
        let infos = infos.filter_map(|tty| self.terminals.get(&tty.tty_info_id));
        self.masters = infos
            .filter(|info| info.id & 1 == 1)
            .filter_map(|info| Some(info.pty.as_ref()?.index))
            .collect();
        self.socket_bonds(&mut bonds);
        self.terminal_bonds(&mut bonds);
        let parents: Vec<Option<usize>> = self.tasks.iter().map(|task| task.parent).collect();
        self.groups = groups::form(&held, &bonds, &parents);
        for (index, group) in self.groups.iter_mut().enumerate() {
            group.opener = self.table_owner[group.opener];
            self.group_of.extend(group.ids.iter().map(|id| (*id, index)));
        }
        self.late = self.holders.keys().copied().filter(|id| self.refers_to_tasks(*id)).collect();
        for (index, group) in self.groups.iter().enumerate() {
            if group.shared && !self.is_late(&group.ids) {
                self.shared_groups.entry(group.opener).or_default().push(index);
            }
        }
        Ok(())
    }

    /// The highest descriptor number of all tasks, -1 without any.
    pub fn max_fd(&self) -> i32 {
        let numbers = self.wanted.values().flatten().map(|descriptor| descriptor.fd as i32);
        numbers.max().unwrap_or(-1)
    }

    /// Compares every mapped or open file with the one of that name below `root`; files on mounts
    /// that the restore has yet to make are compared when they are there. Differences go to
    /// `refusals`.
    pub fn check(&self, root: BorrowedFd<'_>, refusals: &mut Vec<Refusal>) {
        self.compare(root, refusals, |reg| match reg.mnt_id {
            None | Some(-1) => true,
            Some(mount) => self.root_mounts.contains(&mount),
        });
        self.check_sockets(refusals);
        self.check_locks(refusals);
        self.check_terminals(refusals);
        for (id, file) in &self.files {
            let known = file.reg.is_some()
                || file.pipe.is_some()
                || file.fifo.is_some()
                || file.efd.is_some()
                || file.epfd.is_some()
                || file.sgfd.is_some()
                || file.tfd.is_some()
                || file.ify.is_some()
                || file.memfd.is_some()
                || file.pidfd.is_some()
                || file.usk.is_some()
                || file.isk.is_some()
                || file.nlsk.is_some()
                || file.tty.is_some();
            if !known && self.holders.contains_key(id) {
                refusals.push(self.unknown_kind(*id));
            }
        }
    }

    fn compare(
        &self,
        root: BorrowedFd<'_>,
        refusals: &mut Vec<Refusal>,
        wanted: impl Fn(&RegFileEntry) -> bool,
    ) {
        let terminals = self.files.values().filter_map(|file| file.tty.as_deref()?.regf_id);
        let terminals: HashSet<u32> = terminals.collect();
        for (id, file) in &self.files {
            let Some(reg) = &file.reg else { continue };
            let special = self.remaps.contains_key(id)
                || reg.ext()
                || reg.name.starts_with("/proc/")
                || self.is_remap_target(*id)
                // A terminal's path appears when its other side is opened.
                || terminals.contains(id);
            if special || !wanted(reg) {
                continue;
            }
            if let Some((cause, remedy)) = regular::difference(root, reg) {
                refusals.push(Refusal {
                    subject: self.subject(*id, &reg.name),
                    cause,
                    remedy: remedy.to_owned(),
                });
            }
        }
    }

    fn is_remap_target(&self, id: u32) -> bool {
        let linked = Some(RemapType::Linked as i32);
        self.remaps.values().any(|remap| remap.remap_id == id && remap.remap_type == linked)
    }

    /// The first process that holds a file, for messages.
    pub(super) fn subject(&self, id: u32, name: &str) -> Subject {
        match self.holders.get(&id).and_then(|holders| holders.first()) {
            Some((task, fd)) => Subject {
                pid: self.tasks[*task].pid,
                comm: self.tasks[*task].comm.clone(),
                part: format!("fd {fd} ({name})"),
            },
            None => {
                let (pid, comm) = self
                    .tasks
                    .first()
                    .map(|task| (task.pid, task.comm.clone()))
                    .unwrap_or_default();
                Subject { pid, comm, part: format!("file {name}") }
            }
        }
    }

    /// Once, when the mounts of the tree are there: compares the files on them, makes the deleted
    /// files, closes what the first stub has inherited from us.
    fn prepare(&mut self, ctx: &RestoreContext, stub: &Stub) -> Result<(), RestoreError> {
        if std::mem::replace(&mut self.prepared, true) {
            return Ok(());
        }
        let args = [0.into(), (ctx.base() - 1).into(), 0.into()];
        stub.call("close_range of inherited descriptors", libc::SYS_close_range, &args)?;
        let root = regular::root_of(stub.tid())?;
        let mut refusals = Vec::new();
        self.compare(root.as_fd(), &mut refusals, |reg| {
            reg.mnt_id.is_some_and(|mount| mount != -1 && !self.root_mounts.contains(&mount))
        });
        if !refusals.is_empty() {
            return Err(RestoreError::Refused(refusals));
        }
        let mut made: HashMap<u32, Vec<u8>> = HashMap::new();
        for (id, remap) in &self.remaps {
            let Some(reg) = self.files.get(id).and_then(|file| file.reg.as_deref()) else {
                continue;
            };
            let path = match remap.remap_type.and_then(|kind| RemapType::try_from(kind).ok()) {
                // Images without a type have the ghost in the top bit.
                Some(RemapType::Ghost) | None => {
                    let ghost = remap.remap_id & !(1 << 31);
                    match made.get(&ghost) {
                        Some(path) => path.clone(),
                        None => {
                            let path = self.ghost_names.make(
                                root.as_fd(),
                                &reg.name,
                                &self.images,
                                ghost,
                            )?;
                            made.insert(ghost, path.clone());
                            path
                        }
                    }
                }
                Some(RemapType::Linked) => {
                    let target =
                        self.files.get(&remap.remap_id).and_then(|file| file.reg.as_deref());
                    let Some(target) = target else {
                        return Err(RestoreError::Inconsistent(format!(
                            "file {} has another name in file {}, which is not listed",
                            id, remap.remap_id
                        )));
                    };
                    self.ghost_names.link(root.as_fd(), &reg.name, &target.name)?
                }
                Some(RemapType::Procfs) => continue,
            };
            self.stand_ins.insert(*id, path);
        }
        Ok(())
    }

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
        let of_others = self.holders[&id].iter().map(|(_, fd)| *fd);
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
            for (id, from) in self.make(&mut o, &group)? {
                place(&mut o, id, from, numbers.get(&id).map_or(&[], Vec::as_slice), true);
                placed.insert(id);
            }
        }
        o.flush()?;
        self.tables[task] = Some(table);
        Ok(())
    }

    fn is_late(&self, ids: &[u32]) -> bool {
        ids.iter().any(|id| self.late.contains(id))
    }

    /// Whether a description can only be made when other tasks exist.
    fn refers_to_tasks(&self, id: u32) -> bool {
        let file = &self.files[&id];
        let in_proc = |reg: &RegFileEntry| {
            let rest = reg.name.strip_prefix("/proc/");
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        file.pidfd.is_some()
            || file.reg.as_deref().is_some_and(in_proc)
            || self.is_controlling_terminal(id)
    }

    /// `fd 7 (/x)` for messages.
    pub(super) fn part(&self, id: u32) -> String {
        self.named_subject(id).part
    }

    /// The first process that holds a file, with the file's path or kind.
    pub(super) fn named_subject(&self, id: u32) -> Subject {
        let name = match self.files.get(&id) {
            Some(FileEntry { reg: Some(reg), .. }) => reg.name.clone(),
            Some(FileEntry { r#type, .. }) => match FdTypes::try_from(*r#type) {
                Ok(kind) => format!("{kind:?}").to_lowercase(),
                Err(_) => format!("type {type}"),
            },
            None => format!("file {id}"),
        };
        self.subject(id, &name)
    }

    /// Makes the descriptions of a group in the opener's stub: ids with their numbers.
    fn make(&mut self, o: &mut Opener<'_>, group: &Group) -> Result<Vec<(u32, i32)>, RestoreError> {
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
            return Ok(regular::open(o, reg, &path));
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
            return Ok(super::inotify::open(o, inotify));
        }
        if let Some(tty) = &file.tty {
            let path = o.c_string(b"/dev/tty");
            let flags = tty.flags & !libc::O_ASYNC as u32;
            let args = [libc::AT_FDCWD.into(), path.into(), flags.into()];
            return Ok(o.create(libc::SYS_openat, &args, "open its controlling terminal"));
        }
        Err(RestoreError::Refused(vec![self.unknown_kind(id)]))
    }

    /// A refusal of a kind of file that CRIU writes and we do not restore.
    pub(super) fn unknown_kind(&self, id: u32) -> Refusal {
        Refusal {
            subject: self.named_subject(id),
            cause: "this kind of file cannot be restored".to_owned(),
            remedy: "restore the images with the program that wrote them".to_owned(),
        }
    }

    pub(super) fn missing_external(&self, id: u32, key: &str) -> RestoreError {
        RestoreError::Refused(vec![Refusal {
            subject: self.subject(id, key),
            cause: format!("it stands for `{key}`, which lives outside of the images"),
            remedy: format!("hand it in with --inherit-fd fd[N]:{key}"),
        }])
    }

    /// The path to open for an entry.
    pub(super) fn path_of(&self, reg: &RegFileEntry) -> Vec<u8> {
        self.stand_ins.get(&reg.id).cloned().unwrap_or_else(|| reg.name.clone().into_bytes())
    }

    pub(super) fn inherited(&self, key: &str) -> Option<&OwnedFd> {
        let found = self.options.inherit_fds.iter().find(|(known, _)| known == key);
        found.map(|(_, fd)| fd)
    }

    /// Opens a file for mapping it, or as the task's executable: a descriptor number in the stub,
    /// which the caller closes.
    ///
    /// # Errors
    /// The images do not list it, or it cannot be opened.
    pub fn open_mapping(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        file_id: u32,
        writable_shared: bool,
    ) -> Result<i32, RestoreError> {
        self.prepare(ctx, stub)?;
        let Some(file) = self.files.get(&file_id) else {
            return Err(RestoreError::Inconsistent(format!(
                "a mapping shows file {file_id}, which files.img does not list"
            )));
        };
        if let Some(memfd) = &file.memfd {
            let mut memfd = memfd.clone();
            if writable_shared {
                // CRIU writes O_RDONLY here and opens every mapped memory for writing.
                memfd.flags = memfd.flags & !(libc::O_ACCMODE as u32) | libc::O_RDWR as u32;
            }
            let fd = self.memfds.describe(&self.images, &memfd)?;
            let at = ctx.temporary();
            ctx.inject(stub, fd.as_fd(), at)?;
            return Ok(at);
        }
        let Some(reg) = &file.reg else {
            return Err(RestoreError::Inconsistent(format!(
                "a mapping shows file {file_id}, which is neither a file nor memory"
            )));
        };
        if reg.ext()
            && let Some(fd) = self.inherited(&reg.name)
        {
            let at = ctx.temporary();
            ctx.inject(stub, fd.as_fd(), at)?;
            return Ok(at);
        }
        let mut batch = arctern_tracee::Batch::new();
        let path = batch.c_string(&self.path_of(reg));
        let access =
            if writable_shared { libc::O_RDWR } else { reg.flags as i32 & libc::O_ACCMODE };
        let flags = access | libc::O_CLOEXEC | libc::O_NOCTTY;
        let call =
            batch.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), flags.into()]);
        stub.run(&mut batch)?;
        let got = batch.result(call).map_err(|source| RestoreError::Kernel {
            subject: self.subject(file_id, &reg.name),
            what: "open it for mapping".to_owned(),
            source,
        })?;
        let got = got as i32;
        if got < ctx.base() {
            return Ok(got);
        }
        // No room below: it must not stand on a number that is given out later.
        let at = ctx.temporary();
        if got != at {
            let mut batch = arctern_tracee::Batch::new();
            batch.call(libc::SYS_dup3, &[got.into(), at.into(), libc::O_CLOEXEC.into()]);
            batch.call(libc::SYS_close, &[got.into()]);
            stub.run_all(&mut batch, "move a file out of the way")?;
        }
        Ok(at)
    }

    /// Sets root, working directory and umask of a task; tasks that share them (CLONE_FS) get the
    /// same again.
    ///
    /// # Errors
    /// An image is missing, or a directory cannot be entered.
    pub fn install_fs(
        &mut self,
        _ctx: &mut RestoreContext,
        stub: &Stub,
        task: usize,
    ) -> Result<(), RestoreError> {
        let node = &self.tasks[task];
        let fs: FsEntry = self.images.read_one(ImageKind::Fs, node.pid as u64)?;
        let directory = |id: u32| {
            let reg = self.files.get(&id).and_then(|file| file.reg.as_deref());
            reg.map(|reg| (self.path_of(reg), reg.name.clone())).ok_or_else(|| {
                RestoreError::Inconsistent(format!(
                    "a directory of process {} is file {id}, which files.img does not list",
                    node.pid
                ))
            })
        };
        let ((cwd, cwd_name), (root, root_name)) = (directory(fs.cwd_id)?, directory(fs.root_id)?);
        let mut batch = arctern_tracee::Batch::new();
        let cwd = batch.c_string(&cwd);
        let mut calls = vec![(
            batch.call(libc::SYS_chdir, &[cwd.into()]),
            "enter its working directory",
            cwd_name,
        )];
        if root != b"/" {
            // chroot keeps the working directory, wherever it is.
            let root = batch.c_string(&root);
            let call = batch.call(libc::SYS_chroot, &[root.into()]);
            calls.push((call, "set its root directory", root_name));
        }
        let umask = fs.umask.unwrap_or(0o022);
        batch.call(libc::SYS_umask, &[umask.into()]);
        stub.run(&mut batch)?;
        for (call, what, name) in calls {
            batch.result(call).map_err(|source| RestoreError::Kernel {
                subject: Subject { pid: node.pid, comm: node.comm.clone(), part: name },
                what: what.to_owned(),
                source,
            })?;
        }
        Ok(())
    }

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
                super::inotify::watch(o, fd, inotify)?;
            }
            if let Some(fown) = super::owner::of(&file) {
                o.item(self.part(id))?;
                super::owner::set(o, fd, fown, super::owner::flags(&file));
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

/// Numbers and close-on-exec of every description of a table.
fn numbers_of(wanted: &[FdinfoEntry]) -> HashMap<u32, Vec<(i32, bool)>> {
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

/// Gives a description all its numbers; `passing`: `from` is closed unless it is one of them.
fn place(o: &mut Opener<'_>, id: u32, from: i32, numbers: &[(i32, bool)], passing: bool) {
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
