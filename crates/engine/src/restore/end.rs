//! The end of a restore: the tasks go, or everything that was made is removed.

use std::collections::BTreeSet;

use arctern_sys::guard::Guard;
use arctern_sys::pidfd::PidFd;
use arctern_sys::{Pid, ptrace};
use arctern_tracee::TraceeError;
use arctern_tracee::stub::Stub;

use super::build::Build;
use super::{Hooks, whole_tree};
use crate::error::RestoreError;
use crate::state::memory::space::AddressSpace;
use crate::state::task::restore as task_state;

impl Build<'_, '_> {
    pub(super) fn registers(&mut self, task: usize) -> Result<(), RestoreError> {
        self.stop_children(task)?;
        let threads = self.all_threads(task)?;
        for (tid, stub) in &threads {
            let state = task_state::prepare_registers(
                stub,
                *tid,
                self.loaded.core(*tid)?,
                &self.loaded.restarts,
            )?;
            let state = state.with_settings(self.loaded.restarts.settings_of(*tid));
            self.finals.push((*stub, state));
        }
        let Some(vdso) = self.loaded.spaces[task].as_ref().and_then(AddressSpace::vdso) else {
            return Err(RestoreError::Inconsistent("a task has no vDSO".to_owned()));
        };
        let leader = self.stub(task)?;
        let instruction = task_state::find_syscall(&leader, vdso.start, vdso.end)?;
        let pid = self.loaded.nodes[task].pid;
        match task_state::ignored_trap(self.loaded.core(pid)?) {
            Some(action) => leader.remove_gadget_and_set_trap(instruction, &action)?,
            None => leader.remove_gadget(instruction)?,
        }
        Ok(())
    }

    /// Stops the children of a task that were stopped, as long as it can take from itself what it has
    /// been told: their stops, and the signal that came with them.
    fn stop_children(&self, task: usize) -> Result<(), RestoreError> {
        let loaded = self.loaded;
        for &child in loaded.stopped.get(&task).into_iter().flatten() {
            let threads: Vec<Stub> =
                self.all_threads(child)?.into_iter().map(|(_, stub)| stub).collect();
            let pid = self.stub(child)?.tid();
            let pidfd = PidFd::open(pid).map_err(TraceeError::request(pid, "open it"))?;
            Stub::stop_process(&pidfd, &threads)?;
            let parent = self.stub(task)?;
            let child = loaded.nodes[child].pid;
            if loaded.restarts.told.contains(&child) {
                let options = libc::WSTOPPED | libc::WNOHANG;
                let args =
                    [(libc::P_PID as i32).into(), child.into(), 0.into(), options.into(), 0.into()];
                parent.call("waitid of a stopped child", libc::SYS_waitid, &args)?;
            }
            if !task_state::is_queued(loaded.core(loaded.nodes[task].pid)?, libc::SIGCHLD) {
                task_state::forget_child_signal(&parent)?;
            }
        }
        Ok(())
    }

    /// Gives every task its final state, and lets it live on if we die. From here on all that is in
    /// a connection is in the kernel, and a guard finishes what we have begun.
    pub(super) fn secure(
        &mut self,
        leave_stopped: bool,
        hooks: &mut Hooks<'_>,
    ) -> Result<(), RestoreError> {
        Stub::settle(self.finals.iter().map(|(stub, _)| stub))?;
        for (stub, state) in &self.finals {
            task_state::set_final_state(stub, state)?;
        }
        for (task, node) in self.loaded.nodes.iter().enumerate().filter(|(_, n)| !n.zombie) {
            // Of the others their parents have been told ([`Build::stop_children`]).
            let alone = node.parent.is_none() && self.loaded.is_stopped(task)?;
            if alone || leave_stopped {
                let pid = self.stub(task)?.tid();
                PidFd::open(pid)
                    .and_then(|pidfd| pidfd.send_signal(libc::SIGSTOP))
                    .map_err(TraceeError::request(pid, "stop it"))?;
            }
        }
        self.files.ready_connections()?;
        if self.files.needs_guard(hooks.network.is_some()) {
            self.guard = Some(self.guard(hooks)?);
        }
        for (stub, _) in &self.finals {
            // It fails only for a task that is dead.
            let _ = ptrace::set_options(stub.tid(), 0);
        }
        match &self.guard {
            Some(guard) => guard.commit().map_err(guard_failed),
            None => Ok(()),
        }
    }

