//! One restore: the plan's steps, carried out by remote calls.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{CoreEntry, PstreeEntry, SeccompEntry, TaskKobjIdsEntry};
use arctern_sys::pidfd::PidFd;
use arctern_sys::{Pid, ptrace};
use arctern_tracee::TraceeError;
use arctern_tracee::stub::Stub;

use crate::error::{RestoreError, Subject};
use crate::faults::Faults;
use crate::options::{Event, Events, HookError, RestoreOptions, RestoreReport};
use crate::plan::{Creator, PlannedTask, Step, plan};
use crate::restore_context::{RestoreContext, TaskNode};
use crate::state::cgroup::CgroupRestore;
use crate::state::files::{FileRestoreOptions, FilesRestore, orphan_terminals};
use crate::state::memory::rebuild::{Memory, set_mm};
use crate::state::memory::space::{AddressSpace, find_hole, have_common_memory};
use crate::state::memory::vdso::HostVdso;
use crate::state::namespaces::{NamespaceRestore, NamespaceRestoreOptions};
use crate::state::restart::{self, Restarts};
use crate::state::task::restore as task_state;

type Hook<'a> = &'a mut dyn FnMut(i32) -> Result<(), HookError>;

/// The caller's own moments.
struct Hooks<'a> {
    setup_namespaces: Option<Hook<'a>>,
    before_resume: Option<Hook<'a>>,
    orphan_terminal: Option<&'a mut dyn FnMut(OwnedFd)>,
}

/// Everything that the images say, checked.
struct Loaded {
    nodes: Vec<TaskNode>,
    entries: Vec<PstreeEntry>,
    /// By inner tid.
    cores: BTreeMap<i32, CoreEntry>,
    spaces: Vec<Option<AddressSpace>>,
    seccomp: SeccompEntry,
    restarts: Restarts,
}

