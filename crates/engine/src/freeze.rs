//! Stopping a whole process tree, and letting it go again.
//!
//! Every thread is seized and interrupted, round after round, until no new task appears: a task
//! that stands still makes no children. Ptrace alone holds the tree: if this process dies, the
//! tasks run on. What was set on their sockets for the moment stays (docs/limits.md).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use arctern_sys::freezer::Freezer;
use arctern_sys::kcmp::{Kind, kcmp};
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc::{self, smaps, stat, status};
use arctern_sys::ptrace::WaitStatus;
use arctern_sys::{Pid, ptrace};
use arctern_tracee::live::{LiveSession, ThreadSignals, Vdso};
use arctern_tracee::thread::{StoppedThread, accept_stop};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{CaptureError, Refusal, Remedy, Subject};
use crate::park::Parked;
use crate::patience::{VFORK_PATIENCE, in_vfork, waits_for_child};
use crate::state::sleep::Sleepers;
use crate::tree::{FrozenTask, FrozenTree, SharedIds};

/// A tree that stands still. Dropping it lets every task go on.
#[derive(Debug)]
pub struct Frozen {
    /// The tasks.
    pub tree: FrozenTree,
    /// When the first task was asked to stop.
    pub since: Instant,
    /// Threads in calls with a time limit: nanoseconds that they had waited.
    pub waited: HashMap<Pid, u64>,
    released: bool,
}

impl Frozen {
    /// Removes what was put into the tasks and lets them go on, also after errors: every task is
    /// tried, the first error is returned.
    pub fn resume(mut self) -> Result<(), CaptureError> {
        self.release(None)
    }

    /// As [`Frozen::resume`], but leaves every process in group stop.
    pub fn leave_stopped(mut self) -> Result<(), CaptureError> {
        self.release(Some(libc::SIGSTOP))
    }

