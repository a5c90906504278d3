//! The steps of a plan, carried out by remote calls.

use std::collections::BTreeMap;

use arctern_image::images::ImageDir;
use arctern_sys::guard::Guard;
use arctern_sys::{Pid, ptrace};
use arctern_tracee::TraceeError;
use arctern_tracee::stub::Stub;

use super::Hooks;
use super::loaded::Loaded;
use super::pid::while_taken;
use crate::confinement::Confinement;
use crate::error::RestoreError;
use crate::options::{Events, RestoreOptions};
use crate::plan::{Creator, Step};
use crate::precopy::Preloaded;
use crate::restore_context::RestoreContext;
use crate::state::cgroup::{CgroupRestore, Entrance};
use crate::state::files::FilesRestore;
use crate::state::memory::marks;
use crate::state::memory::rebuild::{Memory, set_mm};
use crate::state::namespaces::NamespaceRestore;
use crate::state::task::{restore as task_state, settings};

/// A restore in progress.
pub(super) struct Build<'a, 'n> {
    pub(super) images: &'a ImageDir,
    pub(super) loaded: &'a Loaded,
    pub(super) namespaces: &'a mut NamespaceRestore<'n>,
    pub(super) files: FilesRestore,
    pub(super) cgroups: CgroupRestore,
    pub(super) memory: Memory,
    pub(super) ctx: RestoreContext,
    pub(super) gadget: u64,
    /// Leaders, by task.
    pub(super) stubs: Vec<Option<Stub>>,
    /// Tasks whose memory is built; the value tells what a clone of them starts with.
    pub(super) filled: Vec<bool>,
    /// Which file of the images each task's address space says that it runs.
    pub(super) exe_of: Vec<Option<u32>>,
    /// Other threads, by task and inner tid.
    pub(super) threads: BTreeMap<usize, Vec<(i32, Stub)>>,
    pub(super) helpers: Vec<(i32, Stub, usize)>,
    pub(super) finals: Vec<(Stub, task_state::FinalState)>,
    /// Finishes what [`Step::Secure`] begins, if we are killed.
    pub(super) guard: Option<Guard>,
    pub(super) root_pid: Option<Pid>,
    /// Every process that was made, zombies and helpers too.
    pub(super) made: Vec<Pid>,
    pub(super) channel: std::os::unix::net::UnixDatagram,
}

impl Build<'_, '_> {
    pub(super) fn stub(&self, task: usize) -> Result<Stub, RestoreError> {
        self.stubs[task].ok_or_else(|| {
            RestoreError::Inconsistent(format!("task {task} is used before it is made"))
        })
    }