/// Restores the images of `images_dir`.
///
/// # Errors
/// Whatever happens, after an error nothing of the restore is left: every task that was made is
/// dead and reaped.
pub fn restore(
    images_dir: &Path,
    mut options: RestoreOptions<'_>,
    events: &mut dyn Events,
) -> Result<RestoreReport, RestoreError> {
    let started = Instant::now();
    let mut hooks = Hooks {
        setup_namespaces: options.setup_namespaces.take(),
        before_resume: options.before_resume.take(),
        orphan_terminal: options.orphan_terminal.take(),
    };
    let options = options;
    let images = ImageDir::open(images_dir)?;
    let loaded = load(&images, images_dir)?;
    let planned = planned_tasks(&loaded);
    let mut refusals = Vec::new();
    let steps = match plan(&planned, options.shell_job) {
        Ok(steps) => steps,
        Err(list) => {
            refusals.extend(list);
            Vec::new()
        }
    };
    let terminals = match hooks.orphan_terminal {
        Some(_) => orphan_terminals(&images)?,
        None => Vec::new(),
    };
    let mut namespaces = NamespaceRestore::load(
        &images,
        &loaded.nodes[0],
        &NamespaceRestoreOptions {
            root: options.root.as_deref(),
            externals: &options.externals,
            inherit_fds: &options.inherit_fds,
            terminals: &terminals,
            join: &[],
        },
    )?;
    namespaces.check(&mut refusals);
    let vdso = HostVdso::read()?;
    for (node, space) in loaded.nodes.iter().zip(&loaded.spaces) {
        if let Some(space) = space {
            vdso.check(node.pid, &node.comm, space, &mut refusals)?;
        }
    }
    let files = FilesRestore::load(
        &images,
        &loaded.nodes,
        FileRestoreOptions {
            inherit_fds: duplicates(&options.inherit_fds)?,
            externals: options.externals.clone(),
            file_locks: options.file_locks,
            shell_job: options.shell_job,
            orphan_terminals: terminals.clone(),
        },
    )?;
    let root_dir = options.root.clone().unwrap_or_else(|| "/".into());
    let root_dir = std::fs::File::open(&root_dir).map_err(|source| RestoreError::Kernel {
        subject: whole_tree(),
        what: format!("open its root directory {}", root_dir.display()),
        source,
    })?;
    files.check(root_dir.as_fd(), &mut refusals);
    if !refusals.is_empty() {
        return Err(RestoreError::Refused(refusals));
    }
    let cgroups = CgroupRestore::load(&images)?;
    let spaces = || loaded.spaces.iter().flatten();
    let gadget = find_hole(spaces())?;
    let memory = Memory::new(spaces());
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().map_err(|source| {
        RestoreError::Kernel { subject: whole_tree(), what: "make a channel".to_owned(), source }
    })?;
    // Above every number of the images, so that final descriptors never meet temporary ones, and
    // above those that mapped files get while they are open: a task opens all of its own at once.
    let mapped = spaces().map(AddressSpace::mapped_files).max().unwrap_or(0);
    let base = files.max_fd().max(2) + 1 + i32::try_from(mapped).unwrap_or(i32::MAX / 2);
    let mut build = Build {
        images: &images,
        loaded: &loaded,
        namespaces: &mut namespaces,
        files,
        cgroups,
        memory,
        ctx: RestoreContext::new(base, ours),
        gadget,
        stubs: vec![None; loaded.nodes.len()],
        filled: vec![false; loaded.nodes.len()],
        exe_of: vec![None; loaded.nodes.len()],
        threads: BTreeMap::new(),
        helpers: Vec::new(),
        finals: Vec::new(),
        root_pid: None,
        made: Vec::new(),
        channel: theirs,
    };
    let mut faults = Faults::from_env("restore");
    let mut forking = 0;
    for step in &steps {
        events.event(Event::Phase(phase(step)));
        tracing::debug!("{step} after {} µs", started.elapsed().as_micros());
        let result = faults
            .step(&step.to_string())
            .map_err(RestoreError::Injected)
            .and_then(|()| build.execute(step, &options, &mut hooks, events));
        if let Err(e) = result {
            build.tear_down();
            return Err(e);
        }
        if matches!(step, Step::Threads(_)) && forking == 0 {
            forking = started.elapsed().as_micros() as u64;
        }
    }
    build.cgroups.keep();
    for warning in build.cgroups.take_warnings() {
        events.event(Event::Warning(warning));
    }
    Ok(RestoreReport {
        pid: build.root_pid.map_or(0, |pid| pid.0),
        total_us: started.elapsed().as_micros() as u64,
        forking_us: forking,
        pages_restored: build.memory.pages_restored,
    })
}

/// Descriptors of our own of what the caller gave.
fn duplicates(fds: &[(String, OwnedFd)]) -> Result<Vec<(String, OwnedFd)>, RestoreError> {
    fds.iter()
        .map(|(key, fd)| Ok((key.clone(), fd.try_clone()?)))
        .collect::<std::io::Result<_>>()
        .map_err(|source| RestoreError::Kernel {
            subject: whole_tree(),
            what: "duplicate inherited descriptors".to_owned(),
            source,
        })
}

fn whole_tree() -> Subject {
    Subject { pid: 0, comm: "the tree".to_owned(), part: String::new() }
}

/// The steps of restoring these images, in words: what fault injection counts.
pub fn describe_plan(images_dir: &Path, shell_job: bool) -> Result<Vec<String>, RestoreError> {
    let images = ImageDir::open(images_dir)?;
    let loaded = load(&images, images_dir)?;
    let steps = plan(&planned_tasks(&loaded), shell_job).map_err(RestoreError::Refused)?;
    Ok(steps.iter().map(Step::to_string).collect())
}

