//! What the mounts of a confined tree may not be.
//!
//! A program without CAP_SYS_ADMIN cannot change its mounts, so that those of the images are those
//! that the container was made with: the host's file systems are only the named ones, what shows
//! the kernel's own state is read-only and hidden where the container has it so.

use std::path::Path;

use arctern_image::messages::{Fstype, MntEntry};

use super::build::MountRestore;
use super::plan::Plan;
use super::table::Source;
use crate::confinement::{Confinement, SYS_ADMIN};
use crate::error::Refusal;
use crate::restore_context::subject;

/// File systems that a container has anew.
const ALLOWED: &[Fstype] = &[
    Fstype::Proc,
    Fstype::Sysfs,
    Fstype::Tmpfs,
    Fstype::Devpts,
    Fstype::Mqueue,
    Fstype::Cgroup,
    Fstype::Cgroup2,
];

/// File systems that show the state of the kernel. Those of control groups show the tree's own groups
/// only, since it has a cgroup namespace, and are writable in containers of version 1.
const KERNELS: &[Fstype] = &[Fstype::Proc, Fstype::Sysfs];

const READ_ONLY: u64 = libc::MS_RDONLY;

const REMEDY: &str = "allow it with --cap-add SYS_ADMIN or --trust, if you trust the archive";

impl MountRestore {
    /// Refuses mounts that the tree could not have.
    pub fn check_confined(&self, confinement: &Confinement, refusals: &mut Vec<Refusal>) {
        let there = |path: &str| Path::new(path).exists();
        for (path, cause) in beyond(&self.plan, confinement, &there) {
            refusals.push(Refusal {
                subject: subject(self.task.pid, &self.task.comm, format!("mount {path}")),
                cause: cause.to_owned(),
                remedy: REMEDY.into(),
            });
        }
    }
}

/// Mount points and what is wrong with them. `there` says whether the host has a path.
fn beyond(
    plan: &Plan,
    confinement: &Confinement,
    there: &dyn Fn(&str) -> bool,
) -> Vec<(String, &'static str)> {
    let mut beyond = Vec::new();
    for mount in &plan.mounts {
        let entry = &plan.entries[mount.index];
        let mut refuse = |cause: &'static str| beyond.push((entry.mountpoint.clone(), cause));
        match &mount.source {
            Source::HostDevpts => refuse("it shows the terminals of the host"),
            Source::External(key) => {
                let known = confinement.mounts.iter().find(|known| known.path == *key);
                match known {
                    Some(known) if known.path != entry.mountpoint => {
                        refuse("it is not where the container has it");
                    }
                    Some(known) if known.flags & !u64::from(entry.flags) != 0 => {
                        refuse("it lacks flags that the container has it with, read-only perhaps");
                    }
                    // Without one it is refused as such.
                    _ => {}
                }
            }
            _ if confinement.allows(SYS_ADMIN) => {}
            Source::Fresh if !is_one_of(entry, ALLOWED) => {
                refuse("no container has this file system");
            }
            Source::Fresh | Source::CgroupDir | Source::Bind(..) => {
                let writable = u64::from(entry.flags) & READ_ONLY == 0;
                let proc = entry.fstype == Fstype::Proc as u32;
                let top = mount.source == Source::Fresh && entry.mountpoint == "/proc";
                if proc && mount.source == Source::Fresh && !top {
                    refuse("proc belongs at /proc, where parts of it are hidden");
                } else if writable && !top && is_one_of(entry, KERNELS) {
                    refuse("it lets the kernel's settings be changed: it is not read-only");
                }
            }
            Source::Root => {}
        }
    }
    if confinement.allows(SYS_ADMIN) {
        return beyond;
    }
    let lists = [
        (&confinement.hidden, true, "it is hidden in the container and not in the images"),
        (&confinement.read_only, false, "it is read-only in the container and not in the images"),
    ];
    for (paths, hides, cause) in lists {
        let open = paths.iter().filter(|path| there(path) && !is_covered(plan, path, hides));
        beyond.extend(open.map(|path| (path.clone(), cause)));
    }
    beyond
}

fn is_one_of(entry: &MntEntry, list: &[Fstype]) -> bool {
    list.iter().any(|kind| *kind as u32 == entry.fstype)
}

/// Whether a path is covered by a mount that is on the file system that the path is of: one below
/// it would be covered itself. What `hides` is of another file system, the rest is read-only.
fn is_covered(plan: &Plan, path: &str, hides: bool) -> bool {
    plan.mounts.iter().any(|mount| {
        let entry = &plan.entries[mount.index];
        let Some((parent, _)) = &mount.place else { return false };
        let on = &plan.entries[*parent];
        let whole = matches!(on.mountpoint.as_str(), "/proc" | "/sys");
        entry.mountpoint == path
            && whole
            && is_top(plan, *parent)
            && match hides {
                true => !is_one_of(entry, KERNELS),
                false => u64::from(entry.flags) & READ_ONLY != 0,
            }
    })
}

