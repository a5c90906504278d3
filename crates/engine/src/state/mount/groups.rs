//! Where mounts of control groups come from: the host's own mounts of the same hierarchies.
//!
//! A hierarchy is one file system however often it is mounted, and a new mount of version 2 takes
//! 10 ms where a bind takes 20 us.

use std::io;
use std::path::{Path, PathBuf};

use arctern_image::messages::{CgroupEntry, Fstype, MntEntry};
use arctern_sys::Pid;
use arctern_sys::proc::cgroup::{self, Membership};

use crate::state::cgroup::hierarchy::{self, Hierarchy};

/// The groups of the restored root task, and those that it was captured in.
pub struct Groups<'a> {
    /// Whether its groups are the roots of its cgroup namespace.
    own_cgroups: bool,
    hierarchies: Vec<Hierarchy>,
    now: Vec<Membership>,
    captured: &'a CgroupEntry,
}

impl<'a> Groups<'a> {
    /// Looks at the groups of `root`; None if no mount needs them.
    pub fn of(
        root: Pid,
        own_cgroups: bool,
        entries: &[MntEntry],
        captured: &'a CgroupEntry,
    ) -> io::Result<Option<Self>> {
        if !entries.iter().any(|entry| kind(entry).is_some()) {
            return Ok(None);
        }
        let hierarchies = hierarchy::mounted()?;
        let now = cgroup::read(root, root)?;
        Ok(Some(Groups { own_cgroups, hierarchies, now, captured }))
    }

    /// The directory that a mount of a hierarchy shows here; None for other file systems and for
    /// hierarchies that the host has not mounted.
    pub fn directory(&self, entry: &MntEntry) -> Option<PathBuf> {
        let controllers = kind(entry)?;
        let hierarchy = self.hierarchies.iter().find(|h| h.controllers == controllers)?;
        let now = self.now.iter().find(|group| group.controllers == controllers)?;
        if entry.root == "/" {
            return hierarchy.dir(if self.own_cgroups { &now.path } else { "/" });
        }
        // The mount showed the tree's group or one some levels above it.
        let levels = self
            .captured
            .sets
            .iter()
            .flat_map(|set| &set.ctls)
            .filter(|member| member.name == controllers)
            .find_map(|member| Path::new(&member.path).strip_prefix(&entry.root).ok())
            .map_or(0, |below| below.components().count());
        let group = Path::new(&now.path).ancestors().nth(levels).unwrap_or(Path::new("/"));
        hierarchy.dir(&group.to_string_lossy())
    }
}

/// The controllers of a mounted hierarchy, None for other file systems.
fn kind(entry: &MntEntry) -> Option<String> {
    if entry.fstype == Fstype::Cgroup2 as u32 {
        return Some(String::new());
    }
    let options: Vec<String> = entry.options.split(',').map(str::to_owned).collect();
    (entry.fstype == Fstype::Cgroup as u32).then(|| hierarchy::controllers(&options))
}

#[cfg(test)]
mod tests {
    use arctern_image::messages::{CgMemberEntry, CgSetEntry};

    use super::*;

    #[test]
    fn the_trees_group_stands_for_the_captured_one() {
        let member = |name: &str, path: &str| CgMemberEntry {
            name: name.to_owned(),
            path: path.to_owned(),
            cgns_prefix: None,
        };
        let captured = CgroupEntry {
            sets: vec![CgSetEntry { id: 2, ctls: vec![member("pids", "/a/b")] }],
            controllers: Vec::new(),
        };
        let hierarchy = |controllers: &str, at: &str| Hierarchy {
            controllers: controllers.to_owned(),
            mountpoint: PathBuf::from(at),
            root: "/".to_owned(),
        };
        let group = |controllers: &str, path: &str| Membership {
            controllers: controllers.to_owned(),
            path: path.to_owned(),
            hierarchy: 0,
        };
        let mut groups = Groups {
            own_cgroups: false,
            hierarchies: vec![hierarchy("pids", "/cg/pids"), hierarchy("", "/cg/unified")],
            now: vec![group("pids", "/x/y"), group("", "/z")],
            captured: &captured,
        };
        let entry = |fstype: Fstype, root: &str, options: &str| MntEntry {
            fstype: fstype as u32,
            root: root.to_owned(),
            options: options.to_owned(),
            ..MntEntry::default()
        };
        let pids = |root: &str| entry(Fstype::Cgroup, root, "pids");
        let dir = |groups: &Groups<'_>, entry: &MntEntry| {
            groups
                .directory(entry)
                .map(|dir| dir.to_string_lossy().trim_end_matches('/').to_owned())
        };
        assert_eq!(dir(&groups, &pids("/a/b")).as_deref(), Some("/cg/pids/x/y"));
        assert_eq!(dir(&groups, &pids("/a")).as_deref(), Some("/cg/pids/x"));
        assert_eq!(dir(&groups, &pids("/")).as_deref(), Some("/cg/pids"));
        assert_eq!(dir(&groups, &entry(Fstype::Cgroup, "/", "cpu")), None);
        assert_eq!(dir(&groups, &entry(Fstype::Tmpfs, "/", "")), None);
        groups.own_cgroups = true;
        assert_eq!(dir(&groups, &pids("/")).as_deref(), Some("/cg/pids/x/y"));
        let unified = entry(Fstype::Cgroup2, "/", "");
        assert_eq!(dir(&groups, &unified).as_deref(), Some("/cg/unified/z"));
    }
}
