//! The mounts of a container: the kernel's file systems as Podman mounts them, the files of /etc
//! that we write, and what the user asked for.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};

use crate::config::{ContainerConfig, Volume};
use crate::error::Result;

/// The files that every container gets from us: names in the directory that [`crate::etc::write`]
/// fills, and where they are in the container. By the last one programs know that they are in one.
const OWN_FILES: &[(&str, &str)] = &[
    ("resolv.conf", "/etc/resolv.conf"),
    ("hosts", "/etc/hosts"),
    ("hostname", "/etc/hostname"),
    (crate::etc::CONTAINERENV, "/run/.containerenv"),
];

/// Where every container has file systems of the kernel.
const KERNELS: &[&str] =
    &["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup"];

/// Hidden from the container.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Read-only for the container.
pub const READONLY: &[&str] =
    &["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// All mounts in mounting order: parents before what is mounted below them.
pub fn mounts(config: &ContainerConfig, etc: &Path, volumes: &[Volume]) -> Result<Vec<Mount>> {
    let writable = if config.privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev")?,
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k")?,
        mount("/sys", "sysfs", "sysfs", &format!("nosuid,noexec,nodev,{writable}"))?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev")?,
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k")?,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &format!("nosuid,noexec,nodev,relatime,{writable}"),
        )?,
    ];
    if config.read_only {
        // A program can hardly run without these; Podman adds them as well.
        for path in ["/run", "/tmp", "/var/tmp"] {
            if !is_user_mount(config, Path::new(path)) {
                list.push(mount(path, "tmpfs", "tmpfs", "nosuid,nodev,mode=1777")?);
            }
        }
    }
    for (name, destination) in OWN_FILES {
        let destination = Path::new(destination);
        if !is_user_mount(config, destination) {
            list.push(bind(&etc.join(name), destination, &["rprivate".to_owned()])?);
        }
    }
    let mut asked = Vec::new();
    for tmpfs in &config.tmpfs {
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).into();
        if !tmpfs.options.iter().any(|o| o == "exec") {
            options.push("noexec".to_owned());
        }
        options.extend(tmpfs.options.iter().filter(|o| *o != "exec").cloned());
        asked.push(
            MountBuilder::default()
                .destination(&tmpfs.destination)
                .typ("tmpfs")
                .source("tmpfs")
                .options(options)
                .build()?,
        );
    }
    for volume in config.volumes.iter().chain(volumes) {
        asked.push(volume_mount(volume)?);
    }
    asked.sort_by_key(|m| m.destination().components().count());
    list.extend(asked);
    if let Some(init) = &config.init_path {
        list.push(bind(
            init,
            Path::new(super::extras::INIT),
            &["ro".to_owned(), "rprivate".to_owned()],
        )?);
    }
    Ok(list)
}

/// Whether the user mounts something there.
fn is_user_mount(config: &ContainerConfig, path: &Path) -> bool {
    config.tmpfs.iter().any(|t| t.destination == path)
        || config.volumes.iter().any(|v| v.destination == path)
        || config.named_volumes.iter().any(|v| v.destination == path)
}

fn volume_mount(volume: &Volume) -> Result<Mount> {
    // `z`, `Z`: SELinux relabelling, which nothing here needs.
    let mut options: Vec<String> = volume
        .options
        .iter()
        .filter(|o| !matches!(o.as_str(), "z" | "Z" | "bind" | "rbind"))
        .cloned()
        .collect();
    if !options.iter().any(|o| o.contains("private") || o.contains("slave") || o.contains("shared"))
    {
        options.push("rprivate".to_owned());
    }
    bind(&volume.source, &volume.destination, &options)
}

fn bind(source: &Path, destination: &Path, options: &[String]) -> Result<Mount> {
    let mut all = vec!["rbind".to_owned()];
    all.extend(options.iter().cloned());
    Ok(MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(all)
        .build()?)
}

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Result<Mount> {
    let options: Vec<String> = options.split(',').map(str::to_owned).collect();
    Ok(MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(options)
        .build()?)
}

/// Whether a mount at this path is the engine's own, so that another engine makes its own in place
/// of it.
pub fn is_own(destination: &Path) -> bool {
    OWN_FILES.iter().any(|(_, own)| destination == Path::new(own))
}

/// Whether a mount at this path is one of the kernel's file systems that every container has.
pub fn is_kernels(destination: &Path) -> bool {
    KERNELS.iter().any(|own| destination == Path::new(own))
}

/// The bind mounts of a runtime spec: what a checkpoint leaves outside its images.
pub fn binds(spec: &oci_spec::runtime::Spec) -> Vec<(PathBuf, PathBuf)> {
    spec.mounts()
        .iter()
        .flatten()
        .filter(|m| m.typ().as_deref() == Some("bind"))
        .filter_map(|m| Some((m.destination().clone(), m.source().clone()?)))
        .collect()
}
