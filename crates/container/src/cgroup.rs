//! The control groups of a container: `/arctern/ID` in every hierarchy that is mounted
//! (`/arctern-TAG/ID` for a host with another root, see [`Paths::tag`]).
//!
//! Three arrangements exist: version 1 hierarchies one by one, one version 2 hierarchy, and both
//! (hybrid), where the version 2 hierarchy may have no controllers. libcontainer makes and joins
//! the groups at creation; this module makes them for a restore, which libcontainer does not know,
//! applies the limits, finds the freezer, and removes the groups in either case.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::paths::Paths;

/// Parent of all groups of the usual host, relative to a hierarchy's root.
const PARENT: &str = "arctern";

/// Version 1 controllers that a container's group is made in, if they are mounted. These are the
/// ones that libcontainer uses.
const CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Version 1 controllers; empty for version 2.
    controllers: Vec<String>,
    v2: bool,
}

/// The hierarchies of this machine, and the group in each that a host's containers are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    mounted: Vec<Hierarchy>,
    /// Relative to a hierarchy's root.
    parent: String,
}

impl Hierarchies {
    /// Reads them from `/proc/self/mountinfo`, for the containers of a host.
    pub fn of(paths: &Paths) -> Result<Hierarchies> {
        Self::read(parent(paths))
    }

    /// Those of this machine, for its usual host.
    pub fn of_machine() -> Result<Hierarchies> {
        Self::read(PARENT.to_owned())
    }

