//! From lines of mountinfo to CRIU's mount messages, and what of it can be carried. Pure.

use std::path::Path;

use arctern_image::messages::{Fstype, MntEntry};
use arctern_sys::proc::mountinfo::Mount;

/// A file system that a restore can make anew.
struct Known {
    name: &'static str,
    criu: Fstype,
}

const KNOWN: &[Known] = &[
    Known { name: "proc", criu: Fstype::Proc },
    Known { name: "sysfs", criu: Fstype::Sysfs },
    Known { name: "devtmpfs", criu: Fstype::Devtmpfs },
    Known { name: "binfmt_misc", criu: Fstype::BinfmtMisc },
    Known { name: "tmpfs", criu: Fstype::Tmpfs },
    Known { name: "devpts", criu: Fstype::Devpts },
    Known { name: "pstore", criu: Fstype::Pstore },
    Known { name: "securityfs", criu: Fstype::Securityfs },
    Known { name: "fusectl", criu: Fstype::Fusectl },
    Known { name: "debugfs", criu: Fstype::Debugfs },
    Known { name: "cgroup", criu: Fstype::Cgroup },
    Known { name: "mqueue", criu: Fstype::Mqueue },
    Known { name: "tracefs", criu: Fstype::Tracefs },
    Known { name: "cgroup2", criu: Fstype::Cgroup2 },
];

/// The kernel's name of a file system that can be made anew.
pub fn file_system_name(fstype: u32) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.criu as u32 == fstype).map(|known| known.name)
}

/// CRIU's number of a type; 0 for one that it does not know.
fn fstype(name: &str) -> u32 {
    if name == "overlay" {
        return Fstype::Overlayfs as u32;
    }
    KNOWN
        .iter()
        .find(|known| known.name == name)
        .map_or(Fstype::Unsupported as u32, |known| known.criu as u32)
}

/// The message of a mount. `own_devpts` is false for the devpts of the host, which is not made anew.
pub fn entry(mount: &Mount, ext_key: Option<String>, own_devpts: bool) -> MntEntry {
    let mut flags = mount.flags();
    if mount.shared != 0 {
        flags |= libc::MS_SHARED;
    }
    if mount.master != 0 {
        flags |= libc::MS_SLAVE;
    }
    if mount.unbindable {
        flags |= libc::MS_UNBINDABLE;
    }
    let mut options: Vec<&str> = mount
        .super_options
        .iter()
        .map(String::as_str)
        .filter(|o| !matches!(*o, "rw" | "ro"))
        .collect();
    let kind = fstype(&mount.fstype);
    if kind == Fstype::Devpts as u32 && own_devpts {
        options.push("newinstance");
    }
    MntEntry {
        fstype: kind,
        mnt_id: mount.id,
        root_dev: mount.device_word(),
        parent_mnt_id: mount.parent,
        flags: flags as u32,
        root: mount.root.clone(),
        mountpoint: mount.mountpoint.clone(),
        source: mount.source.clone(),
        options: options.join(","),
        shared_id: Some(mount.shared),
        master_id: Some(mount.master),
        sb_flags: Some(u32::from(mount.super_read_only())),
        ext_key,
        ..MntEntry::default()
    }
}

/// How a restore gets at a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The root that the caller gives.
    Root,
    /// From the host, under this key.
    External(String),
    /// The host's devpts.
    HostDevpts,
    /// A new file system.
    Fresh,
    /// The group directory that stands for the tree's own: version 1 without a cgroup namespace.
    CgroupDir,
    /// A piece of another mount: its index, and the path below its root.
    Bind(usize, String),
}

/// Why a mount cannot be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uncarried {
    /// Its directory was removed.
    Deleted,
    /// Another kind of file system, and not a piece of a carried mount.
    FileSystem,
    /// It is mounted on nothing that is there.
    NoParent,
    /// There is no mount at `/`, or several.
    NoRoot,
    /// Another one is mounted at the same place of the same mount.
    SamePlace,
}

/// The path of `root` below `top`, empty for the same.
fn below(root: &str, top: &str) -> Option<String> {
    let below = Path::new(root).strip_prefix(top).ok()?;
    Some(below.to_string_lossy().into_owned())
}

/// The key of an external mount.
fn external_key(entry: &MntEntry) -> Option<String> {
    // Before keys there was a flag, and the root was the key.
    entry.ext_key.clone().or_else(|| entry.ext_mount.unwrap_or(false).then(|| entry.root.clone()))
}