fn phase(step: &Step) -> &'static str {
    match step {
        Step::Root | Step::Namespaces => "namespaces",
        Step::SharedFiles(_) | Step::Files(_) | Step::Fs(_) | Step::FinishFiles => "files",
        Step::Memory(_) => "memory",
        Step::Session(_)
        | Step::Clone { .. }
        | Step::Helper { .. }
        | Step::Group(_)
        | Step::HelpersExit
        | Step::Exit(_)
        | Step::Threads(_) => "tasks",
        Step::State(_) | Step::Credentials(_) | Step::Timers(_) | Step::Registers(_) => "state",
        Step::Hook => "verify",
        Step::Release => "release",
    }
}

fn load(images: &ImageDir, dir: &Path) -> Result<Loaded, RestoreError> {
    let inconsistent = |what: String| Err(RestoreError::Inconsistent(what));
    let entries: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, 0)?;
    if entries.is_empty() {
        return inconsistent("pstree.img lists no process".to_owned());
    }
    let mut nodes: Vec<TaskNode> = Vec::with_capacity(entries.len());
    let mut index_of: BTreeMap<u32, usize> = BTreeMap::new();
    let mut cores = BTreeMap::new();
    let mut spaces = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let pid = i32::try_from(entry.pid).unwrap_or(0);
        if pid <= 0 {
            return inconsistent(format!("pstree.img: {} is no process id", entry.pid));
        }
        let parent = match (index, index_of.get(&entry.ppid)) {
            (0, _) => None,
            (_, Some(parent)) => Some(*parent),
            _ => return inconsistent(format!("pstree.img: process {pid} has no parent before it")),
        };
        if index_of.insert(entry.pid, index).is_some() {
            return inconsistent(format!("pstree.img: process {pid} occurs twice"));
        }
        let leader: CoreEntry = images.read_one(ImageKind::Core, pid as u64)?;
        task_state::check(pid, &leader)?;
        let Some(tc) = &leader.tc else {
            return inconsistent(format!("core-{pid}.img: no process state"));
        };
        let zombie = task_state::is_zombie(tc);
        let ids: TaskKobjIdsEntry = if zombie {
            TaskKobjIdsEntry::default()
        } else {
            match images.read_optional(ImageKind::Ids, pid as u64)? {
                Some(ids) => ids,
                None => leader.ids.clone().unwrap_or_default(),
            }
        };
        let comm = tc.comm.clone();
        if !zombie {
            let tids: Vec<i32> = entry.threads.iter().map(|t| *t as i32).collect();
            if tids.first() != Some(&pid) || tids.iter().any(|t| *t <= 0) {
                return inconsistent(format!("pstree.img: threads of process {pid}"));
            }
            for tid in &tids[1..] {
                let core: CoreEntry = images.read_one(ImageKind::Core, *tid as u64)?;
                task_state::check(*tid, &core)?;
                if cores.insert(*tid, core).is_some() {
                    return inconsistent(format!("pstree.img: thread {tid} occurs twice"));
                }
            }
        }
        spaces.push(if zombie { None } else { Some(AddressSpace::load(images, pid)?) });
        if cores.insert(pid, leader).is_some() {
            return inconsistent(format!("pstree.img: thread {pid} occurs twice"));
        }
        nodes.push(TaskNode { pid, comm, parent, zombie, ids });
    }
    let restarts = std::fs::read(dir.join(restart::FILE_NAME))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    Ok(Loaded {
        nodes,
        entries,
        cores,
        spaces,
        seccomp: images.read_optional(ImageKind::Seccomp, 0)?.unwrap_or_default(),
        restarts,
    })
}

fn planned_tasks(loaded: &Loaded) -> Vec<PlannedTask> {
    let common = |index: usize, parent: Option<usize>| match (
        &loaded.spaces[index],
        parent.and_then(|p| loaded.spaces[p].as_ref()),
    ) {
        (Some(child), Some(parent)) => have_common_memory(child, parent),
        _ => false,
    };
    loaded
        .nodes
        .iter()
        .zip(&loaded.entries)
        .enumerate()
        .map(|(index, (node, entry))| PlannedTask {
            pid: node.pid,
            parent: node.parent,
            sid: entry.sid as i32,
            pgid: entry.pgid as i32,
            zombie: node.zombie,
            common_memory: common(index, node.parent),
            comm: node.comm.clone(),
        })
        .collect()
}