    fn read(parent: String) -> Result<Hierarchies> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(Self::parse(&text, parent))
    }

    fn parse(mountinfo: &str, parent: String) -> Hierarchies {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let mut head = head.split(' ').skip(3);
            let (Some(root), Some(mount)) = (head.next(), head.next()) else { continue };
            let mut tail = tail.split(' ');
            let (Some(kind), Some(options)) = (tail.next(), tail.nth(1)) else { continue };
            if !matches!(kind, "cgroup" | "cgroup2") || root != "/" {
                continue;
            }
            let hierarchy = Hierarchy {
                mount: PathBuf::from(mount),
                controllers: options
                    .split(',')
                    .filter(|o| CONTROLLERS.contains(o))
                    .map(str::to_owned)
                    .collect(),
                v2: kind == "cgroup2",
            };
            let known = found
                .iter()
                .any(|h| h.v2 == hierarchy.v2 && h.controllers == hierarchy.controllers);
            if !known && (hierarchy.v2 || !hierarchy.controllers.is_empty()) {
                found.push(hierarchy);
            }
        }
        Hierarchies { mounted: found, parent }
    }

    /// `1`, `2` or `hybrid`, as `arctern info` shows it.
    #[must_use]
    pub fn version(&self) -> &'static str {
        let v1 = self.mounted.iter().any(|h| !h.v2);
        let v2 = self.mounted.iter().any(|h| h.v2);
        match (v1, v2) {
            (true, true) => "hybrid",
            (true, false) => "1",
            (false, true) => "2",
            (false, false) => "none",
        }
    }

    /// The hierarchies that containers get a group in: those of version 1 if there are any, as
    /// libcontainer does in the hybrid arrangement, else the one of version 2.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        let v1 = self.mounted.iter().any(|h| !h.v2);
        self.mounted.iter().filter(move |h| h.v2 != v1)
    }

    /// The directories of a container's groups.
    #[must_use]
    pub fn groups(&self, id: &str) -> Vec<PathBuf> {
        self.used().map(|h| h.mount.join(&self.parent).join(id)).collect()
    }

    /// The groups through which memory is counted: of this process, and of a container.
    pub(crate) fn of_memory(&self, id: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
        let path = "/proc/self/cgroup";
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let counting = self.used().filter(|h| h.v2 || h.controllers.iter().any(|c| c == "memory"));
        let pair = |h: &Hierarchy| {
            // `NUMBER:CONTROLLERS:PATH`, without controllers for version 2 (cgroups(7)).
            let own = text.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                let counts = controllers.split(',').any(|c| c == "memory");
                (if h.v2 { controllers.is_empty() } else { counts }).then_some(path)
            })?;
            let own = h.mount.join(own.trim_start_matches('/'));
            Some((own, h.mount.join(&self.parent).join(id)))
        };
        Ok(counting.filter_map(pair).collect())
    }

    /// The names of all groups of this host's containers.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let parents = self.used().map(|h| h.mount.join(&self.parent));
        let entries = parents.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// The group through which a container is frozen, if there is a freezer.
    #[must_use]
    pub fn freezer(&self, id: &str) -> Option<PathBuf> {
        self.used()
            .find(|h| h.v2 || h.controllers.iter().any(|c| c == "freezer"))
            .map(|h| h.mount.join(&self.parent).join(id))
    }

    /// Whether containers get a group with this controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.used().any(|h| {
            if h.v2 {
                fs::read_to_string(h.mount.join("cgroup.controllers"))
                    .is_ok_and(|list| list.split_ascii_whitespace().any(|c| c == controller))
            } else {
                h.controllers.iter().any(|c| c == controller)
            }
        })
    }

    /// Refuses limits for which this machine has no controller.
    pub fn check(&self, config: &ContainerConfig) -> Result<()> {
        let wanted = [
            (config.memory.is_some(), "memory", "--memory"),
            (config.milli_cpus.is_some(), "cpu", "--cpus"),
            (config.pids_limit.is_some_and(|n| n > 0), "pids", "--pids-limit"),
        ];
        for (asked, controller, option) in wanted {
            if asked && !self.has(controller) {
                return Err(Error::NoController { controller, option });
            }
        }
        Ok(())
    }

    /// The tightest limit of memory above a container's group: the group that has it, and the bytes
    /// that may still be taken in it, where what the kernel can drop counts as free.
    #[must_use]
    pub fn memory_left(&self) -> Option<(PathBuf, u64)> {
        let controls = |h: &&Hierarchy| h.v2 || h.controllers.iter().any(|c| c == "memory");
        let hierarchy = self.used().find(controls)?;
        let names = match hierarchy.v2 {
            true => ["memory.max", "memory.current", "inactive_file", "active_file"],
            false => [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            ],
        };
        let parent = hierarchy.mount.join(&self.parent);
        let groups = parent.ancestors().take_while(|dir| dir.starts_with(&hierarchy.mount));
        groups.filter_map(|dir| Some((dir.to_owned(), left(dir, names)?))).min_by_key(|(_, n)| *n)
    }

    /// Makes the groups of a container and gives their directories.
    pub fn create(&self, id: &str) -> Result<Vec<PathBuf>> {
        let mut groups = Vec::new();
        for hierarchy in self.used() {
            let parent = hierarchy.mount.join(&self.parent);
            let group = parent.join(id);
            for dir in [&parent, &group] {
                match fs::create_dir(dir) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => return Err(Error::io("create cgroup", dir)(e)),
                    Ok(()) => {}
                }
                if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                    inherit_cpuset(dir)?;
                }
                if hierarchy.v2 && dir == &parent {
                    delegate(&hierarchy.mount)?;
                    delegate(&parent)?;
                }
            }
            groups.push(group);
        }
        Ok(groups)
    }

    /// Applies the limits of the runtime spec to groups that exist.
    pub fn apply(&self, id: &str, resources: &oci_spec::runtime::LinuxResources) -> Result<()> {
        use libcgroups::common::{
            CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
        };
        let manager = create_cgroup_manager(CgroupConfig {
            cgroup_path: Path::new("/").join(&self.parent).join(id),
            systemd_cgroup: false,
            container_name: id.to_owned(),
        })
        .map_err(Error::runtime("limit"))?;
        manager
            .apply(&ControllerOpt {
                resources,
                disable_oom_killer: false,
                oom_score_adj: None,
                freezer_state: None,
            })
            .map_err(Error::runtime("limit"))
    }

    /// Removes the groups of a container with everything below; what is gone already is no error.
    pub fn remove(&self, id: &str) -> Result<()> {
        for group in self.groups(id) {
            remove_tree(&group).map_err(Error::io("remove cgroup", &group))?;
            // The parent goes with its last container; others keep it busy.
            if let Some(parent) = group.parent() {
                let _ = fs::remove_dir(parent);
            }
        }
        Ok(())
    }

    /// Pids in a container's groups, the container's own init and what exec added. One that is joining
    /// is in some of them only.
    #[must_use]
    pub fn pids(&self, id: &str) -> Vec<i32> {
        let lists = self.groups(id).into_iter().map(|group| group.join("cgroup.procs"));
        let lists: Vec<String> = lists.filter_map(|path| fs::read_to_string(path).ok()).collect();
        let pids = lists.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok());
        pids.collect::<std::collections::BTreeSet<i32>>().into_iter().collect()
    }
}

