//! Restore of mounts: the plan carried out by remote calls in the root task.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{CgroupEntry, Fstype, MntEntry};
use arctern_sys::mount::{FSCONFIG_CMD_RECONFIGURE, MOVE_MOUNT_SET_GROUP, MountAttr};
use arctern_sys::pidfd::PidFd;
use arctern_tracee::stub::Stub;
use arctern_tracee::{Arg, CallId};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};

use super::calls::Calls;
use super::contents;
use super::groups::Groups;
use super::plan::{Plan, Planned, Propagation};
use super::table::{Source, Uncarried};
use crate::confinement::Confinement;
use crate::error::{Refusal, RestoreError};
use crate::options::External;
use crate::restore_context::{TaskNode, failed, subject};

/// More mounts than this are no namespace of anybody's.
const MOST_MOUNTS: usize = 20_000;

/// The mounts that a restore makes.
#[derive(Debug)]
pub struct MountRestore {
    pub(super) plan: Plan,
    pub(super) task: TaskNode,
    /// The root on the host.
    root: PathBuf,
    /// Host paths by key.
    externals: HashMap<String, PathBuf>,
    /// Contents of tmpfs, by index of the mount.
    contents: HashMap<usize, std::fs::File>,
    cgroups: CgroupEntry,
    /// Terminals whose masters are made with their devpts.
    terminals: Vec<u32>,
    /// What the tree may have at most.
    confinement: Option<Confinement>,
}

impl MountRestore {
    /// Reads the mounts of the namespace with number `id`.
    pub fn load(
        images: &ImageDir,
        id: u64,
        task: &TaskNode,
        root: Option<&Path>,
        externals: &[External],
        terminals: &[u32],
        confinement: Option<&Confinement>,
    ) -> Result<Self, RestoreError> {
        let entries: Vec<MntEntry> = images.read_all(ImageKind::Mountpoints, id)?;
        if entries.len() > MOST_MOUNTS {
            let text = format!("{} mounts in one namespace", entries.len());
            return Err(RestoreError::Inconsistent(text));
        }
        let names: Vec<String> = terminals.iter().map(u32::to_string).collect();
        let plan = Plan::new(entries, &names).map_err(|uncarried| {
            let refuse = |(path, why): (String, Uncarried)| Refusal {
                subject: subject(task.pid, &task.comm, format!("mount {path}")),
                cause: cause(why).to_owned(),
                remedy: format!("capture it with --external mnt[{path}]:NAME").into(),
            };
            RestoreError::Refused(uncarried.into_iter().map(refuse).collect())
        })?;
        let mut contents = HashMap::new();
        for mount in &plan.mounts {
            let entry = &plan.entries[mount.index];
            if mount.source != Source::Fresh || entry.fstype != Fstype::Tmpfs as u32 {
                continue;
            }
            let file = match images.open_file(ImageKind::TmpfsDev, entry.root_dev.into())? {
                Some(file) => Some(file),
                None => images.open_file(ImageKind::Tmpfs, entry.mnt_id.into())?,
            };
            contents.extend(file.map(|file| (mount.index, file)));
        }
        let externals = externals.iter().filter_map(|external| match external {
            External::Mount { key, value } => Some((key.clone(), PathBuf::from(value))),
            _ => None,
        });
        Ok(MountRestore {
            plan,
            task: task.clone(),
            root: root.unwrap_or(Path::new("/")).to_owned(),
            externals: externals.collect(),
            contents,
            cgroups: images.read_optional(ImageKind::Cgroup, 0)?.unwrap_or_default(),
            terminals: terminals.to_vec(),
            confinement: confinement.cloned(),
        })
    }