/// A restore in progress.
struct Build<'a, 'n> {
    images: &'a ImageDir,
    loaded: &'a Loaded,
    namespaces: &'a mut NamespaceRestore<'n>,
    files: FilesRestore,
    cgroups: CgroupRestore,
    memory: Memory,
    ctx: RestoreContext,
    gadget: u64,
    /// Leaders, by task.
    stubs: Vec<Option<Stub>>,
    /// Tasks whose memory is built; the value tells what a clone of them starts with.
    filled: Vec<bool>,
    /// Which file of the images each task's address space says that it runs.
    exe_of: Vec<Option<u32>>,
    /// Other threads, by task and inner tid.
    threads: BTreeMap<usize, Vec<(i32, Stub)>>,
    helpers: Vec<(i32, Stub, usize)>,
    finals: Vec<(Stub, task_state::FinalState)>,
    root_pid: Option<Pid>,
    /// Every process that was made, zombies and helpers too.
    made: Vec<Pid>,
    channel: std::os::unix::net::UnixDatagram,
}

impl Build<'_, '_> {
    fn stub(&self, task: usize) -> Result<Stub, RestoreError> {
        self.stubs[task].ok_or_else(|| {
            RestoreError::Inconsistent(format!("task {task} is used before it is made"))
        })
    }

    fn core(&self, tid: i32) -> Result<&CoreEntry, RestoreError> {
        self.loaded
            .cores
            .get(&tid)
            .ok_or_else(|| RestoreError::Inconsistent(format!("core-{tid}.img is missing")))
    }

    /// The set of control groups of a task's leader.
    fn cgroup_set(&self, task: usize) -> u32 {
        let core = self.loaded.cores.get(&self.loaded.nodes[task].pid);
        let process = core.and_then(|c| c.tc.as_ref()).and_then(|tc| tc.cg_set);
        let thread = core.and_then(|c| c.thread_core.as_ref()).and_then(|t| t.cg_set);
        thread.or(process).unwrap_or(0)
    }

