//! Settings of groups: which files hold them.
//!
//! The list is the settings that programs and container runtimes set; counters and write-only
//! triggers are not settings. Order matters on restore: a limit on memory and swap cannot be set
//! before the limit on memory, `cpuset` needs its memory nodes before tasks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use arctern_image::messages::{CgroupPerms, CgroupPropEntry};

/// Settings that every hierarchy of version 1 has.
const EVERY_V1: &[&str] = &["cgroup.clone_children", "notify_on_release"];

/// Settings of every group of version 2.
const EVERY_V2: &[&str] = &[
    "cgroup.subtree_control",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "cgroup.freeze",
    "cgroup.type",
];

/// Settings by controller; a file that is not there (another version, an older kernel) is skipped.
const BY_CONTROLLER: &[(&str, &[&str])] = &[
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
            "cpu.weight",
            "cpu.max",
            "cpu.max.burst",
            "cpu.idle",
        ],
    ),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.swappiness",
            "memory.use_hierarchy",
            "memory.min",
            "memory.low",
            "memory.high",
            "memory.max",
            "memory.swap.high",
            "memory.swap.max",
            "memory.oom.group",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.memory_migrate",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
        ],
    ),
    ("blkio", &["blkio.weight"]),
    ("io", &["io.weight", "io.max"]),
    ("pids", &["pids.max"]),
    ("devices", &["devices.list"]),
    ("freezer", &["freezer.state"]),
    ("net_cls", &["net_cls.classid"]),
    ("net_prio", &["net_prio.ifpriomap"]),
];

/// Files whose owner decides who may move tasks: their owner is kept, their content is not theirs.
const MEMBERS: &[&str] = &["cgroup.procs", "tasks"];

/// Mode and owner of a file or directory.
pub fn permissions(path: &Path) -> Option<CgroupPerms> {
    let metadata = fs::metadata(path).ok()?;
    Some(CgroupPerms { mode: metadata.mode(), uid: metadata.uid(), gid: metadata.gid() })
}

/// The settings of the group at `dir`. What cannot be read is not there.
pub fn read(dir: &Path, controllers: &str) -> Vec<CgroupPropEntry> {
    let unified = controllers.is_empty();
    let mut names: Vec<&str> = Vec::new();
    for (controller, files) in BY_CONTROLLER {
        // Which controllers a group of version 2 has shows in its files.
        if unified || controllers.split(',').any(|name| name == *controller) {
            names.extend(*files);
        }
    }
    names.extend(if unified { EVERY_V2 } else { EVERY_V1 });
    let mut found = Vec::new();
    for name in names {
        let path = dir.join(name);
        let Ok(value) = fs::read_to_string(&path) else { continue };
        let value = match name {
            // Whoever captures has frozen the group; that is not the group's setting.
            "freezer.state" => "THAWED".to_owned(),
            "cgroup.freeze" => "0".to_owned(),
            _ => value.trim_end().to_owned(),
        };
        found.push(CgroupPropEntry { name: name.to_owned(), value, perms: permissions(&path) });
    }
    for name in MEMBERS {
        let path = dir.join(name);
        if let Some(perms) = permissions(&path) {
            let (name, value) = ((*name).to_owned(), String::new());
            found.push(CgroupPropEntry { name, value, perms: Some(perms) });
        }
    }
    found
}

/// Gives a group of version 1 without processors or memory nodes those of the group above it: it
/// takes no tasks before. A group that has some, or another controller, is left alone.
pub fn inherit_cpuset(dir: &Path) {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let empty = fs::read_to_string(dir.join(name)).is_ok_and(|text| text.trim().is_empty());
        let above = dir.parent().and_then(|above| fs::read_to_string(above.join(name)).ok());
        // Of version 2 an empty set means the one above by itself.
        if let (true, true, Some(above)) = (empty, dir.join("tasks").exists(), above) {
            // If it fails, so does the move of the task, which says more.
            fs::write(dir.join(name), above.trim()).ok();
        }
    }
}

/// Puts a setting back. Returns what could not be done, for a warning.
pub fn write(dir: &Path, property: &CgroupPropEntry) -> Result<(), String> {
    // Nothing but a file of the group itself: the name comes from the images.
    if property.name.contains('/') || property.name.starts_with('.') {
        return Err(format!("the name {} is no setting", property.name));
    }
    let path = dir.join(&property.name);
    let Ok(now) = fs::read_to_string(&path) else { return Ok(()) };
    if let Some(perms) = &property.perms {
        let wrong = |error| format!("cannot give {} its owner: {error}", path.display());
        std::os::unix::fs::chown(&path, Some(perms.uid), Some(perms.gid)).map_err(wrong)?;
    }
    let unwritten = MEMBERS.contains(&property.name.as_str())
        || matches!(property.name.as_str(), "devices.list" | "freezer.state" | "cgroup.freeze");
    if unwritten || now.trim_end() == property.value {
        return Ok(());
    }
    let value = match property.name.as_str() {
        "cgroup.subtree_control" => {
            property.value.split_whitespace().map(|name| format!("+{name} ")).collect()
        }
        _ => property.value.clone(),
    };
    fs::write(&path, &value)
        .map_err(|error| format!("cannot set {} to {value}: {error}", path.display()))
}
