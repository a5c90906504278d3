//! Restore of control groups.
//!
//! The tree goes below the caller's groups; where the caller names none in a hierarchy, the tree
//! stays in the controller's own group of that hierarchy.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{CgroupDirEntry, CgroupEntry};
use arctern_sys::Pid;
use arctern_sys::proc::cgroup;
use arctern_tracee::stub::Stub;

use super::Entrance;
use super::hierarchy::{self, Hierarchy};
use super::properties;
use crate::error::RestoreError;
use crate::restore_context::{failed, subject};

/// The control groups of one restore. Dropped before [`CgroupRestore::keep`] it removes the groups
/// that it made.
#[derive(Debug)]
pub struct CgroupRestore {
    entry: CgroupEntry,
    /// The set of the root task: its groups are the tree's own.
    root_set: u32,
    hierarchies: Vec<Hierarchy>,
    /// By controllers: the directory that stands for the root task's group.
    base: HashMap<String, PathBuf>,
    /// Groups made, in order.
    made: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl CgroupRestore {
    /// Reads the image.
    pub fn load(images: &ImageDir) -> Result<Self, RestoreError> {
        Ok(CgroupRestore {
            entry: images.read_optional(ImageKind::Cgroup, 0)?.unwrap_or_default(),
            root_set: 0,
            hierarchies: Vec::new(),
            base: HashMap::new(),
            made: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Puts the root task into the caller's groups. `root_set` is the set number of its leader in
    /// the images. Called before the task enters its cgroup namespace, whose root they become, and
    /// while it has the controller's descriptors.
    pub fn enter(
        &mut self,
        stub: &Stub,
        root_set: u32,
        entrance: &Entrance,
    ) -> Result<(), RestoreError> {
        let root = stub.tid();
        self.root_set = root_set;
        let error = |what: &str| failed(subject(root.0, "", "control groups"), what.to_owned());
        self.hierarchies =
            hierarchy::mounted().map_err(error("find the mounted cgroup hierarchies"))?;
        entrance.take_in(stub)?;
        let members = cgroup::read(root, root).map_err(error("read its groups"))?;
        for hierarchy in &self.hierarchies {
            let group = members.iter().find(|m| m.controllers == hierarchy.controllers);
            if let Some(dir) = group.and_then(|group| hierarchy.dir(&group.path)) {
                self.base.insert(hierarchy.controllers.clone(), dir);
            }
        }
        Ok(())
    }

    /// Puts a task into the groups of set `set`, making those that are missing. `pid` is a thread
    /// as the controller sees it.
    pub fn place(&mut self, set: u32, pid: Pid) -> Result<(), RestoreError> {
        if set == self.root_set {
            return Ok(());
        }
        for (controllers, below) in self.relative(set) {
            let Some(base) = self.base.get(&controllers).cloned() else { continue };
            let mut dir = base;
            for name in below.components() {
                dir.push(name);
                self.make(&dir, pid)?;
            }
            let what = format!("put it into {}", dir.display());
            join(&dir, pid).map_err(failed(subject(pid.0, "", "control groups"), what))?;
        }
        Ok(())
    }

    /// The groups of a set below the root task's, where it has such, by controllers.
    fn relative(&self, set: u32) -> Vec<(String, PathBuf)> {
        let find = |id: u32| self.entry.sets.iter().find(|set| set.id == id);
        let (Some(root), Some(set)) = (find(self.root_set), find(set)) else { return Vec::new() };
        let mut relative = Vec::new();
        for member in &set.ctls {
            let Some(top) = root.ctls.iter().find(|top| top.name == member.name) else { continue };
            let Ok(below) = Path::new(&member.path).strip_prefix(&top.path) else { continue };
            // Names out of the images: nothing but plain names leads below.
            let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
            if plain && !below.as_os_str().is_empty() {
                relative.push((member.name.clone(), below.to_owned()));
            }
        }
        relative
    }

    fn make(&mut self, dir: &Path, pid: Pid) -> Result<(), RestoreError> {
        match fs::create_dir(dir) {
            Ok(()) => {
                self.made.push(dir.to_owned());
                self.configure(dir);
                properties::inherit_cpuset(dir);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => {
                let what = format!("make the group {}", dir.display());
                Err(failed(subject(pid.0, "", "control groups"), what)(error))
            }
        }
    }

    /// Gives a group that was made the settings of the captured group that it stands for.
    fn configure(&mut self, dir: &Path) {
        let Some(hierarchy) = self.hierarchies.iter().find(|h| h.group(dir).is_some()) else {
            return;
        };
        let Some(base) = self.base.get(&hierarchy.controllers) else { return };
        let Ok(below) = dir.strip_prefix(base) else { return };
        let top = self
            .entry
            .sets
            .iter()
            .find(|set| set.id == self.root_set)
            .and_then(|set| set.ctls.iter().find(|m| m.name == hierarchy.controllers))
            .map_or("/", |member| member.path.as_str());
        let group = Path::new(top).join(below);
        let controllers = hierarchy.controllers.clone();
        let Some(saved) = self.saved(&controllers, &group) else { return };
        for property in &saved.properties {
            if let Err(warning) = properties::write(dir, property) {
                self.warnings.push(warning);
            }
        }
        if let Some(perms) = &saved.dir_perms
            && let Err(error) = std::os::unix::fs::chown(dir, Some(perms.uid), Some(perms.gid))
        {
            self.warnings.push(format!("cannot give {} its owner: {error}", dir.display()));
        }
    }

    /// What the image says about a group.
    fn saved(&self, controllers: &str, group: &Path) -> Option<CgroupDirEntry> {
        let list = self.entry.controllers.iter().find(|c| c.cnames.join(",") == controllers)?;
        let group = group.strip_prefix("/").unwrap_or(group);
        list.dirs.iter().find_map(|top| {
            let below = group.strip_prefix(&top.dir_name).ok()?;
            let mut at = top;
            for name in below.components() {
                at = at.children.iter().find(|c| Path::new(&c.dir_name) == name.as_os_str())?;
            }
            Some(at.clone())
        })
    }

    /// What could not be put back so far.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The restore has succeeded: the groups stay.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for CgroupRestore {
    fn drop(&mut self) {
        for dir in self.made.drain(..).rev() {
            if let Err(error) = fs::remove_dir(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove a control group");
            }
        }
    }
}

/// Puts a process (version 2) or a thread (version 1) into a group.
fn join(dir: &Path, pid: Pid) -> io::Result<()> {
    let threads = dir.join("tasks");
    let file = if threads.exists() { threads } else { dir.join("cgroup.procs") };
    fs::write(file, pid.to_string())
}

#[cfg(test)]
mod tests {
    use arctern_image::messages::{CgMemberEntry, CgSetEntry};

    use super::*;

    fn restore(groups: &[(u32, &str)]) -> CgroupRestore {
        let set = |(id, path): &(u32, &str)| CgSetEntry {
            id: *id,
            ctls: vec![CgMemberEntry {
                name: String::new(),
                path: (*path).to_owned(),
                cgns_prefix: None,
            }],
        };
        CgroupRestore {
            entry: CgroupEntry { sets: groups.iter().map(set).collect(), controllers: Vec::new() },
            root_set: groups[0].0,
            hierarchies: Vec::new(),
            base: HashMap::new(),
            made: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn groups_are_taken_relative_to_the_root_tasks() {
        let restore = restore(&[(2, "/c"), (3, "/c/work/a"), (4, "/elsewhere"), (5, "/c/../x")]);
        assert_eq!(restore.relative(3), [(String::new(), PathBuf::from("work/a"))]);
        assert!(restore.relative(2).is_empty());
        assert!(restore.relative(4).is_empty());
        assert!(restore.relative(5).is_empty(), "no way out by dots");
        assert!(restore.relative(9).is_empty());
    }
}