    fn execute(
        &mut self,
        step: &Step,
        options: &RestoreOptions<'_>,
        hooks: &mut Hooks<'_>,
        events: &mut dyn Events,
    ) -> Result<(), RestoreError> {
        match *step {
            Step::Root => self.root(options),
            Step::Namespaces => {
                let root = self.stub(0)?;
                if let Some(hook) = &mut hooks.setup_namespaces {
                    hook(root.tid().0).map_err(RestoreError::Hook)?;
                }
                let masters = self.namespaces.build(&mut self.ctx, &root, events)?;
                if let Some(hook) = &mut hooks.orphan_terminal {
                    masters.into_iter().for_each(hook);
                }
                Ok(())
            }
            Step::SharedFiles(task) => {
                let stub = self.stub(task)?;
                self.files.open_shared(&mut self.ctx, &stub, task)
            }
            Step::Memory(task) => self.memory(task),
            Step::Session(task) => {
                let stub = self.stub(task)?;
                stub.call("setsid", libc::SYS_setsid, &[])?;
                self.files.session_started(&mut self.ctx, &stub, task)
            }
            Step::Clone { task, creator } => self.clone_task(task, creator),
            Step::Helper { pid, parent, session } => self.helper(pid, parent, session.is_some()),
            Step::Group(task) => {
                let group = self.loaded.entries[task].pgid as i32;
                let args = [0.into(), group.into()];
                self.stub(task)?.call("setpgid", libc::SYS_setpgid, &args)?;
                Ok(())
            }
            Step::HelpersExit => {
                for (pid, helper, parent) in std::mem::take(&mut self.helpers) {
                    let parent = self.stub(parent)?;
                    task_state::reap_helper(&helper, pid, &parent)?;
                }
                Ok(())
            }
            Step::Exit(task) => {
                let node = &self.loaded.nodes[task];
                let Some(tc) = self.core(node.pid)?.tc.clone() else { return Ok(()) };
                let parent = self.stub(node.parent.unwrap_or(0))?;
                let stub = self.stub(task)?;
                self.stubs[task] = None;
                task_state::exit_as(&stub, &tc, &parent)
            }
            Step::Threads(task) => self.make_threads(task),
            Step::Files(task) => {
                let stub = self.stub(task)?;
                self.files.install(&mut self.ctx, &stub, task)
            }
            Step::Fs(task) => {
                let stub = self.stub(task)?;
                self.files.install_fs(&mut self.ctx, &stub, task)
            }
            Step::State(task) => self.state(task, events),
            Step::FinishFiles => {
                let stubs: Vec<(usize, Stub)> = self
                    .stubs
                    .iter()
                    .enumerate()
                    .filter_map(|(task, stub)| stub.map(|stub| (task, stub)))
                    .collect();
                self.files.finish(&mut self.ctx, &stubs)
            }
            Step::Credentials(task) => self.credentials(task, events),
            Step::Hook => match (&mut hooks.before_resume, self.root_pid) {
                (Some(hook), Some(pid)) => hook(pid.0).map_err(RestoreError::Hook),
                _ => Ok(()),
            },
            Step::Timers(task) => {
                let tc = self.core(self.loaded.nodes[task].pid)?.tc.as_ref();
                let dumpable = self.loaded.spaces[task].as_ref().and_then(|s| s.mm.dumpable);
                match tc {
                    Some(tc) => task_state::timers(&self.stub(task)?, tc, dumpable),
                    None => Ok(()),
                }
            }
            Step::Registers(task) => self.registers(task),
            Step::Release => self.release(options.leave_stopped),
        }
    }

    fn root(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
        let pid = self.loaded.nodes[0].pid;
        let host = while_taken(|| self.namespaces.spawn_root(options.sibling, pid))?;
        self.root_pid = Some(host);
        self.made.push(host);
        let set = self.cgroup_set(0);
        self.cgroups.enter(host, set, &options.cgroups)?;
        let stub = Stub::adopt(host, self.gadget)?;
        self.stubs[0] = Some(stub);
        if self.loaded.seccomp.seccomp_filters.iter().any(|f| !f.filter.is_empty()) {
            let options = ptrace::O_EXITKILL | ptrace::O_TRACE_CHILDREN | ptrace::O_SUSPEND_SECCOMP;
            ptrace::set_options(host, options)
                .map_err(TraceeError::request(host, "suspend seccomp"))?;
        }
        task_state::reset_signals(&stub)?;
        // The stub has every descriptor of ours: it keeps the channel and nothing else.
        self.take_channel(&stub)
    }

    /// Puts the channel at its number and closes everything else.
    fn take_channel(&mut self, stub: &Stub) -> Result<(), RestoreError> {
        use std::os::fd::AsRawFd;
        let base = self.ctx.base();
        let current = self.channel.as_raw_fd();
        let mut batch = arctern_tracee::Batch::new();
        // Numbers above the caller's own limit may be needed.
        use nix::sys::resource::{Resource, getrlimit};
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let limit = batch.bytes(&[hard.to_ne_bytes(), hard.to_ne_bytes()].concat());
        let resource = libc::RLIMIT_NOFILE as i32;
        batch.call(libc::SYS_prlimit64, &[0.into(), resource.into(), limit.into(), 0.into()]);
        if current != base {
            batch.call(libc::SYS_dup3, &[current.into(), base.into(), 0.into()]);
        } else {
            batch.call(libc::SYS_fcntl, &[base.into(), libc::F_SETFD.into(), 0.into()]);
        }
        batch.call(libc::SYS_close_range, &[0.into(), (base - 1).into(), 0.into()]);
        batch.call(libc::SYS_close_range, &[(base + 1).into(), u32::MAX.into(), 0.into()]);
        Ok(stub.run_all(&mut batch, "close the controller's descriptors")?)
    }

