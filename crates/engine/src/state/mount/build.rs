//! Restore of mounts: the plan carried out by remote calls in the root task.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{CgroupEntry, Fstype, MntEntry};
use arctern_sys::mount::{
    FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_SET_GROUP,
    MOVE_MOUNT_T_EMPTY_PATH, MountAttr, OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, open_how,
};
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc::cgroup;
use arctern_tracee::stub::Stub;
use arctern_tracee::{Arg, Batch, CallId};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};

use super::contents;
use super::plan::{Plan, Propagation};
use super::table::{self, Source, Uncarried};
use crate::error::{Refusal, RestoreError};
use crate::options::External;
use crate::restore_context::{TaskNode, failed, subject};
use crate::state::cgroup::hierarchy::{self, Hierarchy};

/// Nothing outside of the mount, no link, no other mount.
const WITHIN: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;

/// The mounts that a restore makes.
#[derive(Debug)]
pub struct MountRestore {
    plan: Plan,
    task: TaskNode,
    /// The root on the host.
    root: PathBuf,
    /// Host paths by key.
    externals: HashMap<String, PathBuf>,
    /// Contents of tmpfs, by index of the mount.
    contents: HashMap<usize, std::fs::File>,
    cgroups: CgroupEntry,
}

impl MountRestore {
    /// Reads the mounts of the namespace with number `id`.
    pub fn load(
        images: &ImageDir,
        id: u64,
        task: &TaskNode,
        root: Option<&Path>,
        externals: &[External],
    ) -> Result<Self, RestoreError> {
        let entries: Vec<MntEntry> = images.read_all(ImageKind::Mountpoints, id)?;
        let plan = Plan::new(entries).map_err(|uncarried| {
            let refuse = |(path, why): (String, Uncarried)| Refusal {
                subject: subject(task.pid, &task.comm, format!("mount {path}")),
                cause: cause(why).to_owned(),
                remedy: format!("capture it with --external mnt[{path}]:NAME"),
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
                    remedy: format!("say what stands for it with --external mnt[{key}]:PATH"),
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

    /// What will not be as it was, for a warning.
    pub fn losses(&self) -> Option<String> {
        let lost: Vec<&str> = self
            .plan
            .lost_masters
            .iter()
            .map(|&index| self.plan.entries[index].mountpoint.as_str())
            .collect();
        (!lost.is_empty())
            .then(|| format!("mounts on the host no longer appear below {}", lost.join(", ")))
    }

    fn failed(&self, index: usize, what: String) -> impl FnOnce(io::Error) -> RestoreError + use<> {
        let part = format!("mount {}", self.plan.entries[index].mountpoint);
        failed(subject(self.task.pid, &self.task.comm, part), what)
    }

    /// Makes the mounts in `stub`, which lives in a mount namespace of its own that is still a copy
    /// of the host's. Afterwards its root and working directory are the new root.
    ///
    /// `own_cgroups` says whether the task has a cgroup namespace of its own by now.
    pub fn build(&mut self, stub: &Stub, own_cgroups: bool) -> Result<(), RestoreError> {
        let handles = self.make(stub, own_cgroups)?;
        self.fill(stub, &handles)?;
        self.attach(stub, &handles)
    }

    /// Makes everything that needs no other mount of the tree, detached.
    fn make(&self, stub: &Stub, own_cgroups: bool) -> Result<HashMap<usize, Handle>, RestoreError> {
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
        let cgroups = [Fstype::Cgroup as u32, Fstype::Cgroup2 as u32];
        let hierarchies = if self.plan.entries.iter().any(|e| cgroups.contains(&e.fstype)) {
            let mounted = hierarchy::mounted();
            mounted.map_err(self.failed(0, "find the mounted cgroup hierarchies".to_owned()))?
        } else {
            Vec::new()
        };
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
                Source::CgroupDir => {
                    let dir = self.group_dir(stub, &self.plan.entries[index], &hierarchies);
                    let dir = dir.map_err(self.failed(index, "find its group".to_owned()))?;
                    (calls.clone_of(index, &dir), None)
                }
                Source::Fresh => {
                    let entry = &self.plan.entries[index];
                    match mounted_hierarchy(stub, entry, own_cgroups, &hierarchies) {
                        Some(dir) => (calls.clone_of(index, &dir), None),
                        None => {
                            let (fd, context) = calls.new_file_system(index, entry);
                            (fd, Some(context))
                        }
                    }
                }
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
                contents::unpack(&opened[&index], image).map_err(failed("fill it"))?;
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

    /// The host's directory of the group that stands for the tree's own, for a mount of version 1
    /// without a cgroup namespace.
    fn group_dir(
        &self,
        stub: &Stub,
        entry: &MntEntry,
        hierarchies: &[Hierarchy],
    ) -> io::Result<PathBuf> {
        let controllers = hierarchy::controllers(&options(entry));
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let hierarchy =
            hierarchies.iter().find(|h| h.controllers == controllers).ok_or_else(not_found)?;
        let groups = cgroup::read(stub.tid(), stub.tid())?;
        let now = groups.iter().find(|m| m.controllers == controllers).ok_or_else(not_found)?;
        // The mount showed the tree's group or one some levels above it.
        let levels = self
            .cgroups
            .sets
            .iter()
            .flat_map(|set| &set.ctls)
            .filter(|member| member.name == controllers)
            .find_map(|member| Path::new(&member.path).strip_prefix(&entry.root).ok())
            .map_or(0, |below| below.components().count());
        let group = Path::new(&now.path).ancestors().nth(levels).unwrap_or(Path::new("/"));
        hierarchy.dir(&group.to_string_lossy()).ok_or_else(not_found)
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

/// The host's directory that a new mount of a hierarchy would show. A hierarchy is one file
/// system however often it is mounted, and a mount of version 2 takes 10 ms where a bind takes
/// 20 us. None for other file systems and for hierarchies that the host has not mounted.
fn mounted_hierarchy(
    stub: &Stub,
    entry: &MntEntry,
    own_cgroups: bool,
    hierarchies: &[Hierarchy],
) -> Option<PathBuf> {
    let controllers = match table::file_system_name(entry.fstype)? {
        "cgroup2" => String::new(),
        "cgroup" => hierarchy::controllers(&options(entry)),
        _ => return None,
    };
    let hierarchy = hierarchies.iter().find(|h| h.controllers == controllers)?;
    if !own_cgroups {
        return hierarchy.dir("/");
    }
    let groups = cgroup::read(stub.tid(), stub.tid()).ok()?;
    let group = groups.iter().find(|group| group.controllers == controllers)?;
    hierarchy.dir(&group.path)
}

fn options(entry: &MntEntry) -> Vec<String> {
    entry.options.split(',').map(str::to_owned).collect()
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

/// A batch that knows which mount each call is about.
struct Calls<'a> {
    restore: &'a MountRestore,
    batch: Batch,
    labels: Vec<(CallId, usize, &'static str)>,
}

impl<'a> Calls<'a> {
    fn new(restore: &'a MountRestore) -> Self {
        Calls { restore, batch: Batch::new(), labels: Vec::new() }
    }

    fn call(&mut self, index: usize, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        let call = self.batch.call(nr, args);
        self.labels.push((call, index, what));
        call
    }

    /// Runs the calls; the first failed one becomes the error.
    fn run(mut self, stub: &Stub) -> Result<Batch, RestoreError> {
        stub.run(&mut self.batch)?;
        for (call, index, what) in self.labels {
            if let Err(error) = self.batch.result(call) {
                return Err(self.restore.failed(index, what.to_owned())(error));
            }
        }
        Ok(self.batch)
    }

    fn path(&mut self, path: &Path) -> Arg {
        self.batch.c_string(path.as_os_str().as_bytes()).into()
    }

    fn clone_of(&mut self, index: usize, path: &Path) -> CallId {
        let path = self.path(path);
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        let args = [libc::AT_FDCWD.into(), path, flags.into()];
        self.call(index, "find its source on the host", libc::SYS_open_tree, &args)
    }

    fn clone_of_fd(&mut self, index: usize, fd: CallId) -> CallId {
        let empty = self.path(Path::new(""));
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
        self.call(index, "bind it", libc::SYS_open_tree, &[fd.into(), empty, flags.into()])
    }

    fn open(&mut self, index: usize, what: &'static str, fd: Arg, below: &str) -> CallId {
        let below = self.path(Path::new(below));
        let how = self.batch.bytes(&open_how(libc::O_PATH | libc::O_CLOEXEC, WITHIN));
        self.call(index, what, libc::SYS_openat2, &[fd, below, how.into(), how.len().into()])
    }

    fn config(&mut self, index: usize, context: Arg, key: &str, value: Option<&str>) {
        let key = self.path(Path::new(key));
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        let value = value.map_or(Arg::Value(0), |value| self.path(Path::new(value)));
        let args = [context, command.into(), key, value, 0.into()];
        self.call(index, "set an option of its file system", libc::SYS_fsconfig, &args);
    }

    fn config_command(&mut self, index: usize, context: Arg, command: u32) {
        let args = [context, command.into(), 0.into(), 0.into(), 0.into()];
        self.call(index, "set up its file system", libc::SYS_fsconfig, &args);
    }

    /// A new file system: its mount, and its configuration.
    fn new_file_system(&mut self, index: usize, entry: &MntEntry) -> (CallId, CallId) {
        let name = table::file_system_name(entry.fstype).unwrap_or_default();
        let name_arg = self.path(Path::new(name));
        let args = [name_arg, FSOPEN_CLOEXEC.into()];
        let context = self.call(index, "open its file system", libc::SYS_fsopen, &args);
        if !entry.source.is_empty() {
            self.config(index, context.into(), "source", Some(&entry.source));
        }
        // The others are one file system for everybody: their options are the host's.
        if matches!(name, "tmpfs" | "devpts" | "proc" | "cgroup" | "mqueue") {
            for option in entry.options.split(',').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    None if option == "newinstance" => {}
                    Some(("release_agent", _)) => {}
                    Some((key, value)) => self.config(index, context.into(), key, Some(value)),
                    None => self.config(index, context.into(), option, None),
                }
            }
        }
        let read_only = entry.sb_flags.unwrap_or(0) & libc::MS_RDONLY as u32 != 0;
        if read_only && matches!(name, "proc" | "sysfs" | "devpts" | "mqueue") {
            self.config(index, context.into(), "ro", None);
        }
        self.config_command(index, context.into(), FSCONFIG_CMD_CREATE);
        let args = [context.into(), FSMOUNT_CLOEXEC.into(), 0.into()];
        let mount = self.call(index, "mount its file system", libc::SYS_fsmount, &args);
        (mount, context)
    }

    fn attributes(&mut self, index: usize, fd: Arg, attr: MountAttr) {
        let empty = self.path(Path::new(""));
        let attr = self.batch.bytes(&attr.to_bytes());
        let args = [fd, empty, libc::AT_EMPTY_PATH.into(), attr.into(), MountAttr::SIZE.into()];
        self.call(index, "set its flags", libc::SYS_mount_setattr, &args);
    }

    fn move_mount(&mut self, index: usize, what: &'static str, from: Arg, to: Arg, flags: u32) {
        let empty = self.path(Path::new(""));
        let flags = flags | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
        self.call(index, what, libc::SYS_move_mount, &[from, empty, to, empty, flags.into()]);
    }

    /// Makes a detached mount the root: it is attached over its directory on the host, the old root
    /// comes to lie on top of it and is taken off (pivot_root(2), notes).
    fn pivot(&mut self, index: usize, fd: Arg, over: &Path) {
        let empty = self.path(Path::new(""));
        let over = self.path(over);
        let here = self.path(Path::new("."));
        let top = self.path(Path::new("/"));
        let args = [fd, empty, libc::AT_FDCWD.into(), over, MOVE_MOUNT_F_EMPTY_PATH.into()];
        self.call(index, "attach the root", libc::SYS_move_mount, &args);
        self.call(index, "enter the root", libc::SYS_fchdir, &[fd]);
        self.call(index, "make it the root", libc::SYS_pivot_root, &[here, here]);
        let args = [here, libc::MNT_DETACH.into()];
        self.call(index, "detach the old root", libc::SYS_umount2, &args);
        self.call(index, "enter the root", libc::SYS_chdir, &[top]);
    }
}
