//! The order of a restore, as a list of steps: pure, printable, and the source of fault points.
//!
//! Rules that the order obeys:
//! - parents before children; a child that shares memory with its parent after the parent's memory
//!   is complete (copy-on-write is kept), any other child before it (a fork of little is cheap);
//! - a session is inherited only at the fork, so children with their parent's old session come
//!   before its setsid, and orphans of a session are cloned by its leader with CLONE_PARENT;
//! - all tasks and threads exist before credentials drop: set_tid needs them;
//! - zombies exit before signal dispositions are restored: SIG_IGN for SIGCHLD would reap them;
//! - connections after listeners: a listener cannot be bound beside one; they come to life last,
//!   since a restore that fails before closes them without a word to their peers;
//! - limits after descriptors and memory; timers last, since they run.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::error::{Refusal, Subject};

/// One task of the images, as far as the order needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedTask {
    /// Pid.
    pub pid: i32,
    /// Parent's index, None for the root.
    pub parent: Option<usize>,
    /// Session.
    pub sid: i32,
    /// Process group.
    pub pgid: i32,
    /// Exited.
    pub zombie: bool,
    /// Shares private memory with its parent.
    pub common_memory: bool,
    /// Name, for refusals.
    pub comm: String,
}

/// One step. Tasks are indices into the list of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the root task in its new namespaces.
    Root,
    /// Host name, IPC, mounts.
    Namespaces,
    /// Descriptors that tasks further down share.
    SharedFiles(usize),
    /// Mappings and pages.
    Memory(usize),
    /// Become a session leader.
    Session(usize),
    /// Clone a task: in its parent, or as its creator's sibling.
    Clone {
        /// The new task.
        task: usize,
        /// Who makes it.
        creator: Creator,
    },
    /// Make a task that stands for a dead session or group leader.
    Helper {
        /// Its pid.
        pid: i32,
        /// In whom it is cloned.
        parent: usize,
        /// Whether it leads a session (else only a group).
        session: Option<i32>,
    },
    /// Join the process group.
    Group(usize),
    /// Let helpers exit.
    HelpersExit,
    /// Become a zombie.
    Exit(usize),
    /// Threads of the task.
    Threads(usize),
    /// Descriptors of the task.
    Files(usize),
    /// Working directory, root, umask.
    Fs(usize),
    /// Handlers, queued signals, per-thread state.
    State(usize),
    /// Live TCP connections, beside listeners that are all there.
    Connections,
    /// epoll, queues, locks: what needs all descriptors.
    FinishFiles,
    /// Seccomp, credentials, limits.
    Credentials(usize),
    /// The caller's hook: digests, network.
    Hook,
    /// Timers and the last stop before registers.
    Timers(usize),
    /// Registers.
    Registers(usize),
    /// All that is left is to go on: whoever dies now takes nobody along.
    Secure,
    /// The network is unlocked, connections send.
    Unlock,
    /// Let go.
    Release,
}

/// Who clones a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// Its parent.
    Parent(usize),
    /// A sibling that leads its session, by CLONE_PARENT.
    Sibling(usize),
    /// A helper with this pid, by CLONE_PARENT.
    Helper(i32),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Root => write!(f, "root"),
            Step::Namespaces => write!(f, "namespaces"),
            Step::SharedFiles(t) => write!(f, "shared-files {t}"),
            Step::Memory(t) => write!(f, "memory {t}"),
            Step::Session(t) => write!(f, "session {t}"),
            Step::Clone { task, creator: Creator::Parent(p) } => write!(f, "clone {task} in {p}"),
            Step::Clone { task, creator: Creator::Sibling(s) } => {
                write!(f, "clone {task} beside {s}")
            }
            Step::Clone { task, creator: Creator::Helper(h) } => {
                write!(f, "clone {task} beside helper {h}")
            }
            Step::Helper { pid, parent, session } => match session {
                Some(_) => write!(f, "helper {pid} in {parent}, session leader"),
                None => write!(f, "helper {pid} in {parent}, group leader"),
            },
            Step::Group(t) => write!(f, "group {t}"),
            Step::HelpersExit => write!(f, "helpers-exit"),
            Step::Exit(t) => write!(f, "exit {t}"),
            Step::Threads(t) => write!(f, "threads {t}"),
            Step::Files(t) => write!(f, "files {t}"),
            Step::Fs(t) => write!(f, "fs {t}"),
            Step::State(t) => write!(f, "state {t}"),
            Step::Connections => write!(f, "connections"),
            Step::FinishFiles => write!(f, "finish-files"),
            Step::Credentials(t) => write!(f, "credentials {t}"),
            Step::Hook => write!(f, "hook"),
            Step::Timers(t) => write!(f, "timers {t}"),
            Step::Registers(t) => write!(f, "registers {t}"),
            Step::Secure => write!(f, "secure"),
            Step::Unlock => write!(f, "unlock"),
            Step::Release => write!(f, "release"),
        }
    }
}