    fn memory(&mut self, task: usize) -> Result<(), RestoreError> {
        let stub = self.stub(task)?;
        let loaded = self.loaded;
        let Some(space) = &loaded.spaces[task] else { return Ok(()) };
        // Only a task that was cloned after its parent was filled has something to keep.
        let parent = match loaded.nodes[task].parent {
            Some(parent) if self.filled[task] => loaded.spaces[parent].as_ref(),
            _ => None,
        };
        let files = &mut self.files;
        let mut open = |ctx: &mut RestoreContext, stub: &Stub, id: u32, writable: bool| {
            files.open_mapping(ctx, stub, id, writable)
        };
        self.memory.build(
            &mut self.ctx,
            &stub,
            self.gadget,
            space,
            parent,
            self.images,
            &mut open,
        )?;
        self.filled[task] = true;
        // The kernel refuses to replace a file that is still mapped, and a clone may have it already.
        let file = space.mm.exe_file_id;
        let exe = if self.exe_of[task] == Some(file) {
            None
        } else {
            Some(self.files.open_mapping(&mut self.ctx, &stub, file, false)?)
        };
        self.exe_of[task] = Some(file);
        set_mm(&stub, &space.mm, exe)
    }

    fn clone_task(&mut self, task: usize, creator: Creator) -> Result<(), RestoreError> {
        let node = &self.loaded.nodes[task];
        let parent = node.parent.unwrap_or(0);
        let (maker, sibling) = match creator {
            Creator::Parent(parent) => (self.stub(parent)?, false),
            Creator::Sibling(task) => (self.stub(task)?, true),
            Creator::Helper(pid) => {
                let helper = self.helpers.iter().find(|(p, ..)| *p == pid);
                (
                    helper.map(|(_, stub, _)| *stub).ok_or_else(|| {
                        RestoreError::Inconsistent(format!(
                            "helper {pid} is used before it is made"
                        ))
                    })?,
                    true,
                )
            }
        };
        let mut flags = if sibling { libc::CLONE_PARENT as u64 } else { 0 };
        let parent_ids = &self.loaded.nodes[parent].ids;
        if !node.zombie && !sibling && !self.loaded.nodes[parent].zombie {
            // Descriptors are installed later, into both at once.
            if node.ids.files_id == parent_ids.files_id {
                flags |= libc::CLONE_FILES as u64;
            }
            if node.ids.fs_id == parent_ids.fs_id {
                flags |= libc::CLONE_FS as u64;
            }
        }
        // With CLONE_PARENT the exit signal is the creator's.
        let signal = if sibling { 0 } else { libc::SIGCHLD };
        let pid = node.pid;
        let stub = while_taken(|| Ok(maker.clone_child(flags, signal, &[pid])?))?;
        self.made.push(stub.tid());
        self.stubs[task] = Some(stub);
        if let Creator::Sibling(creator) = creator {
            self.files.cloned_from(task, creator);
        }
        // What the new task has of its parent's memory: all of it, if it was built.
        self.filled[task] = matches!(creator, Creator::Parent(p) if self.filled[p]);
        self.exe_of[task] = match creator {
            Creator::Parent(creator) | Creator::Sibling(creator) => self.exe_of[creator],
            Creator::Helper(pid) => self
                .helpers
                .iter()
                .find(|(helper, ..)| *helper == pid)
                .and_then(|(_, _, parent)| self.exe_of[*parent]),
        };
        if !node.zombie {
            let set = self.cgroup_set(task);
            self.cgroups.place(set, stub.tid())?;
        }
        Ok(())
    }

