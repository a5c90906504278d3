//! What the images say about the tasks, checked.

use std::collections::BTreeMap;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    CoreEntry, PstreeEntry, SeccompEntry, SeccompMode, TaskCoreEntry, TaskKobjIdsEntry,
};
use arctern_sys::Pid;

use crate::confinement::{Confinement, SYS_RAWIO};
use crate::error::{Refusal, RestoreError};
use crate::plan::PlannedTask;
use crate::restore_context::{TaskNode, subject};
use crate::state::memory::space::{AddressSpace, have_common_memory};
use crate::state::restart::{self, Restarts};
use crate::state::task::task_state as state;
use crate::state::task::{confined as task_confined, restore as task_state};

/// Everything that the images say, checked.
pub(super) struct Loaded {
    pub(super) nodes: Vec<TaskNode>,
    pub(super) entries: Vec<PstreeEntry>,
    /// By inner tid.
    pub(super) cores: BTreeMap<i32, CoreEntry>,
    pub(super) spaces: Vec<Option<AddressSpace>>,
    pub(super) seccomp: SeccompEntry,
    pub(super) restarts: Restarts,
    /// Children in group stop, by parent.
    pub(super) stopped: BTreeMap<usize, Vec<usize>>,
}

impl Loaded {
    /// Reads them; nothing is made.
    pub(super) fn load(images: &ImageDir, dir: &Path) -> Result<Self, RestoreError> {
        let inconsistent = |what: String| Err(RestoreError::Inconsistent(what));
        let entries: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, 0)?;
        if entries.is_empty() {
            return inconsistent("pstree.img lists no process".to_owned());
        }
        let mut nodes: Vec<TaskNode> = Vec::with_capacity(entries.len());
        let mut index_of: BTreeMap<u32, usize> = BTreeMap::new();
        let mut stopped: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
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
                _ => {
                    return inconsistent(format!(
                        "pstree.img: process {pid} has no parent before it"
                    ));
                }
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
            if let (true, Some(parent)) = (is_stopped(tc), parent) {
                stopped.entry(parent).or_default().push(index);
            }
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
        Ok(Self {
            nodes,
            entries,
            cores,
            spaces,
            seccomp: images.read_optional(ImageKind::Seccomp, 0)?.unwrap_or_default(),
            restarts,
            stopped,
        })
    }

    /// Whether a thread has filters or strict mode.
    pub(super) fn has_seccomp(&self) -> bool {
        let strict = Some(SeccompMode::Strict.into());
        let modes = self.cores.values().filter_map(|core| core.thread_core.as_ref());
        self.seccomp.seccomp_filters.iter().any(|f| !f.filter.is_empty())
            || modes.into_iter().any(|thread| thread.seccomp_mode == strict)
    }

    /// Refuses what tasks may not have: privileges, memory where the kernel keeps none.
    pub(super) fn check_confined(&self, confinement: &Confinement, refusals: &mut Vec<Refusal>) {
        if confinement.trusted {
            return;
        }
        let own = arctern_sys::sched::read(Pid(std::process::id() as i32));
        let nice = own.map_or(0, |own| own.nice);
        let lowest = lowest_address();
        for (index, (node, entry)) in self.nodes.iter().zip(&self.entries).enumerate() {
            for tid in &entry.threads {
                if let Some(core) = self.cores.get(&(*tid as i32)) {
                    task_confined::check(
                        *tid as i32,
                        &node.comm,
                        core,
                        nice,
                        confinement,
                        refusals,
                    );
                }
            }
            let first = self.spaces[index].as_ref().and_then(AddressSpace::lowest);
            if !confinement.allows(SYS_RAWIO) && first.is_some_and(|first| first < lowest) {
                refusals.push(Refusal {
                    subject: subject(node.pid, &node.comm, "memory"),
                    cause: format!(
                        "it has memory below address {lowest:#x}, which the kernel keeps free"
                    ),
                    remedy: "allow it with --cap-add SYS_RAWIO, if you trust the archive".into(),
                });
            }
        }
    }

    /// The tasks as the plan sees them.
    pub(super) fn planned_tasks(&self) -> Vec<PlannedTask> {
        let common = |index: usize, parent: Option<usize>| match (
            &self.spaces[index],
            parent.and_then(|p| self.spaces[p].as_ref()),
        ) {
            (Some(child), Some(parent)) => have_common_memory(child, parent),
            _ => false,
        };
        self.nodes
            .iter()
            .zip(&self.entries)
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

    /// The core of a thread, by inner tid.
    pub(super) fn core(&self, tid: i32) -> Result<&CoreEntry, RestoreError> {
        self.cores
            .get(&tid)
            .ok_or_else(|| RestoreError::Inconsistent(format!("core-{tid}.img is missing")))
    }

    /// Whether a task was in group stop.
    pub(super) fn is_stopped(&self, task: usize) -> Result<bool, RestoreError> {
        let tc = self.core(self.nodes[task].pid)?.tc.as_ref();
        Ok(tc.is_some_and(is_stopped))
    }

    /// The set of control groups of a task's leader.
    pub(super) fn cgroup_set(&self, task: usize) -> u32 {
        let core = self.cores.get(&self.nodes[task].pid);
        let process = core.and_then(|c| c.tc.as_ref()).and_then(|tc| tc.cg_set);
        let thread = core.and_then(|c| c.thread_core.as_ref()).and_then(|t| t.cg_set);
        thread.or(process).unwrap_or(0)
    }

    /// The programs of a chain in the order of their installation: the one that the thread names
    /// first, then along `prev`.
    pub(super) fn filters(&self, first: Option<u32>) -> Result<Vec<&[u8]>, RestoreError> {
        let all = &self.seccomp.seccomp_filters;
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
}

fn is_stopped(tc: &TaskCoreEntry) -> bool {
    tc.task_state == state::STOPPED
}

/// The lowest address that a program may map without CAP_SYS_RAWIO.
fn lowest_address() -> u64 {
    std::fs::read_to_string("/proc/sys/vm/mmap_min_addr")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65536)
}