/// Whether no other mount lies on the root of this one.
fn is_top(plan: &Plan, index: usize) -> bool {
    let at = &plan.entries[index].mountpoint;
    !plan.mounts.iter().any(|mount| {
        mount.index != index
            && plan.entries[mount.index].mountpoint == *at
            && mount.place.as_ref().is_some_and(|(parent, _)| *parent == index)
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::samples;
    use super::*;
    use crate::confinement::ConfinedMount;

    /// What the sample's container has.
    fn confinement() -> Confinement {
        let read_only = ["/proc/bus"].map(str::to_owned).to_vec();
        let hidden = ["/proc/acpi", "/proc/keys", "/sys/firmware"].map(str::to_owned).to_vec();
        let mounts = ["/data", "/etc/resolv.conf", "/proc/keys"]
            .map(|path| ConfinedMount { path: path.to_owned(), flags: 0 });
        Confinement { read_only, hidden, mounts: mounts.to_vec(), ..Confinement::default() }
    }

    fn refused(change: impl Fn(&mut Vec<MntEntry>), confinement: &Confinement) -> Vec<String> {
        let keys = [
            ("/data", "/data"),
            ("/etc/resolv.conf", "/etc/resolv.conf"),
            ("/proc/keys", "/proc/keys"),
        ];
        let mut entries = samples::entries(samples::CONTAINER, &keys);
        change(&mut entries);
        let plan = Plan::new(entries, &[]).unwrap();
        let found = beyond(&plan, confinement, &|_| true);
        found.into_iter().map(|(path, cause)| format!("{path}: {cause}")).collect()
    }

    fn find<'a>(entries: &'a mut [MntEntry], path: &str) -> &'a mut MntEntry {
        entries.iter_mut().find(|e| e.mountpoint == path).unwrap()
    }

    #[test]
    fn the_mounts_of_a_container_pass() {
        assert_eq!(refused(|_| (), &confinement()), Vec::<String>::new());
    }

    #[test]
    fn what_shows_or_changes_the_host_is_refused() {
        let one = |change: &dyn Fn(&mut Vec<MntEntry>)| refused(change, &confinement()).join("\n");
        let text = one(&|e| find(e, "/sys").flags &= !1);
        assert!(text.contains("/sys: it lets the kernel's settings"), "{text}");
        let text = one(&|e| find(e, "/scratch").fstype = Fstype::Debugfs as u32);
        assert!(text.contains("no container has this file system"), "{text}");
        let text = one(&|e| find(e, "/dev/pts").options = "gid=5".to_owned());
        assert!(text.contains("terminals of the host"), "{text}");
        let text = one(&|e| find(e, "/proc/bus").flags &= !1);
        assert!(text.contains("/proc/bus: it is read-only in the container"), "{text}");
        let text = one(&|e| e.retain(|m| m.mountpoint != "/proc/acpi"));
        assert!(text.contains("/proc/acpi: it is hidden in the container"), "{text}");
        let text = one(&|e| find(e, "/proc/bus").mountpoint = "/proc/elsewhere".to_owned());
        assert!(text.contains("/proc/bus: it is read-only"), "{text}");
        let text = one(&|e| {
            let root = find(e, "/").mnt_id;
            let id = find(e, "/proc").mnt_id;
            let second = MntEntry { mnt_id: 9000, root_dev: 999, ..find(e, "/proc").clone() };
            e.push(MntEntry { parent_mnt_id: root, mountpoint: "/p".to_owned(), ..second.clone() });
            e.push(MntEntry { mnt_id: 9001, root_dev: 998, parent_mnt_id: id, ..second });
        });
        assert!(text.contains("/p: proc belongs at /proc"), "{text}");
        assert!(text.contains("/proc/bus: it is read-only in the container"), "{text}");
    }

    #[test]
    fn external_mounts_keep_their_place_and_flags() {
        let mut confinement = confinement();
        confinement.mounts[0].flags = READ_ONLY;
        let text = refused(|_| (), &confinement).join("\n");
        assert!(text.contains("/data: it lacks flags"), "{text}");
        confinement.mounts[0].flags = 0;
        let moved = refused(|e| find(e, "/data").mountpoint = "/etc".to_owned(), &confinement);
        assert!(moved[0].contains("not where the container has it"), "{moved:?}");
    }

    #[test]
    fn who_may_mount_has_what_it_likes() {
        let admin = Confinement { capabilities: 1 << SYS_ADMIN, ..confinement() };
        assert!(refused(|e| find(e, "/sys").flags &= !1, &admin).is_empty());
    }
}