    /// Refuses what cannot be made here.
    pub fn check(&self, refusals: &mut Vec<Refusal>) {
        for mount in &self.plan.mounts {
            let Source::External(key) = &mount.source else { continue };
            let path = &self.plan.entries[mount.index].mountpoint;
            let mut refuse = |cause: String| {
                refusals.push(Refusal {
                    subject: subject(self.task.pid, &self.task.comm, format!("mount {path}")),
                    cause,
                    remedy: format!("say what stands for it with --external mnt[{key}]:PATH")
                        .into(),
                });
            };
            match self.externals.get(key) {
                None => refuse(format!("it was kept outside as {key}, which is not given")),
                Some(host) if !host.exists() => {
                    refuse(format!("{}, which stands for it, is not there", host.display()));
                }
                Some(_) => {}
            }
        }
    }

    /// What is not as it was, for warnings.
    pub fn losses(&self) -> Vec<String> {
        let list = |indices: &[usize]| {
            let paths = indices.iter().map(|&i| self.plan.entries[i].mountpoint.as_str());
            paths.collect::<Vec<_>>().join(", ")
        };
        let mut losses = Vec::new();
        if !self.plan.lost_masters.is_empty() {
            let lost = list(&self.plan.lost_masters);
            losses.push(format!("mounts on the host no longer appear below {lost}"));
        }
        if !self.plan.left_out.is_empty() {
            let out = list(&self.plan.left_out);
            losses.push(format!("what was mounted at {out} is not there and is left out"));
        }
        losses
    }

