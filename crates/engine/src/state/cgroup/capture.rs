//! Capture of control groups.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry,
};
use arctern_sys::Pid;
use arctern_sys::namespace::{self, Kind};
use arctern_sys::proc;
use arctern_sys::proc::cgroup::{self, Membership};

use super::hierarchy::{self, Hierarchy};
use super::properties;
use crate::error::CaptureError;
use crate::tree::{FrozenTask, FrozenTree};

/// Groups deeper than this are not looked at: nobody has them.
const MAX_DEPTH: usize = 64;

/// From how many threads on the lists of the groups are read instead of each thread's own file.
const MANY_THREADS: usize = 32;

/// One list of memberships, with the length of the part that a cgroup namespace hides.
type Set = Vec<CgMemberEntry>;

/// The control groups of a frozen tree.
#[derive(Debug)]
pub struct CgroupCollector {
    /// Set 1 is the controller's, then those of the tasks in the order in which they turn up.
    sets: Vec<Set>,
    /// Set numbers of the threads, by task.
    of_thread: Vec<Vec<u32>>,
    hierarchies: Vec<Hierarchy>,
}

impl CgroupCollector {
    /// Reads the memberships of every thread. `freeze_cgroup` is the group that the caller froze,
    /// if any: membership is not affected, it only is a directory that has to be there.
    pub fn collect(tree: &FrozenTree, freeze_cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        let root = tree.tasks.first().ok_or(CaptureError::NoSuchProcess(Pid(0)))?;
        if let Some(dir) = freeze_cgroup {
            fs::metadata(dir)
                .map_err(root.failed("", format!("find its group {}", dir.display())))?;
        }
        let own = Pid(std::process::id() as i32);
        let hierarchies =
            hierarchy::mounted().map_err(root.failed("", "find the mounted cgroup hierarchies"))?;
        let own_set = cgroup::read(own, own).map_err(root.failed("", "read our own groups"))?;
        let mut collector = CgroupCollector {
            sets: vec![own_set.iter().map(|m| member(m, None)).collect()],
            of_thread: Vec::new(),
            hierarchies,
        };
        let inner = inner_view(root).map_err(root.failed("", "read its cgroup namespace"))?;
        let mut known: BTreeMap<Vec<Membership>, u32> = BTreeMap::new();
        // The controller's set is the tree's too only if nothing is hidden from the tree.
        if inner.is_none() {
            known.insert(own_set, 1);
        }
        for task in &tree.tasks {
            let mut numbers = Vec::with_capacity(task.threads.len());
            // The groups' lists are read instead of a file of each thread, where there are many.
            let listed = task.threads.len() >= MANY_THREADS && collector.all_alike(task);
            let asked = if listed { 1 } else { task.threads.len() };
            for thread in &task.threads[..asked] {
                let members = cgroup::read(task.pid, thread.tid)
                    .map_err(task.failed("", "read its groups"))?;
                let number = match known.get(&members) {
                    Some(number) => *number,
                    None => {
                        collector
                            .sets
                            .push(members.iter().map(|m| member(m, inner.as_deref())).collect());
                        let number = collector.sets.len() as u32;
                        known.insert(members, number);
                        number
                    }
                };
                numbers.push(number);
            }
            numbers.resize(task.threads.len(), numbers.first().copied().unwrap_or(1));
            collector.of_thread.push(numbers);
        }
        Ok(collector)
    }

    /// Whether every thread of a process is seen to be in the groups of its leader.
    fn all_alike(&self, task: &FrozenTask) -> bool {
        let Ok(members) = cgroup::read(task.pid, task.pid) else { return false };
        members.iter().all(|member| {
            let hierarchy = self.hierarchies.iter().find(|h| h.controllers == member.controllers);
            let Some(dir) = hierarchy.and_then(|h| h.dir(&member.path)) else { return false };
            let list = if member.hierarchy == 0 { "cgroup.threads" } else { "tasks" };
            let listed = fs::read_to_string(dir.join(list)).unwrap_or_default();
            let listed: HashSet<i32> = listed.lines().filter_map(|id| id.parse().ok()).collect();
            task.threads.iter().all(|thread| listed.contains(&thread.tid.0))
        })
    }

    /// The set of a thread, both by index in the tree. Zombies have the controller's.
    pub fn set_of(&self, task: usize, thread: usize) -> u32 {
        self.of_thread.get(task).and_then(|threads| threads.get(thread)).copied().unwrap_or(1)
    }

    /// The controller's own set.
    pub fn root_set(&self) -> u32 {
        1
    }