    /// Kills every task and waits until the kernel has taken them down.
    pub fn kill(mut self) -> Result<(), CaptureError> {
        self.released = true;
        for task in &self.tree.tasks {
            match task.pidfd.send_signal(libc::SIGKILL) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(task.failed("", "kill it")(e));
                }
                _ => {}
            }
        }
        // As tracer we are told of every death, and without that the task would stay. Each is waited
        // for by its id, since the kernel looks through all tracees for a wait for anyone; leaders last
        // in their processes: they end after their other threads.
        let (root, others) = self.tree.tasks.split_at(1);
        for thread in others.iter().rev().flat_map(|task| task.threads.iter().rev()) {
            while !ptrace::wait(thread.tid).map_or(true, is_end) {}
        }
        // The init of a pid namespace ends only when everybody in it was reaped, its other threads
        // too, and whichever of them comes to its end last waits for that: none can be waited for
        // before another.
        let threads = root.iter().flat_map(|task| task.threads.iter().rev()).map(|t| t.tid);
        let mut left: BTreeSet<Pid> = threads
            .filter(|tid| !ptrace::try_wait(*tid).is_ok_and(|s| s.is_some_and(is_end)))
            .collect();
        while !left.is_empty() {
            match ptrace::wait_any() {
                Ok((tid, status)) if is_end(status) => drop(left.remove(&tid)),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn release(&mut self, signal: Option<i32>) -> Result<(), CaptureError> {
        self.released = true;
        let mut first = First::default();
        self.settle(signal, &mut first);
        for thread in self.tree.tasks.iter_mut().flat_map(|task| task.threads.drain(..)) {
            first.note(thread.let_go().map_err(Into::into));
        }
        first.0
    }

    /// Removes what was put into the tasks; every thread stands as it was then.
    fn settle(&mut self, signal: Option<i32>, first: &mut First) {
        for task in &mut self.tree.tasks {
            if let Some(session) = task.session.take() {
                first.note(session.close(&mut task.threads[0]).map_err(Into::into));
            }
        }
        for task in &mut self.tree.tasks {
            if let Some(signal) = signal
                && !task.is_zombie()
            {
                first.note(task.pidfd.send_signal(signal).map_err(task.failed("", "stop it")));
            }
            for thread in &mut task.threads {
                first.note(thread.begin_detach().map_err(Into::into));
            }
        }
        for thread in self.tree.tasks.iter_mut().flat_map(|task| &mut task.threads) {
            first.note(thread.settle().map_err(Into::into));
        }
    }

    /// Leaves the tasks to the freezer of their control group, which holds them whoever dies.
    ///
    /// # Errors
    /// The group did not freeze: the tasks go on.
    pub fn park(mut self, freezer: Freezer, timeout: Duration) -> Result<Parked, CaptureError> {
        let mut first = First::default();
        self.settle(None, &mut first);
        first.0?;
        // They stand in ptrace stop, and what does not move is frozen at once.
        freezer.freeze(timeout).map_err(|source| CaptureError::Kernel {
            subject: Subject { pid: 0, comm: "the tree".to_owned(), part: String::new() },
            what: format!("freeze the group {}", freezer.dir().display()),
            source,
        })?;
        self.released = true;
        let mut first = First::default();
        for thread in self.tree.tasks.iter_mut().flat_map(|task| task.threads.drain(..)) {
            first.note(thread.let_go().map_err(Into::into));
        }
        if let Err(error) = first.0 {
            freezer.thaw().map_err(|source| CaptureError::Kernel {
                subject: Subject { pid: 0, comm: "the tree".to_owned(), part: String::new() },
                what: format!("thaw the group {}", freezer.dir().display()),
                source,
            })?;
            return Err(error);
        }
        Ok(Parked::new(std::mem::take(&mut self.tree.tasks), freezer))
    }
}

/// The first of several errors; the others are logged.
struct First(Result<(), CaptureError>);

impl Default for First {
    fn default() -> Self {
        First(Ok(()))
    }
}

impl First {
    fn note(&mut self, result: Result<(), CaptureError>) {
        if let Err(error) = result {
            tracing::error!("while resuming: {error}");
            if self.0.is_ok() {
                self.0 = Err(error);
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.released {
            // Errors are logged; there is nobody left to return them to.
            let _ = self.release(None);
        }
    }
}

fn is_end(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_) | WaitStatus::Killed(_))
}

/// Threads that were seized and not yet made into a tree; dropped, they are let go.
#[derive(Default)]
struct Seized {
    threads: BTreeMap<Pid, Vec<Pid>>,
    zombies: BTreeSet<Pid>,
    /// Processes in group stop when we came.
    halted: BTreeSet<Pid>,
    parents: BTreeMap<Pid, Pid>,
    order: Vec<Pid>,
    stopped: BTreeSet<Pid>,
    /// Threads that somebody else traces.
    traced: BTreeSet<Pid>,
}

impl Seized {
    /// Takes the children of `parent` into the order, those that are not in it yet. That the parent
    /// was reaped meanwhile is no error.
    fn add(&mut self, parent: Pid, children: io::Result<Vec<Pid>>) -> io::Result<()> {
        let children = match children {
            Err(e) if is_gone(&e) => return Ok(()),
            children => children?,
        };
        for child in children {
            if !self.parents.contains_key(&child) {
                self.order.push(child);
                self.parents.insert(child, parent);
            }
        }
        Ok(())
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        for tid in self.threads.values().flatten() {
            // A thread that has not stopped (it waits for a device) cannot be detached now; it is when
            // this process ends, and it goes on either way.
            let signal = match (self.stopped.contains(tid), ptrace::try_wait(*tid)) {
                (false, Ok(Some(WaitStatus::Signal(signal)))) => signal,
                (true, _) | (_, Ok(Some(_))) => 0,
                _ => continue,
            };
            let _ = ptrace::detach(*tid, signal);
        }
    }
}

/// How far a freeze goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The threads are stopped.
    Threads,
    /// Their mappings are read, and a remote session is open in every address space.
    Sessions,
}