    pub(super) fn failed(
        &self,
        index: usize,
        what: String,
    ) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        let part = format!("mount {}", self.plan.entries[index].mountpoint);
        failed(subject(self.task.pid, &self.task.comm, part), what)
    }

    /// Makes the mounts in `stub`, which lives in a mount namespace of its own that is still a copy
    /// of the host's. Afterwards its root and working directory are the new root.
    ///
    /// `own_cgroups` says whether the task has a cgroup namespace of its own by now. The result are
    /// the masters of the terminals that were asked for.
    pub fn build(&mut self, stub: &Stub, own_cgroups: bool) -> Result<Vec<OwnedFd>, RestoreError> {
        let groups = self.find_groups(stub, own_cgroups)?;
        let handles = self.make(stub, &groups)?;
        self.fill(stub, &handles)?;
        let masters = self.open_masters(stub, &handles)?;
        self.attach(stub, &handles)?;
        Ok(masters)
    }

    /// Opens the masters of terminals in the tree's devpts, before anything else can take their
    /// indices. The kernel gives the lowest that is free; those passed on the way are closed again.
    fn open_masters(
        &self,
        stub: &Stub,
        handles: &HashMap<usize, Handle>,
    ) -> Result<Vec<OwnedFd>, RestoreError> {
        if self.terminals.is_empty() {
            return Ok(Vec::new());
        }
        let is_own_devpts = |mount: &&Planned| {
            mount.source == Source::Fresh
                && self.plan.entries[mount.index].fstype == Fstype::Devpts as u32
        };
        let devpts = self.plan.mounts.iter().find(is_own_devpts).map(|mount| mount.index);
        let Some((index, handle)) = devpts.and_then(|i| Some((i, handles.get(&i)?))) else {
            let text = "a terminal without its master, and no devpts to make one in";
            return Err(RestoreError::Inconsistent(text.to_owned()));
        };
        let open = || {
            let mount = PidFd::open(stub.tid())?.getfd(handle.mount)?;
            let mut masters: HashMap<u32, OwnedFd> = HashMap::new();
            while let Some(wanted) = self.terminals.iter().find(|i| !masters.contains_key(i)) {
                let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
                let master = openat2(&mount, "ptmx", within(flags))?;
                let got = arctern_sys::fd::terminal_master(&master)?.0;
                if got > *wanted {
                    return Err(Errno::EBUSY.into());
                }
                arctern_sys::fd::unlock_terminal(&master)?;
                masters.insert(got, master);
            }
            Ok(self.terminals.iter().filter_map(|index| masters.remove(index)).collect())
        };
        open().map_err(self.failed(index, "open the masters of its terminals".to_owned()))
    }

    /// The host's directories for the mounts of control groups. Where the host does not have a
    /// hierarchy of version 1, its mounts are left out: mounting it would change the host's
    /// controllers.
    fn find_groups(
        &mut self,
        stub: &Stub,
        own_cgroups: bool,
    ) -> Result<HashMap<usize, PathBuf>, RestoreError> {
        let mut found = HashMap::new();
        let failed = self.failed(0, "look at the mounted cgroup hierarchies".to_owned());
        let groups = match Groups::of(stub.tid(), own_cgroups, &self.plan.entries, &self.cgroups) {
            Ok(Some(groups)) => groups,
            Ok(None) => return Ok(found),
            Err(error) => return Err(failed(error)),
        };
        for index in 0..self.plan.entries.len() {
            let entry = &self.plan.entries[index];
            let planned = self.plan.mounts.iter().find(|mount| mount.index == index);
            match planned.map(|mount| &mount.source) {
                Some(Source::Fresh | Source::CgroupDir) => {}
                _ => continue,
            }
            match groups.directory(entry) {
                Some(dir) => drop(found.insert(index, dir)),
                None if entry.fstype == Fstype::Cgroup as u32 => self.plan.leave_out(index),
                None => {}
            }
        }
        Ok(found)
    }

    /// Makes everything that needs no other mount of the tree, detached.
    fn make(
        &self,
        stub: &Stub,
        groups: &HashMap<usize, PathBuf>,
    ) -> Result<HashMap<usize, Handle>, RestoreError> {
        let mut calls = Calls::new(self);
        let root = calls.batch.c_string(b"/");
        let flags = libc::MS_REC | libc::MS_SLAVE;
        // Nothing that happens here reaches the host; what the host unmounts vanishes here too.
        calls.call(
            0,
            "leave the host's peer groups",
            libc::SYS_mount,
            &[0.into(), root.into(), 0.into(), flags.into(), 0.into()],
        );
        let mut pending = Vec::new();
        for mount in &self.plan.mounts {
            let index = mount.index;
            let (mount_fd, context) = match &mount.source {
                Source::Root => (calls.clone_of(index, &self.root), None),
                Source::External(key) => {
                    let path = self.externals.get(key).cloned().unwrap_or_default();
                    (calls.clone_of(index, &path), None)
                }
                Source::HostDevpts => (calls.clone_of(index, Path::new("/dev/pts")), None),
                Source::CgroupDir | Source::Fresh => match groups.get(&index) {
                    Some(dir) => (calls.clone_of(index, dir), None),
                    None => {
                        let entry = &self.plan.entries[index];
                        let (fd, context) = calls.new_file_system(index, entry);
                        (fd, Some(context))
                    }
                },
                Source::Bind(..) => continue,
            };
            pending.push((index, mount_fd, context));
        }
        let batch = calls.run(stub)?;
        let number = |call: CallId| batch.result(call).map(|fd| fd as i32);
        let mut handles = HashMap::new();
        for (index, mount, context) in pending {
            let what = || self.failed(index, "make it".to_owned());
            let context = context.map(number).transpose().map_err(what())?;
            let mount = number(mount).map_err(what())?;
            handles.insert(index, Handle { mount, context });
        }
        Ok(handles)
    }

    /// Puts contents into new file systems, and mount points where they are missing: the places of
    /// mounts are not part of a root file system's changes.
    fn fill(&mut self, stub: &Stub, handles: &HashMap<usize, Handle>) -> Result<(), RestoreError> {
        let pidfd = PidFd::open(stub.tid())
            .map_err(self.failed(self.plan.mounts[0].index, "open the process".to_owned()))?;
        let mut opened: HashMap<usize, OwnedFd> = HashMap::new();
        let open = |opened: &mut HashMap<usize, OwnedFd>, index: usize| {
            let Some(handle) = handles.get(&index) else { return Ok(false) };
            if let std::collections::hash_map::Entry::Vacant(vacant) = opened.entry(index) {
                vacant.insert(pidfd.getfd(handle.mount)?);
            }
            Ok::<_, io::Error>(true)
        };
        for (index, image) in std::mem::take(&mut self.contents) {
            let failed = |what: &str| self.failed(index, what.to_owned());
            if open(&mut opened, index).map_err(failed("open it"))? {
                contents::unpack(&opened[&index], image, self.confinement.as_ref())
                    .map_err(failed("fill it"))?;
            }
        }
        for mount in &self.plan.mounts {
            let Some((parent, below)) = &mount.place else { continue };
            let failed = |what: &str| self.failed(mount.index, what.to_owned());
            let ours = self.plan.mounts.iter().find(|m| m.index == *parent).is_some_and(|m| {
                m.source == Source::Root
                    || m.source == Source::Fresh
                        && self.plan.entries[*parent].fstype == Fstype::Tmpfs as u32
            });
            if !ours || below == "." || !open(&mut opened, *parent).map_err(failed("open it"))? {
                continue;
            }
            if is_there(&opened[parent], below).map_err(failed("look at its place"))? {
                continue;
            }
            // A place must be of the kind of what comes there.
            let directory = match &mount.source {
                Source::External(key) => self.externals.get(key).is_none_or(|path| path.is_dir()),
                Source::Bind(from, path) if !path.is_empty() => {
                    !open(&mut opened, *from).map_err(failed("open its source"))?
                        || is_directory(&opened[from], path).unwrap_or(true)
                }
                _ => true,
            };
            make_place(&opened[parent], Path::new(below), directory)
                .map_err(failed("make its place"))?;
        }
        Ok(())
    }

    /// Pivots to the root and attaches the rest to it.
    fn attach(&self, stub: &Stub, handles: &HashMap<usize, Handle>) -> Result<(), RestoreError> {
        let mut calls = Calls::new(self);
        let mut fds: HashMap<usize, Arg> = HashMap::new();
        let mut places: HashMap<usize, CallId> = HashMap::new();
        let mut sources: HashMap<usize, CallId> = HashMap::new();
        for mount in &self.plan.mounts {
            if let Some(handle) = handles.get(&mount.index) {
                fds.insert(mount.index, handle.mount.into());
            }
        }
        // Places and sources are looked up before anything covers them.
        for mount in &self.plan.mounts {
            if let Some(fd) = fds.get(&mount.index).copied() {
                self.look_up(&mut calls, mount.index, fd, &mut places, &mut sources);
            }
        }
        for mount in &self.plan.mounts {
            let index = mount.index;
            let entry = &self.plan.entries[index];
            let fd = match fds.get(&index) {
                Some(fd) => *fd,
                None => {
                    // A bind: its source is attached by now.
                    let Some(source) = sources.get(&index) else { continue };
                    let fd = Arg::from(calls.clone_of_fd(index, *source));
                    fds.insert(index, fd);
                    self.look_up(&mut calls, index, fd, &mut places, &mut sources);
                    fd
                }
            };
            // Clones come with the propagation of what they were cloned from.
            let new = handles.get(&index).is_some_and(|handle| handle.context.is_some());
            if !new && !self.plan.outer_slaves.contains(&index) {
                calls.attributes(index, fd, MountAttr::propagation(libc::MS_PRIVATE));
            }
            if let Some(context) = handles.get(&index).and_then(|handle| handle.context) {
                let tmpfs = entry.fstype == Fstype::Tmpfs as u32;
                if tmpfs && entry.sb_flags.unwrap_or(0) & libc::MS_RDONLY as u32 != 0 {
                    calls.config(index, context.into(), "ro", None);
                    calls.config_command(index, context.into(), FSCONFIG_CMD_RECONFIGURE);
                }
                calls.batch.call(libc::SYS_close, &[context.into()]);
            }
            calls.attributes(index, fd, MountAttr::exactly(entry.flags.into()));
            match places.get(&index) {
                Some(place) => calls.move_mount(index, "attach it", fd, (*place).into(), 0),
                None => calls.pivot(index, fd, &self.root),
            }
        }
        for step in &self.plan.propagation {
            let fd = |index: &usize| fds.get(index).copied().unwrap_or(Arg::Value(u64::MAX));
            match step {
                Propagation::Share(a) => {
                    calls.attributes(*a, fd(a), MountAttr::propagation(libc::MS_SHARED));
                }
                Propagation::Enslave(a) => {
                    calls.attributes(*a, fd(a), MountAttr::propagation(libc::MS_SLAVE));
                }
                Propagation::Unbindable(a) => {
                    calls.attributes(*a, fd(a), MountAttr::propagation(libc::MS_UNBINDABLE));
                }
                Propagation::Join(from, to) => {
                    let what = "put it into its peer group";
                    calls.move_mount(*to, what, fd(from), fd(to), MOVE_MOUNT_SET_GROUP);
                }
            }
        }
        let opened = fds.into_values().chain(places.into_values().map(Arg::from));
        for fd in opened.chain(sources.into_values().map(Arg::from)) {
            calls.batch.call(libc::SYS_close, &[fd]);
        }
        calls.run(stub).map(drop)
    }

    /// Opens the places of the mounts that go onto mount `index`, and the pieces of it that are
    /// bound elsewhere.
    fn look_up(
        &self,
        calls: &mut Calls<'_>,
        index: usize,
        fd: Arg,
        places: &mut HashMap<usize, CallId>,
        sources: &mut HashMap<usize, CallId>,
    ) {
        for mount in &self.plan.mounts {
            if let Some((parent, below)) = &mount.place
                && *parent == index
            {
                places.insert(mount.index, calls.open(mount.index, "open its place", fd, below));
            }
            if let Source::Bind(from, below) = &mount.source
                && *from == index
            {
                let below = if below.is_empty() { "." } else { below };
                sources.insert(mount.index, calls.open(mount.index, "open its source", fd, below));
            }
        }
    }
}