    /// Writes `cgroup.img`, unless every task is in the controller's groups.
    pub fn write(&self, images: &ImageDir) -> Result<(), CaptureError> {
        if self.sets.len() == 1 {
            images.remove(ImageKind::Cgroup, 0)?;
            return Ok(());
        }
        Ok(images.write_one(ImageKind::Cgroup, 0, &self.entry())?)
    }

    fn entry(&self) -> CgroupEntry {
        let sets =
            (2u32..).zip(&self.sets[1..]).map(|(id, set)| CgSetEntry { id, ctls: set.clone() });
        // Every hierarchy that a set names, mounted here or not: CRIU looks each one up.
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for member in self.sets[1..].iter().flatten() {
            groups.entry(&member.name).or_default().push(&member.path);
        }
        let mut controllers = Vec::new();
        for (name, mut groups) in groups {
            let hierarchy = self.hierarchies.iter().find(|h| h.controllers == name);
            groups.sort_unstable();
            groups.dedup();
            // A group below another one is found while that one is read.
            let mut tops: Vec<&str> = Vec::new();
            for group in groups {
                if !tops.iter().any(|top| Path::new(group).starts_with(top)) {
                    tops.push(group);
                }
            }
            let dirs = tops.into_iter().map(|top| {
                hierarchy.and_then(|h| read_top(h, top)).unwrap_or_else(|| CgroupDirEntry {
                    dir_name: top.trim_start_matches('/').to_owned(),
                    ..CgroupDirEntry::default()
                })
            });
            controllers.push(CgControllerEntry {
                cnames: name.split(',').map(str::to_owned).collect(),
                dirs: dirs.collect(),
                is_threaded: Some(!name.is_empty()),
            });
        }
        CgroupEntry { sets: sets.collect(), controllers }
    }
}

fn read_top(hierarchy: &Hierarchy, group: &str) -> Option<CgroupDirEntry> {
    let dir = hierarchy.dir(group)?;
    // The groups below the root of a hierarchy are those of everybody else.
    let depth = if group == "/" { MAX_DEPTH } else { 0 };
    read_dir(&dir, group.trim_start_matches('/'), &hierarchy.controllers, depth)
}

/// A group, its settings, and the groups below it.
fn read_dir(dir: &Path, name: &str, controllers: &str, depth: usize) -> Option<CgroupDirEntry> {
    let dir_perms = Some(properties::permissions(dir)?);
    let mut children = Vec::new();
    if depth < MAX_DEPTH {
        let mut names: Vec<String> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        children = names
            .iter()
            .filter_map(|name| read_dir(&dir.join(name), name, controllers, depth + 1))
            .collect();
    }
    Some(CgroupDirEntry {
        dir_name: name.to_owned(),
        children,
        properties: properties::read(dir, controllers),
        dir_perms,
    })
}

/// The root task's groups as the task itself sees them, None if it is in the controller's cgroup
/// namespace.
fn inner_view(root: &FrozenTask) -> io::Result<Option<Vec<Membership>>> {
    let own = proc::namespace(Pid(std::process::id() as i32), "cgroup")?;
    if proc::namespace(root.pid, "cgroup")? == own {
        return Ok(None);
    }
    let pid = root.pid;
    namespace::inside(pid, &[Kind::Cgroup], || cgroup::read(pid, pid)).map(Some)
}

fn member(membership: &Membership, inner: Option<&[Membership]>) -> CgMemberEntry {
    let seen = inner
        .and_then(|inner| inner.iter().find(|m| m.hierarchy == membership.hierarchy))
        .map(|m| m.path.as_str());
    CgMemberEntry {
        name: membership.controllers.clone(),
        path: membership.path.clone(),
        cgns_prefix: seen.and_then(|seen| prefix(&membership.path, seen)),
    }
}

/// Length of the part of `path` that is hidden from who sees `seen`; None if nothing is.
fn prefix(path: &str, seen: &str) -> Option<u32> {
    let hidden = path.strip_suffix(seen.trim_end_matches('/'))?;
    (!hidden.is_empty() && hidden != "/").then_some(hidden.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_hides_the_beginning_of_the_path() {
        assert_eq!(prefix("/a/b", "/"), Some(4));
        assert_eq!(prefix("/a/b/c", "/c"), Some(4));
        assert_eq!(prefix("/", "/"), None);
        assert_eq!(prefix("/a", "/a"), None);
        assert_eq!(prefix("/a", "/../x"), None);
    }
}