/// Freezes the tree under `root`. `before` are its processes as they were seen just now, while it ran
/// ([`proc::tree`]): their sleeps are looked at.
pub fn freeze(
    root: Pid,
    before: &[Pid],
    timeout: Duration,
    depth: Depth,
    refusals: &mut Vec<Refusal>,
) -> Result<Frozen, CaptureError> {
    let sleepers = Sleepers::look(before);
    let since = Instant::now();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let old_mask = mask
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
        .map_err(|e| failed(root, "watch for stops")(e.into()))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| failed(root, "watch for stops")(e.into()))?;
    let result = (|| {
        let mut seized = Seized::default();
        if !proc::path(root, "stat").exists() {
            return Err(CaptureError::NoSuchProcess(root));
        }
        seized.order.push(root);
        let mut settled = 0;
        loop {
            for at in settled..seized.order.len() {
                let pid = seized.order[at];
                seize_threads(&mut seized, pid, refusals).map_err(failed(pid, "seize it"))?;
            }
            wait_all(&mut seized, &signals, since + timeout, timeout)?;
            let known = seized.order.len();
            for at in settled..known {
                let pid = seized.order[at];
                let children = proc::children(pid);
                seized.add(pid, children).map_err(failed(pid, "list its children"))?;
            }
            settled = known;
            if seized.order.len() > known {
                continue;
            }
            // Everybody known stands still. What is new since was made before its maker stopped: a
            // thread, or a child whose parent ended, which its new parent's first thread was given
            // (prctl(2), PR_SET_CHILD_SUBREAPER).
            let mut grown = false;
            for at in 0..known {
                let pid = seized.order[at];
                grown |=
                    seize_threads(&mut seized, pid, refusals).map_err(failed(pid, "seize it"))?;
                let children = if seized.zombies.contains(&pid) {
                    proc::children(pid)
                } else {
                    proc::children_of_thread(pid, pid)
                };
                seized.add(pid, children).map_err(failed(pid, "list its children"))?;
            }
            if grown {
                settled = 0;
            } else if seized.order.len() == known {
                break;
            }
        }
        let stopped = Instant::now();
        let mut frozen = build(&mut seized, since, depth, refusals)?;
        frozen.waited = sleepers.waited(stopped);
        seized.threads.clear();
        Ok(frozen)
    })();
    let _ = old_mask.thread_set_mask();
    result
}

/// Wraps an error of the kernel's about a process.
pub(crate) fn failed(pid: Pid, what: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |source| CaptureError::Kernel {
        subject: Subject { pid: pid.0, comm: comm(pid), part: String::new() },
        what: what.to_owned(),
        source,
    }
}

pub(crate) fn comm(pid: Pid) -> String {
    proc::read_single(pid, "comm").map(|c| c.trim_end().to_owned()).unwrap_or_default()
}