    /// Carries out one step.
    pub(super) fn execute(
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
            Step::Memory(task) => self.memory(task, options.preloaded, events),
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
                let Some(tc) = self.loaded.core(node.pid)?.tc.clone() else { return Ok(()) };
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
            Step::Connections => {
                let stubs = self.leaders();
                self.files.build_connections(&stubs, hooks.network.as_deref_mut())
            }
            Step::FinishFiles => {
                let stubs = self.leaders();
                self.files.finish(&mut self.ctx, &stubs)
            }
            Step::Credentials(task) => self.credentials(task, options.confinement.as_ref(), events),
            Step::Hook => match (&mut hooks.before_resume, self.root_pid) {
                (Some(hook), Some(pid)) => hook(pid.0).map_err(RestoreError::Hook),
                _ => Ok(()),
            },
            Step::Timers(task) => {
                let tc = self.loaded.core(self.loaded.nodes[task].pid)?.tc.as_ref();
                let dumpable = self.loaded.spaces[task].as_ref().and_then(|s| s.mm.dumpable);
                let pid = self.loaded.nodes[task].pid;
                let mut no_new_code = self.loaded.restarts.no_new_code.iter();
                let no_new_code = no_new_code.find(|(p, _)| *p == pid).map(|(_, bits)| *bits);
                if let Some(tc) = tc {
                    task_state::timers(&self.stub(task)?, tc, dumpable, no_new_code)?;
                }
                marks::seal(&self.stub(task)?, self.loaded.restarts.marks_of(pid), events)
            }
            Step::Registers(task) => self.registers(task),
            Step::Secure => self.secure(options.leave_stopped, hooks),
            Step::Unlock => {
                self.files.open_connections(hooks.network.as_deref_mut())?;
                self.guard = None;
                Ok(())
            }
            Step::Release => {
                self.release();
                Ok(())
            }
        }
    }

    /// The leader of every task that is no zombie.
    fn leaders(&self) -> Vec<(usize, Stub)> {
        let stubs = self.stubs.iter().enumerate();
        stubs.filter_map(|(task, stub)| stub.map(|stub| (task, stub))).collect()
    }

    fn root(&mut self, options: &RestoreOptions<'_>) -> Result<(), RestoreError> {
        let pid = self.loaded.nodes[0].pid;
        let entrance = Entrance::open(&options.cgroups)?;
        let spawn = || self.namespaces.spawn_root(options.sibling, pid, &entrance);
        let host = while_taken(pid, spawn)?;
        self.root_pid = Some(host);
        self.made.push(host);
        let stub = Stub::adopt(host, self.gadget)?;
        self.stubs[0] = Some(stub);
        self.cgroups.enter(&stub, self.loaded.cgroup_set(0), &entrance)?;
        let own = options.confinement.as_ref().is_some_and(|own| own.filter.is_some());
        if own || self.loaded.has_seccomp() {
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

    fn memory(
        &mut self,
        task: usize,
        preloaded: Option<&Preloaded>,
        events: &mut dyn Events,
    ) -> Result<(), RestoreError> {
        let stub = self.stub(task)?;
        let loaded = self.loaded;
        let Some(space) = &loaded.spaces[task] else { return Ok(()) };
        // Only a task that was cloned after its parent was filled has something to keep.
        let kept = loaded.nodes[task].parent.filter(|_| self.filled[task]);
        let parent = kept.and_then(|parent| loaded.spaces[parent].as_ref());
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
            preloaded.filter(|_| task == 0),
            self.images,
            &mut open,
        )?;
        let marks = loaded.restarts.marks_of(loaded.nodes[task].pid);
        let inherited = kept.map(|parent| loaded.restarts.marks_of(loaded.nodes[parent].pid));
        marks::place(&stub, marks, inherited.into_iter().flatten(), events)?;
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
        let stub = while_taken(pid, || Ok(maker.clone_child(flags, signal, &[pid])?))?;
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
            let set = self.loaded.cgroup_set(task);
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
    pub(super) fn all_threads(&self, task: usize) -> Result<Vec<(i32, Stub)>, RestoreError> {
        let mut all = vec![(self.loaded.nodes[task].pid, self.stub(task)?)];
        all.extend(self.threads.get(&task).into_iter().flatten().copied());
        Ok(all)
    }

    fn state(&mut self, task: usize, events: &mut dyn Events) -> Result<(), RestoreError> {
        let pid = self.loaded.nodes[task].pid;
        if let Some(tc) = &self.loaded.core(pid)?.tc {
            task_state::process(&self.stub(task)?, tc)?;
        }
        for (tid, stub) in self.all_threads(task)? {
            task_state::thread(&stub, (pid, tid), self.loaded.core(tid)?)?;
            let affinities = &self.loaded.restarts.affinities;
            if let Some((_, cpus)) = affinities.iter().find(|(t, _)| *t == tid) {
                task_state::affinity(&stub, cpus, events)?;
            }
            if let Some(unusual) = self.loaded.restarts.settings_of(tid) {
                settings::restore(&stub, unusual, events)?;
            }
        }
        Ok(())
    }

    fn credentials(
        &mut self,
        task: usize,
        confinement: Option<&Confinement>,
        events: &mut dyn Events,
    ) -> Result<(), RestoreError> {
        let confinement = confinement.filter(|confinement| !confinement.trusted);
        let pid = self.loaded.nodes[task].pid;
        let last = last_capability();
        let leader = self.stub(task)?;
        if let Some(tc) = &self.loaded.core(pid)?.tc {
            task_state::outside_settings(leader.tid(), tc, confinement.is_some(), events);
            let highest = confinement.map_or(&[][..], |confinement| &confinement.limits);
            task_state::limits(&leader, tc, highest, events)?;
        }
        for (tid, stub) in self.all_threads(task)? {
            let Some(thread) = &self.loaded.core(tid)?.thread_core else { continue };
            let mut filters = self.loaded.filters(thread.seccomp_filter)?;
            // A filter out of a file may let everything pass: the container's own comes first.
            if let Some(own) = confinement.and_then(|c| c.filter.as_deref())
                && filters.first() != Some(&own)
            {
                filters.insert(0, own);
            }
            task_state::credentials(&stub, thread, &filters, last)?;
        }
        Ok(())
    }
}

/// The highest capability that this kernel knows.
fn last_capability() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40)
}