    fn helper(&mut self, pid: i32, parent: usize, session: bool) -> Result<(), RestoreError> {
        let stub = self.stub(parent)?.clone_child(0, libc::SIGCHLD, &[pid])?;
        self.made.push(stub.tid());
        if session {
            stub.call("setsid of a helper", libc::SYS_setsid, &[])?;
        } else {
            stub.call("setpgid of a helper", libc::SYS_setpgid, &[0.into(), 0.into()])?;
        }
        self.helpers.push((pid, stub, parent));
        Ok(())
    }

    fn make_threads(&mut self, task: usize) -> Result<(), RestoreError> {
        let leader = self.stub(task)?;
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let mut made = Vec::new();
        for tid in &self.loaded.entries[task].threads[1..] {
            let tid = *tid as i32;
            made.push((tid, leader.clone_child(flags as u64, 0, &[tid])?));
        }
        self.threads.insert(task, made);
        Ok(())
    }

    /// Leader first.
    fn all_threads(&self, task: usize) -> Result<Vec<(i32, Stub)>, RestoreError> {
        let mut all = vec![(self.loaded.nodes[task].pid, self.stub(task)?)];
        all.extend(self.threads.get(&task).into_iter().flatten().copied());
        Ok(all)
    }

    fn state(&mut self, task: usize, events: &mut dyn Events) -> Result<(), RestoreError> {
        let pid = self.loaded.nodes[task].pid;
        if let Some(tc) = &self.core(pid)?.tc {
            task_state::process(&self.stub(task)?, tc)?;
        }
        for (tid, stub) in self.all_threads(task)? {
            task_state::thread(&stub, (pid, tid), self.core(tid)?)?;
            let affinities = &self.loaded.restarts.affinities;
            if let Some((_, cpus)) = affinities.iter().find(|(t, _)| *t == tid) {
                task_state::affinity(&stub, cpus, events)?;
            }
        }
        Ok(())
    }

    fn credentials(&mut self, task: usize, events: &mut dyn Events) -> Result<(), RestoreError> {
        let pid = self.loaded.nodes[task].pid;
        let last = last_capability();
        let leader = self.stub(task)?;
        if let Some(tc) = &self.core(pid)?.tc {
            task_state::outside_settings(leader.tid(), tc, events);
            task_state::limits(&leader, tc, events)?;
        }
        for (tid, stub) in self.all_threads(task)? {
            let Some(thread) = &self.core(tid)?.thread_core else { continue };
            let filters = self.filters(thread.seccomp_filter)?;
            task_state::credentials(&stub, thread, &filters, last)?;
        }
        Ok(())
    }

    /// The programs of a chain in the order of their installation: the one that the thread names
    /// first, then along `prev`.
    fn filters(&self, first: Option<u32>) -> Result<Vec<&[u8]>, RestoreError> {
        let all = &self.loaded.seccomp.seccomp_filters;
        let mut chain: Vec<&[u8]> = Vec::new();
        let mut at = first;
        while let Some(index) = at {
            let filter = all.get(index as usize).filter(|f| f.filter.len() % 8 == 0);
            let (Some(filter), true) = (filter, chain.len() <= all.len()) else {
                return Err(RestoreError::Inconsistent("seccomp.img: a broken chain".to_owned()));
            };
            chain.push(&filter.filter);
            at = filter.prev;
        }
        Ok(chain)
    }

    fn registers(&mut self, task: usize) -> Result<(), RestoreError> {
        let threads = self.all_threads(task)?;
        for (tid, stub) in &threads {
            let state =
                task_state::prepare_registers(stub, *tid, self.core(*tid)?, &self.loaded.restarts)?;
            self.finals.push((*stub, state));
        }
        let Some(vdso) = self.loaded.spaces[task].as_ref().and_then(AddressSpace::vdso) else {
            return Err(RestoreError::Inconsistent("a task has no vDSO".to_owned()));
        };
        let leader = self.stub(task)?;
        let instruction = task_state::find_syscall(&leader, vdso.start, vdso.end)?;
        leader.remove_gadget(instruction)?;
        Ok(())
    }