/// Seizes and interrupts the threads of `pid` that are not yet ours. True if there was a new one.
fn seize_threads(seized: &mut Seized, pid: Pid, refusals: &mut Vec<Refusal>) -> io::Result<bool> {
    let gone = is_gone;
    let tids = match proc::threads(pid) {
        Ok(tids) => tids,
        Err(e) if gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    let mut grown = false;
    for tid in tids {
        let known = seized.threads.entry(pid).or_default();
        if known.contains(&tid) || seized.zombies.contains(&tid) || seized.traced.contains(&tid) {
            continue;
        }
        if tid == pid && is_halted(pid) {
            seized.halted.insert(pid);
        }
        match ptrace::seize(tid, 0) {
            Ok(()) => {}
            Err(e) if gone(&e) => continue,
            Err(e) => {
                // Zombies cannot be seized, and neither can what somebody else traces.
                let state = match status::read(pid, tid) {
                    Ok(state) => state,
                    Err(e) if gone(&e) => continue,
                    Err(e) => return Err(e),
                };
                if matches!(state.state, 'Z' | 'X') {
                    seized.zombies.insert(tid);
                    continue;
                }
                if state.tracer == 0 {
                    return Err(e);
                }
                // Ours since an attempt before, in which it could not be stopped and so not be let go.
                if state.tracer != nix::unistd::gettid().as_raw() {
                    seized.traced.insert(tid);
                    refusals.push(traced(pid, tid, state.tracer));
                    continue;
                }
            }
        }
        known.push(tid);
        grown = true;
        ptrace::interrupt(tid)?;
    }
    Ok(grown)
}

/// The refusal of a thread that somebody else traces.
pub(crate) fn traced(pid: Pid, tid: Pid, tracer: i32) -> Refusal {
    Refusal {
        subject: Subject { pid: pid.0, comm: comm(pid), part: format!("thread {tid}") },
        cause: format!("is traced by process {tracer}"),
        remedy: "detach the debugger".into(),
    }
}

/// Whether an error about a process means that it is gone.
pub(crate) fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process is in group stop.
fn is_halted(pid: Pid) -> bool {
    stat::read(pid).is_ok_and(|stat| stat.state == 'T')
}

/// Waits until every seized thread is in its stop.
fn wait_all(
    seized: &mut Seized,
    signals: &SignalFd,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), CaptureError> {
    let mut waiting: Vec<(Pid, Pid)> = seized
        .threads
        .iter()
        .flat_map(|(pid, tids)| tids.iter().map(|tid| (*pid, *tid)))
        .filter(|(_, tid)| !seized.stopped.contains(tid))
        .collect();
    let since = Instant::now();
    loop {
        let mut left = Vec::new();
        for (pid, tid) in waiting {
            match ptrace::try_wait(tid) {
                Ok(None) => left.push((pid, tid)),
                Ok(Some(status)) => {
                    if let WaitStatus::Event { event: ptrace::EVENT_STOP, signal } = status
                        && signal != libc::SIGTRAP
                    {
                        // Not our stop: somebody stopped the process meanwhile.
                        seized.halted.insert(pid);
                    }
                    match accept_stop(tid, status)? {
                        Some(true) => {
                            seized.stopped.insert(tid);
                        }
                        Some(false) => forget(seized, pid, tid),
                        None => left.push((pid, tid)),
                    }
                }
                Err(_) => forget(seized, pid, tid),
            }
        }
        waiting = left;
        let Some((pid, tid)) = waiting.first() else {
            return Ok(());
        };
        let now = Instant::now();
        if now >= deadline {
            let part = if pid == tid { String::new() } else { format!("thread {tid}") };
            return Err(CaptureError::NotStopping {
                subject: Subject { pid: pid.0, comm: comm(*pid), part },
                seconds: timeout.as_secs(),
            });
        }
        // A short vfork is waited for here, since its parent stops when it is over. A longer one is
        // not: the tasks that stand still already could be what the child waits for.
        if since.elapsed() >= VFORK_PATIENCE
            && let Some((pid, _)) = waiting.iter().find(|(pid, _)| waits_for_child(*pid))
        {
            return Err(CaptureError::Refused(vec![in_vfork(*pid, comm(*pid))]));
        }
        // Each stop sends SIGCHLD. Another thread of this program may take it, so the wait is
        // bounded and the state is asked for again.
        let wait = (deadline - now).min(Duration::from_millis(20));
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
        while let Ok(Some(_)) = signals.read_signal() {}
    }
}

fn forget(seized: &mut Seized, pid: Pid, tid: Pid) {
    if let Some(tids) = seized.threads.get_mut(&pid) {
        tids.retain(|t| *t != tid);
    }
    if pid == tid {
        seized.zombies.insert(pid);
    }
}

/// Makes the tree out of stopped threads. Whatever fails, the threads are let go.
fn build(
    seized: &mut Seized,
    since: Instant,
    depth: Depth,
    refusals: &mut Vec<Refusal>,
) -> Result<Frozen, CaptureError> {
    let mut frozen =
        Frozen { tree: FrozenTree::default(), since, waited: HashMap::new(), released: false };
    let mut index_of: BTreeMap<Pid, usize> = BTreeMap::new();
    for pid in seized.order.clone() {
        let failed = |what| failed(pid, what);
        let parent = match seized.parents.get(&pid) {
            None => None,
            Some(parent) => match index_of.get(parent) {
                Some(index) => Some(*index),
                None => return Err(failed("find its parent")(io::ErrorKind::NotFound.into())),
            },
        };
        let tids = seized.threads.get(&pid).cloned().unwrap_or_default();
        let leader_is_dead = seized.zombies.contains(&pid);
        let mut stat = match stat::read(pid) {
            Ok(stat) => stat,
            // It was reaped before its parent stopped.
            Err(_) if tids.is_empty() => continue,
            Err(e) => return Err(failed("read its state")(e)),
        };
        if seized.halted.contains(&pid) {
            // Now it shows our own stop.
            stat.state = 'T';
        }
        let status = status::read(pid, pid).map_err(failed("read its status"))?;
        let mut task = FrozenTask {
            pid,
            inner_pid: status.inner_pid(),
            parent,
            pidfd: PidFd::open(pid).map_err(failed("open it"))?,
            stat,
            status,
            observed: false,
            threads: Vec::with_capacity(tids.len()),
            thread_status: Vec::with_capacity(tids.len()),
            mappings: Vec::new(),
            session: None,
            ids: SharedIds::default(),
        };
        if leader_is_dead && !tids.is_empty() {
            refusals.push(without_leader(&task));
        }
        let mut tids = tids;
        tids.sort_by_key(|tid| (*tid != pid, *tid));
        for tid in tids {
            let status = if tid == pid {
                task.status.clone()
            } else {
                status::read(pid, tid).map_err(failed("read a thread's status"))?
            };
            if status.seccomp != 0 {
                // Our calls must get through its filters.
                ptrace::set_options(tid, ptrace::O_SUSPEND_SECCOMP)
                    .map_err(failed("suspend its seccomp filters"))?;
            }
            let thread = StoppedThread::take(tid, status.inner_pid())?;
            task.thread_status.push(status);
            // From here on the frozen tree lets it go, not the list of seized threads.
            if let Some(list) = seized.threads.get_mut(&pid) {
                list.retain(|t| *t != tid);
            }
            task.threads.push(thread);
        }
        index_of.insert(pid, frozen.tree.tasks.len());
        frozen.tree.tasks.push(task);
    }
    share(&mut frozen.tree)?;
    if depth == Depth::Sessions {
        for task in &mut frozen.tree.tasks {
            open_session(task, refusals)?;
        }
    }
    Ok(frozen)
}

fn open_session(task: &mut FrozenTask, refusals: &mut Vec<Refusal>) -> Result<(), CaptureError> {
    if task.is_zombie() {
        return Ok(());
    }
    task.mappings = smaps::read(task.pid).map_err(task.failed("", "read its mappings"))?;
    if let Some(thread) = task.threads.iter().find(|thread| catches_calls(thread)) {
        refusals.push(task.refuse(
            format!("thread {}", thread.tid),
            "catches its system calls itself at this moment (syscall user dispatch)",
            Remedy::try_again("when it lets them through"),
        ));
        return Ok(());
    }
    // cs 0x33 is the 64-bit user segment; a 32-bit program runs in 0x23.
    if task.threads.iter().any(|t| t.registers.cs != 0x33) {
        refusals.push(narrow(task));
        return Ok(());
    }
    let Some(vdso) = task.mappings.iter().find(|m| m.name == "[vdso]") else {
        refusals.push(without_vdso(task));
        return Ok(());
    };
    let vdso = Vdso { start: vdso.start, end: vdso.end };
    let signals = ThreadSignals { inner_tgid: task.inner_pid, caught: task.status.caught };
    task.session = Some(LiveSession::open(task.pid, &mut task.threads[0], vdso, signals)?);
    Ok(())
}

/// The refusal of a process whose leader has ended.
pub(crate) fn without_leader(task: &FrozenTask) -> Refusal {
    let remedy = "wait until the other threads exit";
    task.refuse("", "its main thread has exited while others run", remedy)
}

/// The refusal of a 32-bit program.
pub(crate) fn narrow(task: &FrozenTask) -> Refusal {
    task.refuse("", "runs 32-bit code", "only 64-bit programs can be captured")
}

/// The refusal of a program without the kernel's code.
pub(crate) fn without_vdso(task: &FrozenTask) -> Refusal {
    task.refuse("", "has no vDSO mapped", "start it with vdso enabled")
}

/// Whether our calls would go to the thread's own handler.
fn catches_calls(thread: &StoppedThread) -> bool {
    let Ok(dispatch) = ptrace::user_dispatch(thread.tid) else { return false };
    let mut selector = [1];
    if dispatch.mode != 0 && dispatch.selector != 0 {
        // Unreadable: the kernel would end the thread at its next call.
        let _ = memory::read(thread.tid, RemoteAddr(dispatch.selector), &mut selector);
    }
    dispatch.mode != 0 && selector != [0]
}

/// Gives equal ids to tasks that share an object.
pub(crate) fn share(tree: &mut FrozenTree) -> Result<(), CaptureError> {
    let alive: Vec<usize> = (0..tree.tasks.len()).filter(|i| !tree.tasks[*i].is_zombie()).collect();
    for kind in [Kind::Vm, Kind::Files, Kind::Fs, Kind::Sighand] {
        // Sorted by the kernel's order: equal ones are found in logarithmic time.
        let mut sorted: Vec<(Pid, u32)> = Vec::new();
        // 1 is the controller: the inventory says so.
        let mut next = 2;
        for &index in &alive {
            let pid = tree.tasks[index].pid;
            let mut failure = None;
            let found = sorted.binary_search_by(|(other, _)| match kcmp(*other, pid, kind) {
                Ok(order) => order,
                Err(e) => {
                    failure = Some(e);
                    std::cmp::Ordering::Equal
                }
            });
            if let Some(e) = failure {
                return Err(tree.tasks[index].failed("", "compare its kernel objects")(e));
            }
            let id = match found {
                Ok(at) => sorted[at].1,
                Err(at) => {
                    sorted.insert(at, (pid, next));
                    next += 1;
                    next - 1
                }
            };
            let ids = &mut tree.tasks[index].ids;
            match kind {
                Kind::Vm => ids.vm = id,
                Kind::Files => ids.files = id,
                Kind::Fs => ids.fs = id,
                _ => ids.sighand = id,
            }
        }
    }
    Ok(())
}