    /// Until all tasks would go on without us it kills them, should we die; then it lets their
    /// connections go.
    fn guard(&mut self, hooks: &mut Hooks<'_>) -> Result<Guard, RestoreError> {
        // Helpers among them are gone.
        let tasks: Vec<PidFd> = self.made.iter().filter_map(|pid| PidFd::open(*pid).ok()).collect();
        let files = &self.files;
        let network = hooks.network.as_deref_mut();
        Guard::start(move |committed| match committed {
            true => files.rescue_connections(network),
            false => {
                files.silence_connections();
                for task in &tasks {
                    let _ = task.send_signal(libc::SIGKILL);
                }
            }
        })
        .map_err(guard_failed)
    }

    /// Lets the tasks go; nothing can fail but the death of a task.
    pub(super) fn release(&mut self) {
        for (stub, _) in self.finals.iter().rev() {
            if let Err(e) = ptrace::detach(stub.tid(), 0) {
                tracing::warn!("thread {} died at the release: {e}", stub.tid());
            }
        }
    }

    /// Kills and reaps everything that was made.
    pub(super) fn tear_down(&mut self) {
        self.made.extend(self.ctx.helper);
        // What it would do is done here.
        self.guard = None;
        self.files.silence_connections();
        use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
        // Tasks whose parents die with them come to us, not to an init that may not reap them.
        let was_subreaper = get_child_subreaper().unwrap_or(false);
        let _ = set_child_subreaper(true);
        // Threads are asked of the kernel: a step that failed may have made one more.
        let threads = |pid: &Pid| arctern_sys::proc::threads(*pid).unwrap_or_default();
        let (root, others) = self.made.split_at(self.made.len().min(1));
        let of_others: Vec<Pid> =
            others.iter().flat_map(threads).filter(|tid| !self.made.contains(tid)).collect();
        let mut of_root: BTreeSet<Pid> =
            root.iter().flat_map(threads).chain(root.to_vec()).collect();
        for pid in &self.made {
            if let Ok(pidfd) = PidFd::open(*pid) {
                let _ = pidfd.send_signal(libc::SIGKILL);
            }
        }
        // Waits for the end; what is gone already says ECHILD.
        let ended = |tid: Pid| while !ptrace::wait(tid).map_or(true, is_end) {};
        // A leader's end is reported when its other threads are gone. Once as their tracer, children
        // first.
        of_others.into_iter().for_each(ended);
        others.iter().rev().copied().for_each(ended);
        // Whichever thread of a pid namespace's init ends last waits until all others are reaped: none
        // can be waited for before another.
        of_root.retain(|tid| ptrace::try_wait(*tid).is_ok_and(|s| !s.is_some_and(is_end)));
        while !of_root.is_empty() {
            match ptrace::wait_any() {
                Ok((tid, status)) if is_end(status) => drop(of_root.remove(&tid)),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // And once as their new parent.
        for pid in &self.made {
            let _ = ptrace::try_wait(*pid);
        }
        let _ = set_child_subreaper(was_subreaper);
    }
}

fn guard_failed(source: std::io::Error) -> RestoreError {
    RestoreError::Kernel { subject: whole_tree(), what: "start its guard".to_owned(), source }
}

fn is_end(status: ptrace::WaitStatus) -> bool {
    matches!(status, ptrace::WaitStatus::Exited(_) | ptrace::WaitStatus::Killed(_))
}