impl std::fmt::Display for MountRestore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.plan.fmt(f)
    }
}

/// Descriptors of a detached mount in the stub.
#[derive(Clone, Copy, Debug)]
struct Handle {
    mount: i32,
    /// The configuration of a new file system.
    context: Option<i32>,
}

fn cause(why: Uncarried) -> &'static str {
    match why {
        Uncarried::Deleted => "its directory was removed before the capture",
        Uncarried::FileSystem => "it is of a file system that is not in the images",
        Uncarried::NoParent => "the mount that it is on is not in the images",
        Uncarried::NoRoot => "the images have no root mount",
        Uncarried::SamePlace => "another mount is at the same place",
    }
}

fn within(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    )
}

fn is_there(root: &OwnedFd, path: &str) -> io::Result<bool> {
    match openat2(root, path, within(OFlag::O_PATH)) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(root: &OwnedFd, path: &str) -> io::Result<bool> {
    let fd = openat2(root, path, within(OFlag::O_PATH))?;
    Ok(fstat(&fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Makes a directory or an empty file and the directories above it.
fn make_place(root: &OwnedFd, path: &Path, directory: bool) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(0o755);
    let mut at: Option<OwnedFd> = None;
    let names: Vec<&OsStr> = path.iter().collect();
    for (i, name) in names.iter().enumerate() {
        let above = at.as_ref().unwrap_or(root);
        if i + 1 == names.len() && !directory {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
            openat2(above, *name, within(flags).mode(Mode::from_bits_truncate(0o644)))?;
            return Ok(());
        }
        match mkdirat(above, *name, mode) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = Some(openat2(above, *name, within(OFlag::O_PATH | OFlag::O_DIRECTORY))?);
    }
    Ok(())
}
