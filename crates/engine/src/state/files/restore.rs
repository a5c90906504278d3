//! Puts descriptor tables back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    FdTypes, FdinfoEntry, FileEntry, MntEntry, RegFileEntry, RemapFilePathEntry, RemapType,
    TtyInfoEntry, UnixPeerEntry,
};
use arctern_tracee::stub::Stub;

use nix::sys::resource::{Resource, getrlimit};

use super::groups::{self, Bond, Group};
use super::table::Table;
use super::{ghost, memfd, pipe, regular, tcp, udp_restore, unix_peer, unix_pending, unix_restore};
use crate::error::{Refusal, RestoreError, Subject};
use crate::options::{External, TcpPolicy};
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
    /// Indices of pseudo terminals whose new master the caller has by now.
    pub orphan_terminals: Vec<u32>,
    /// What is done about live TCP connections.
    pub tcp: TcpPolicy,
    /// No path of a file leads through a symbolic link.
    pub plain_paths: bool,
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
    pub(super) table_owner: Vec<usize>,
    pub(super) groups: Vec<Group>,
    pub(super) group_of: HashMap<u32, usize>,
    /// Groups that a task makes for others, by task.
    pub(super) shared_groups: HashMap<usize, Vec<usize>>,
    /// Descriptions that are put in place last.
    pub(super) late: HashSet<u32>,
    /// What each table has open, by owning task.
    pub(super) tables: Vec<Option<Table>>,
    pub(super) remaps: HashMap<u32, RemapFilePathEntry>,
    /// Paths that stand in for deleted files, by file id.
    pub(super) stand_ins: HashMap<u32, Vec<u8>>,
    pub(super) ghost_names: ghost::Names,
    pub(super) memfds: memfd::Inodes,
    /// Terminals, by the id of their info.
    pub(super) terminals: BTreeMap<u32, TtyInfoEntry>,
    /// Indices of pseudo terminals whose master somebody of the tree or the caller holds.
    pub(super) masters: HashSet<u32>,
    /// Those of them that are open by now.
    pub(super) made_masters: HashSet<u32>,
    pub(super) queues: unix_restore::Queues,
    pub(super) datagrams: udp_restore::Datagrams,
    /// Unix connections that wait to be accepted.
    pub(super) pending: Vec<unix_pending::Waiting>,
    /// Whom unix sockets show as their peer, by file id.
    pub(super) peers: HashMap<u32, UnixPeerEntry>,
    pub(super) late_unix: unix_restore::Late,
    /// Descriptions that no task has open, since they are on their way in a unix socket: with the
    /// task that holds the socket.
    pub(super) passed: BTreeMap<u32, usize>,
    pub(super) pipes: BTreeMap<u32, pipe::Refill>,
    pub(super) fifos: BTreeMap<u32, pipe::Refill>,
    /// Ids of mounts that are the root of a mount namespace of the images.
    pub(super) root_mounts: HashSet<i32>,
    pub(super) prepared: bool,
    /// Connections that are complete.
    pub(super) connections: Vec<tcp::Built>,
    /// Sockets of connections that could not be built.
    pub(super) silenced: Vec<OwnedFd>,
    /// Speaks for the connections in their namespace.
    pub(super) injector: Option<tcp::Injector>,
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
        let queues = unix_restore::read_queues(images)?;
        let mut restore = FilesRestore {
            images: ImageDir::from_fd(duplicate, images.path()),
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
            made_masters: options.orphan_terminals.iter().copied().collect(),
            queues,
            datagrams: udp_restore::read(images)?,
            pending: unix_pending::read(images)?,
            peers: unix_peer::read(images)?,
            late_unix: unix_restore::Late::default(),
            passed: BTreeMap::new(),
            pipes: pipe::read_contents(images, ImageKind::PipesData)?,
            fifos: pipe::read_contents(images, ImageKind::FifoData)?,
            root_mounts: HashSet::new(),
            prepared: false,
            options,
            connections: Vec::new(),
            silenced: Vec::new(),
            injector: None,
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
        restore.find_passed()?;
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
        let mut held: BTreeMap<u32, Vec<usize>> = self
            .holders
            .iter()
            .map(|(id, holders)| (*id, holders.iter().map(|(task, _)| *task).collect()))
            .chain(self.passed.iter().map(|(id, task)| (*id, vec![*task])))
            .collect();
        self.add_makers(&mut held);
        let mut bonds = Vec::new();
        for id in self.ids() {
            let file = &self.files[&id];
            if let Some(pipe) = &file.pipe {
                bonds.push((Bond::Pipe(pipe.pipe_id), id));
            }
            if let Some(fifo) = &file.fifo {
                bonds.push((Bond::Fifo(fifo.pipe_id), id));
            }
        }
        let infos = self.holders.keys().filter_map(|id| self.files[id].tty.as_deref());
        let infos = infos.filter_map(|tty| self.terminals.get(&tty.tty_info_id));
        self.masters = infos
            .filter(|info| info.id & 1 == 1)
            .filter_map(|info| Some(info.pty.as_ref()?.index))
            .chain(self.options.orphan_terminals.iter().copied())
            .collect();
        self.socket_bonds(&mut bonds);
        self.terminal_bonds(&mut bonds);
        let parents: Vec<Option<usize>> = self.tasks.iter().map(|task| task.parent).collect();
        let mut groups = groups::form(&held, &bonds, &parents);
        for (index, group) in groups.iter_mut().enumerate() {
            group.opener = self.table_owner[group.opener];
            group.shared |= self.has_other_maker(group);
            self.group_of.extend(group.ids.iter().map(|id| (*id, index)));
        }
        self.groups = groups;
        self.late = self.holders.keys().copied().filter(|id| self.refers_to_tasks(*id)).collect();
        for (index, group) in self.groups.iter().enumerate() {
            if group.shared && !self.is_late(&group.ids) {
                self.shared_groups.entry(group.opener).or_default().push(index);
            }
        }
        Ok(())
    }

    /// Every description that is made.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.holders.keys().chain(self.passed.keys()).copied()
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
        self.check_passed(refusals);
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
        // Many descriptors may lead to one file, `/dev/null` for instance.
        let mut seen = HashSet::new();
        for (id, file) in &self.files {
            let Some(reg) = &file.reg else { continue };
            let special = self.remaps.contains_key(id)
                || reg.ext()
                || reg.name.starts_with("/proc/")
                || self.is_remap_target(*id)
                // A terminal's path appears when its other side is opened.
                || terminals.contains(id);
            let same = (&reg.name, reg.size, reg.mode, &reg.build_id);
            if special || !wanted(reg) || !seen.insert(same) {
                continue;
            }
            if let Some((cause, remedy)) = regular::difference(root, reg) {
                refusals.push(Refusal {
                    subject: self.subject(*id, &reg.name),
                    cause,
                    remedy: remedy.into(),
                });
            }
        }
    }

    pub(super) fn is_remap_target(&self, id: u32) -> bool {
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
    pub(super) fn prepare(
        &mut self,
        ctx: &RestoreContext,
        stub: &Stub,
    ) -> Result<(), RestoreError> {
        if std::mem::replace(&mut self.prepared, true) {
            return Ok(());
        }
        let args = [0.into(), (ctx.base() - 1).into(), 0.into()];
        stub.call("close_range of inherited descriptors", libc::SYS_close_range, &args)?;
        raise_limit(stub)?;
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

    pub(super) fn is_late(&self, ids: &[u32]) -> bool {
        ids.iter().any(|id| self.late.contains(id))
    }

    /// Whether a description can only be made when other tasks exist.
    pub(super) fn refers_to_tasks(&self, id: u32) -> bool {
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

    /// A refusal of a kind of file that CRIU writes and we do not restore.
    pub(super) fn unknown_kind(&self, id: u32) -> Refusal {
        Refusal {
            subject: self.named_subject(id),
            cause: "this kind of file cannot be restored".to_owned(),
            remedy: "restore the images with the program that wrote them".into(),
        }
    }

    pub(super) fn missing_external(&self, id: u32, key: &str) -> RestoreError {
        RestoreError::Refused(vec![Refusal {
            subject: self.subject(id, key),
            cause: format!("it stands for `{key}`, which lives outside of the images"),
            remedy: format!("hand it in with --inherit-fd fd[N]:{key}").into(),
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
}

/// Lets the tasks have as many descriptors as may be: temporary numbers lie above those of the
/// images. The tasks' own limits are set when everything is open.
fn raise_limit(stub: &Stub) -> Result<(), RestoreError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    if soft == hard {
        return Ok(());
    }
    let mut batch = arctern_tracee::Batch::new();
    let limit = batch.bytes(&[hard.to_ne_bytes(), hard.to_ne_bytes()].concat());
    let args = [0.into(), libc::RLIMIT_NOFILE.into(), limit.into(), 0.into()];
    batch.call(libc::SYS_prlimit64, &args);
    Ok(stub.run_all(&mut batch, "raise the limit of descriptors")?)
}
