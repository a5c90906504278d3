//! Where the hierarchies are mounted on this host.

use std::io;
use std::path::{Path, PathBuf};

use arctern_sys::Pid;
use arctern_sys::proc::mountinfo::{self, Mount};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// `cpu,cpuacct`, `name=systemd`; nothing for version 2.
    pub controllers: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The group that is mounted there, `/` for all.
    pub root: String,
}

impl Hierarchy {
    /// The directory of a group, None if it lies outside of what is mounted.
    pub fn dir(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        Some(self.mountpoint.join(below))
    }

    /// The group of a directory, None if the directory is not in this hierarchy.
    pub fn group(&self, dir: &Path) -> Option<String> {
        let below = dir.strip_prefix(&self.mountpoint).ok()?;
        let group = Path::new(&self.root).join(below);
        Some(group.to_string_lossy().trim_end_matches('/').to_owned())
            .map(|group| if group.is_empty() { "/".to_owned() } else { group })
    }
}

/// The hierarchies that the controller sees. Of several mounts of one, the first that shows all of
/// it wins.
pub fn mounted() -> io::Result<Vec<Hierarchy>> {
    Ok(from_mounts(&mountinfo::read(Pid(std::process::id() as i32))?))
}

fn from_mounts(mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts {
        let controllers = match mount.fstype.as_str() {
            "cgroup2" => String::new(),
            "cgroup" => controllers(&mount.super_options),
            _ => continue,
        };
        let hierarchy = Hierarchy {
            controllers,
            mountpoint: PathBuf::from(&mount.mountpoint),
            root: mount.root.clone(),
        };
        match found.iter_mut().find(|known| known.controllers == hierarchy.controllers) {
            Some(known) if known.root != "/" && hierarchy.root == "/" => *known = hierarchy,
            Some(_) => {}
            None => found.push(hierarchy),
        }
    }
    found
}

/// The controllers of a version 1 mount, written as `/proc/PID/cgroup` writes them.
pub fn controllers(options: &[String]) -> String {
    const OTHER: [&str; 7] =
        ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "none"];
    let mut names: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .filter(|o| !OTHER.contains(o) && !o.starts_with("release_agent="))
        .collect();
    // The name comes last in /proc/PID/cgroup.
    names.sort_by_key(|name| name.starts_with("name="));
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let text = "\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 31 0:29 /a /b rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n";
        let found = from_mounts(&mountinfo::parse(text).unwrap());
        let names: Vec<&str> = found.iter().map(|h| h.controllers.as_str()).collect();
        assert_eq!(names, ["", "cpu,cpuacct", "name=systemd"]);
        assert_eq!(found[1].mountpoint, Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(found[1].dir("/x/y"), Some(PathBuf::from("/sys/fs/cgroup/cpu/x/y")));
        assert_eq!(found[1].group(Path::new("/sys/fs/cgroup/cpu/x")).as_deref(), Some("/x"));
        assert_eq!(found[1].group(Path::new("/sys/fs/cgroup/cpu")).as_deref(), Some("/"));
        assert_eq!(found[1].group(Path::new("/sys/fs/cgroup/cpuset")), None);
    }
}