/// The index of the root of a list of mounts.
pub fn root_of(entries: &[MntEntry]) -> Option<usize> {
    let outside = |e: &MntEntry| !entries.iter().any(|other| other.mnt_id == e.parent_mnt_id);
    let mut roots = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| e.mountpoint == "/" && (outside(e) || e.parent_mnt_id == e.mnt_id));
    let (index, _) = roots.next()?;
    roots.next().is_none().then_some(index)
}

/// Where each mount comes from, or why it cannot be carried.
pub fn sources(entries: &[MntEntry]) -> Vec<Result<Source, Uncarried>> {
    let root = root_of(entries);
    let mut sources: Vec<Option<Result<Source, Uncarried>>> = Vec::with_capacity(entries.len());
    // First those that need no other mount.
    for (index, entry) in entries.iter().enumerate() {
        let parent = |e: &&MntEntry| e.mnt_id == entry.parent_mnt_id;
        let twin = |e: &MntEntry| {
            e.parent_mnt_id == entry.parent_mnt_id && e.mountpoint == entry.mountpoint
        };
        sources.push(if Some(index) == root {
            Some(Ok(Source::Root))
        } else if root.is_none() {
            Some(Err(Uncarried::NoRoot))
        } else if entries.iter().find(parent).is_none_or(|p| {
            p.mnt_id == entry.mnt_id || below(&entry.mountpoint, &p.mountpoint).is_none()
        }) {
            Some(Err(Uncarried::NoParent))
        } else if entries[..index].iter().any(twin) {
            Some(Err(Uncarried::SamePlace))
        } else if let Some(key) = external_key(entry) {
            Some(Ok(Source::External(key)))
        } else if entry.deleted.unwrap_or(false) || entry.root.ends_with("//deleted") {
            Some(Err(Uncarried::Deleted))
        } else if entry.fstype == Fstype::Devpts as u32
            && !entry.options.split(',').any(|o| o == "newinstance")
        {
            Some(Ok(Source::HostDevpts))
        } else if entry.fstype == Fstype::Cgroup as u32 && entry.root != "/" {
            Some(Ok(Source::CgroupDir))
        } else {
            None
        });
    }
    // One mount of each file system is made anew: the last in the images is the first that was
    // mounted.
    for index in (0..entries.len()).rev() {
        let entry = &entries[index];
        if sources[index].is_some() || entry.root != "/" {
            continue;
        }
        let same = |other: usize| {
            entries[other].root_dev == entry.root_dev && sources[other] == Some(Ok(Source::Fresh))
        };
        if file_system_name(entry.fstype).is_some() && !(0..entries.len()).any(same) {
            sources[index] = Some(Ok(Source::Fresh));
        }
    }
    // The rest are pieces of those.
    (0..entries.len())
        .map(|index| {
            let entry = &entries[index];
            sources[index].clone().unwrap_or_else(|| {
                let anchors = (0..entries.len()).filter(|other| {
                    entries[*other].root_dev == entry.root_dev
                        && matches!(sources[*other], Some(Ok(_)))
                });
                // A new file system before a host's directory: it is the tree's own.
                let found = anchors
                    .filter_map(|other| Some((other, below(&entry.root, &entries[other].root)?)))
                    .min_by_key(|(other, _)| sources[*other] != Some(Ok(Source::Fresh)));
                found.map(|(other, path)| Source::Bind(other, path)).ok_or(Uncarried::FileSystem)
            })
        })
        .collect()
}

#[cfg(test)]
pub mod samples {
    use arctern_sys::proc::mountinfo;

    use super::*;

    /// The messages of a mountinfo text, newest mount first as CRIU writes them.
    pub fn entries(text: &str, external: &[(&str, &str)]) -> Vec<MntEntry> {
        let key = |m: &Mount| {
            external.iter().find(|(path, _)| *path == m.mountpoint).map(|(_, k)| (*k).to_owned())
        };
        let mounts = mountinfo::parse(text).unwrap();
        mounts.iter().rev().map(|m| entry(m, key(m), true)).collect()
    }