    fn release(&mut self, leave_stopped: bool) -> Result<(), RestoreError> {
        for (stub, state) in &self.finals {
            task_state::set_final_state(stub, state)?;
        }
        for (task, node) in self.loaded.nodes.iter().enumerate().filter(|(_, n)| !n.zombie) {
            let stopped = self
                .core(node.pid)?
                .tc
                .as_ref()
                .is_some_and(|tc| tc.task_state == crate::state::task::task_state::STOPPED);
            if stopped || leave_stopped {
                let pid = self.stub(task)?.tid();
                PidFd::open(pid)
                    .and_then(|pidfd| pidfd.send_signal(libc::SIGSTOP))
                    .map_err(TraceeError::request(pid, "stop it"))?;
            }
        }
        // From here on nothing can fail but the death of a task.
        for (stub, _) in &self.finals {
            // Death of the controller no longer takes the tasks along.
            let _ = ptrace::set_options(stub.tid(), 0);
        }
        for (stub, _) in self.finals.iter().rev() {
            if let Err(e) = ptrace::detach(stub.tid(), 0) {
                tracing::warn!("thread {} died at the release: {e}", stub.tid());
            }
        }
        Ok(())
    }

    /// Kills and reaps everything that was made.
    fn tear_down(&mut self) {
        use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
        // Tasks whose parents die with them come to us, not to an init that may not reap them.
        let was_subreaper = get_child_subreaper().unwrap_or(false);
        let _ = set_child_subreaper(true);
        // Threads are asked of the kernel: a step that failed may have made one more.
        let threads: Vec<Pid> = self
            .made
            .iter()
            .flat_map(|pid| arctern_sys::proc::threads(*pid).unwrap_or_default())
            .filter(|tid| !self.made.contains(tid))
            .collect();
        for pid in &self.made {
            if let Ok(pidfd) = PidFd::open(*pid) {
                let _ = pidfd.send_signal(libc::SIGKILL);
            }
        }
        let ended = |tid: Pid| {
            // Waits for the end; what is gone already says ECHILD.
            while let Ok(status) = ptrace::wait(tid) {
                if matches!(status, ptrace::WaitStatus::Exited(_) | ptrace::WaitStatus::Killed(_)) {
                    break;
                }
            }
        };
        // A leader's end is reported when its other threads are gone.
        threads.into_iter().for_each(ended);
        // Once as their tracer, children first; the init of a pid namespace is last.
        self.made.iter().rev().copied().for_each(ended);
        // And once as their new parent.
        for pid in &self.made {
            let _ = ptrace::try_wait(*pid);
        }
        let _ = set_child_subreaper(was_subreaper);
    }
}

/// Tries again for a moment while a pid is taken: a task that was killed just now keeps its pid until
/// its parent has reaped it, and nobody tells us when.
fn while_taken<T>(mut make: impl FnMut() -> Result<T, RestoreError>) -> Result<T, RestoreError> {
    const ATTEMPTS: u32 = 8;
    for attempt in 1..ATTEMPTS {
        match make() {
            Err(e) if is_taken(&e) => {
                std::thread::sleep(std::time::Duration::from_millis(1 << attempt));
            }
            other => return other,
        }
    }
    make()
}

fn is_taken(error: &RestoreError) -> bool {
    let source = match error {
        RestoreError::Kernel { source, .. }
        | RestoreError::Tracee(TraceeError::Call { source, .. }) => source,
        _ => return false,
    };
    source.raw_os_error() == Some(libc::EEXIST)
}

/// The highest capability that this kernel knows.
fn last_capability() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40)
}