/// Plans the restore of `tasks` (root first, parents before children). `shell_job` lets the root
/// stay in the caller's session and group.
pub fn plan(tasks: &[PlannedTask], shell_job: bool) -> Result<Vec<Step>, Vec<Refusal>> {
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, task) in tasks.iter().enumerate() {
        if let Some(parent) = task.parent {
            children.entry(parent).or_default().push(index);
        }
    }
    let (steps, refusals, helpers) = (Vec::new(), Vec::new(), Vec::new());
    Planner { tasks, shell_job, children, steps, refusals, helpers }.run()
}

struct Planner<'a> {
    tasks: &'a [PlannedTask],
    shell_job: bool,
    /// Of every task that has any, in order.
    children: HashMap<usize, Vec<usize>>,
    steps: Vec<Step>,
    refusals: Vec<Refusal>,
    helpers: Vec<i32>,
}

impl Planner<'_> {
    fn run(mut self) -> Result<Vec<Step>, Vec<Refusal>> {
        let Some(root) = self.tasks.first() else { return Ok(self.steps) };
        let outside = root.sid;
        if root.sid != root.pid && !self.shell_job {
            self.refuse(
                0,
                format!("its session leader (pid {}) is outside of the tree", root.sid),
                "pass --shell-job to put it into the caller's session",
            );
        }
        self.steps.extend([Step::Root, Step::Namespaces]);
        self.descend(0, outside);
        self.orphaned_groups();
        // Leaders first: others can join only a group that exists.
        for leaders in [true, false] {
            for (index, task) in self.tasks.iter().enumerate() {
                let outside = self.shell_job && root.pgid != root.pid && task.pgid == root.pgid;
                let leads_session = task.sid == task.pid;
                if (task.pgid == task.pid) == leaders && !outside && !leads_session {
                    self.steps.push(Step::Group(index));
                }
            }
        }
        // Children before parents: a zombie's own children have to be gone from it first.
        for index in (0..self.tasks.len()).rev().filter(|i| self.tasks[*i].zombie) {
            self.steps.push(Step::Exit(index));
        }
        if !self.helpers.is_empty() {
            self.steps.push(Step::HelpersExit);
        }
        let alive: Vec<usize> = (0..self.tasks.len()).filter(|i| !self.tasks[*i].zombie).collect();
        for make in [Step::Threads as fn(usize) -> Step, Step::Files, Step::Fs, Step::State] {
            self.steps.extend(alive.iter().copied().map(make));
        }
        self.steps.extend([Step::Connections, Step::FinishFiles]);
        self.steps.extend(alive.iter().copied().map(Step::Credentials));
        self.steps.push(Step::Hook);
        self.steps.extend(alive.iter().copied().map(Step::Timers));
        self.steps.extend(alive.iter().copied().map(Step::Registers));
        self.steps.extend([Step::Secure, Step::Unlock, Step::Release]);
        if self.refusals.is_empty() { Ok(self.steps) } else { Err(self.refusals) }
    }

    /// Builds task `at`, which was born in session `born`, and everything below.
    fn descend(&mut self, at: usize, born: i32) {
        let task = &self.tasks[at];
        if task.zombie {
            if task.sid == task.pid {
                self.steps.push(Step::Session(at));
            }
            return;
        }
        let leads = task.sid == task.pid;
        let children = self.children.remove(&at).unwrap_or_default();
        let session_of = |i: usize| (self.tasks[i].sid, self.tasks[i].pid);
        // A child that leads a session of its own may be born in any.
        let early = |i: usize| {
            let (sid, pid) = session_of(i);
            leads && sid == born && sid != pid && sid != task.sid
        };
        let fits = |i: usize| {
            let (sid, pid) = session_of(i);
            sid == pid || sid == task.sid
        };
        let common = |i: usize| self.tasks[i].common_memory;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for &child in children.iter().filter(|c| early(**c)) {
            if common(child) { after.push(child) } else { before.push(child) }
        }
        let session_first = leads && after.is_empty();
        self.steps.push(Step::SharedFiles(at));
        for child in before.clone() {
            self.clone_in(child, at);
        }
        if session_first {
            self.steps.push(Step::Session(at));
            for &child in children.iter().filter(|c| fits(**c) && !common(**c)) {
                self.clone_in(child, at);
                before.push(child);
            }
        } else if !leads {
            for &child in children.iter().filter(|c| fits(**c) && !common(**c)) {
                self.clone_in(child, at);
                before.push(child);
            }
        }
        self.steps.push(Step::Memory(at));
        for child in after.clone() {
            self.clone_in(child, at);
        }
        if leads && !session_first {
            self.steps.push(Step::Session(at));
        }
        let made: HashSet<usize> = before.iter().copied().collect();
        for &child in children.iter().filter(|c| fits(**c)) {
            if !made.contains(&child) {
                self.clone_in(child, at);
                after.push(child);
            }
        }
        for child in before.into_iter().chain(after) {
            let born_in = if early(child) { born } else { task.sid };
            self.descend(child, born_in);
        }
        for child in children {
            if !early(child) && !fits(child) {
                self.orphan(child, at);
            }
        }
    }

    fn clone_in(&mut self, task: usize, parent: usize) {
        self.steps.push(Step::Clone { task, creator: Creator::Parent(parent) });
    }

    /// A child whose session its parent never had: its session leader's child once, reparented.
    fn orphan(&mut self, child: usize, parent: usize) {
        let sid = self.tasks[child].sid;
        let leader = self.tasks.iter().position(|t| t.pid == sid && t.sid == sid);
        let creator = match leader {
            Some(leader) if self.tasks[leader].parent == Some(parent) => Creator::Sibling(leader),
            Some(_) => {
                self.refuse(
                    child,
                    format!("it belongs to session {sid}, whose leader is not its parent's child"),
                    "",
                );
                return;
            }
            None => {
                if !self.helpers.contains(&sid) {
                    self.helpers.push(sid);
                    self.steps.push(Step::Helper { pid: sid, parent, session: Some(sid) });
                }
                Creator::Helper(sid)
            }
        };
        self.steps.push(Step::Clone { task: child, creator });
        self.descend(child, sid);
    }

    /// Groups whose leader is dead need a task with that pid for a moment.
    fn orphaned_groups(&mut self) {
        let root = &self.tasks[0];
        let pids: HashSet<i32> = self.tasks.iter().map(|task| task.pid).collect();
        for (index, task) in self.tasks.iter().enumerate() {
            let known = pids.contains(&task.pgid);
            let outside = self.shell_job && task.pgid == root.pgid;
            if known || outside || self.helpers.contains(&task.pgid) || task.pgid <= 0 {
                continue;
            }
            // The helper must be in the same session: clone it in a task that is.
            let Some(mate) = self.tasks.iter().position(|t| t.sid == task.sid && !t.zombie) else {
                self.refuse(index, format!("its process group {} has no leader", task.pgid), "");
                continue;
            };
            self.helpers.push(task.pgid);
            self.steps.push(Step::Helper { pid: task.pgid, parent: mate, session: None });
        }
    }

    fn refuse(&mut self, task: usize, cause: String, remedy: &str) {
        let task = &self.tasks[task];
        self.refusals.push(Refusal {
            subject: Subject { pid: task.pid, comm: task.comm.clone(), part: String::new() },
            cause,
            remedy: remedy.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: i32, parent: Option<usize>, pgid: i32, sid: i32) -> PlannedTask {
        PlannedTask { pid, parent, sid, pgid, ..PlannedTask::default() }
    }

    fn creation(steps: &[Step]) -> Vec<String> {
        steps.iter().take_while(|s| !matches!(s, Step::Threads(_))).map(Step::to_string).collect()
    }

    #[test]
    fn a_forking_server_keeps_its_shared_memory() {
        let mut worker = task(7, Some(0), 1, 1);
        worker.common_memory = true;
        let tasks = [task(1, None, 1, 1), worker];
        assert_eq!(
            creation(&plan(&tasks, false).unwrap()),
            [
                "root",
                "namespaces",
                "shared-files 0",
                "session 0",
                "memory 0",
                "clone 1 in 0",
                "shared-files 1",
                "memory 1",
                "group 1"
            ]
        );
    }

    #[test]
    fn a_daemon_whose_session_leader_is_dead_is_made_by_a_helper() {
        let tasks = [task(1, None, 1, 1), task(9, Some(0), 8, 8)];
        assert_eq!(
            creation(&plan(&tasks, false).unwrap()),
            [
                "root",
                "namespaces",
                "shared-files 0",
                "session 0",
                "memory 0",
                "helper 8 in 0, session leader",
                "clone 1 beside helper 8",
                "shared-files 1",
                "memory 1",
                "group 1",
                "helpers-exit"
            ]
        );
    }

    #[test]
    fn a_child_with_the_old_session_is_cloned_before_setsid() {
        // 5 is a leader; its child 6 is still in the session of 1.
        let tasks = [task(1, None, 1, 1), task(5, Some(0), 5, 5), task(6, Some(1), 1, 1)];
        let steps = creation(&plan(&tasks, false).unwrap());
        let at = |s: &str| steps.iter().position(|x| x == s).unwrap();
        assert!(at("clone 2 in 1") < at("session 1"));
    }

    #[test]
    fn a_foreign_session_needs_shell_job() {
        let tasks = [task(10, None, 10, 3)];
        assert_eq!(plan(&tasks, false).unwrap_err().len(), 1);
        assert!(plan(&tasks, true).is_ok());
    }

    #[test]
    fn credentials_come_after_every_clone_and_thread() {
        let tasks = [task(1, None, 1, 1), task(2, Some(0), 1, 1), task(3, Some(1), 1, 1)];
        let steps = plan(&tasks, false).unwrap();
        let last_thread = steps.iter().rposition(|s| matches!(s, Step::Threads(_))).unwrap();
        let first = steps.iter().position(|s| matches!(s, Step::Credentials(_))).unwrap();
        assert!(last_thread < first);
        assert_eq!(steps.last(), Some(&Step::Release));
    }
}