/// What may still be taken in a group; none without a limit. `names` are the files of the limit and
/// the usage, and the fields of `memory.stat` that hold pages of files.
fn left(dir: &Path, names: [&str; 4]) -> Option<u64> {
    let [limit, usage, files @ ..] = names;
    let number = |name| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        let mut words = stat.lines().filter_map(|line| line.split_once(' '));
        words.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let droppable: u64 = files.into_iter().filter_map(field).sum();
    Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(droppable)))
}

/// The group of a host's containers: hosts on one machine may have containers of the same id, one of
/// which was moved from the other.
fn parent(paths: &Paths) -> String {
    paths.tag().map_or_else(|| PARENT.to_owned(), |tag| format!("{PARENT}-{tag}"))
}

/// The `cgroupsPath` of the runtime spec.
#[must_use]
pub fn cgroup_path(paths: &Paths, id: &str) -> String {
    format!("/{}/{id}", parent(paths))
}

/// A new cpuset group is empty and admits no task until it has its parent's CPUs and nodes.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(file);
        let Ok(current) = fs::read_to_string(&own) else { continue };
        if !current.trim().is_empty() {
            continue;
        }
        if let Some(parent) = dir.parent() {
            let above = parent.join(file);
            let value = fs::read_to_string(&above).map_err(Error::io("read", &above))?;
            fs::write(&own, value.trim()).map_err(Error::io("write", &own))?;
        }
    }
    Ok(())
}

/// Hands the controllers of a version 2 group to its children; one that cannot be handed on is
/// missed later, by name, if a limit needs it.
fn delegate(dir: &Path) -> Result<()> {
    let list = dir.join("cgroup.controllers");
    let controllers = fs::read_to_string(&list).map_err(Error::io("read", &list))?;
    for controller in controllers.split_ascii_whitespace() {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime shared:4 - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
90 31 0:34 /arctern/x /tmp/x rw,relatime - cgroup cgroup rw,freezer
";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn hybrid_uses_version_1() {
        let h = Hierarchies::parse(HYBRID, "arctern".into());
        assert_eq!(h.version(), "hybrid");
        assert_eq!(
            h.groups("ID"),
            [
                PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/arctern/ID"),
                PathBuf::from("/sys/fs/cgroup/freezer/arctern/ID"),
            ]
        );
        assert_eq!(h.freezer("ID"), Some(PathBuf::from("/sys/fs/cgroup/freezer/arctern/ID")));
        assert!(h.has("cpuacct") && !h.has("memory"));
    }

    #[test]
    fn unified_is_its_own_freezer() {
        let h = Hierarchies::parse(UNIFIED, "arctern".into());
        assert_eq!(h.version(), "2");
        assert_eq!(h.freezer("ID"), Some(PathBuf::from("/sys/fs/cgroup/arctern/ID")));
    }
}