    /// A container of Podman's with runc.
    pub const CONTAINER: &str = "\
165 135 0:59 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
167 165 0:57 /img /data rw,relatime - tmpfs tmpfs rw
169 165 0:68 / /scratch rw,nosuid,nodev,relatime - tmpfs tmpfs rw
168 165 0:69 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
170 165 0:70 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
171 165 0:71 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
172 170 0:72 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
173 170 0:66 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
174 165 0:56 /run/resolv.conf /etc/resolv.conf rw,relatime - tmpfs tmpfs rw
179 171 0:38 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
136 168 0:69 /bus /proc/bus ro,nosuid,nodev,noexec,relatime - proc proc rw
140 168 0:73 / /proc/acpi ro,relatime - tmpfs tmpfs ro,size=4k,nr_inodes=1
141 168 0:70 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
155 171 0:73 / /sys/firmware ro,relatime - tmpfs tmpfs ro,size=4k,nr_inodes=1
";

    /// What the caller keeps outside of it.
    pub const CONTAINER_EXTERNALS: &[(&str, &str)] = &[
        ("/data", "/data"),
        ("/etc/resolv.conf", "/etc/resolv.conf"),
        ("/proc/keys", "/dev/null"),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_criu_writes_them() {
        let entries = samples::entries(samples::CONTAINER, samples::CONTAINER_EXTERNALS);
        let find = |path: &str| entries.iter().find(|e| e.mountpoint == path).unwrap();
        assert_eq!(entries[0].mountpoint, "/sys/firmware", "newest first");
        let dev = find("/dev");
        assert_eq!((dev.fstype, dev.flags, dev.root_dev), (5, 0x100_0002, 70));
        assert_eq!(dev.options, "size=65536k,mode=755");
        let pts = find("/dev/pts");
        assert_eq!(pts.options, "gid=5,mode=620,ptmxmode=666,newinstance");
        assert_eq!(pts.flags, 0x20_000a);
        let sys = find("/sys");
        assert_eq!((sys.flags, sys.sb_flags), (0x20_000f, Some(1)));
        assert_eq!(find("/proc/keys").ext_key.as_deref(), Some("/dev/null"));
        assert_eq!(find("/").fstype, 17);
    }

    #[test]
    fn every_mount_of_a_container_has_a_source() {
        let entries = samples::entries(samples::CONTAINER, samples::CONTAINER_EXTERNALS);
        let sources = sources(&entries);
        let of = |path: &str| {
            let index = entries.iter().position(|e| e.mountpoint == path).unwrap();
            match sources[index].clone().unwrap() {
                Source::Bind(from, path) => format!("{} of {}", path, entries[from].mountpoint),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(of("/"), "Root");
        assert_eq!(of("/data"), "External(\"/data\")");
        assert_eq!(of("/proc"), "Fresh");
        assert_eq!(of("/proc/bus"), "bus of /proc");
        assert_eq!(of("/proc/acpi"), "Fresh", "the older of the two");
        assert_eq!(of("/sys/firmware"), " of /proc/acpi");
        assert_eq!(of("/sys/fs/cgroup"), "Fresh");
    }

    #[test]
    fn a_directory_of_the_host_is_not_carried_unless_it_is_named() {
        let entries = samples::entries(samples::CONTAINER, &[]);
        let sources = sources(&entries);
        let refused: Vec<&str> = entries
            .iter()
            .zip(&sources)
            .filter(|(_, source)| **source == Err(Uncarried::FileSystem))
            .map(|(entry, _)| entry.mountpoint.as_str())
            .collect();
        assert_eq!(refused, ["/etc/resolv.conf", "/data"]);
        let keys = entries.iter().position(|e| e.mountpoint == "/proc/keys").unwrap();
        assert!(matches!(&sources[keys], Ok(Source::Bind(_, path)) if path == "null"));
    }

    #[test]
    fn hostile_lists_are_told_apart() {
        let mut entries = samples::entries(samples::CONTAINER, samples::CONTAINER_EXTERNALS);
        let bus = entries.iter().position(|e| e.mountpoint == "/proc/bus").unwrap();
        entries[bus].parent_mnt_id = 4711;
        assert_eq!(sources(&entries)[bus], Err(Uncarried::NoParent));
        entries[bus].parent_mnt_id = entries[bus].mnt_id;
        assert_eq!(sources(&entries)[bus], Err(Uncarried::NoParent));
        let second = MntEntry { mnt_id: 9999, ..entries[0].clone() };
        entries.push(second);
        assert_eq!(sources(&entries).last(), Some(&Err(Uncarried::SamePlace)));
        entries.retain(|e| e.mountpoint != "/");
        assert!(sources(&entries).iter().all(|s| *s == Err(Uncarried::NoRoot)));
    }
}
