//! Capture of mounts.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{Fstype, MntEntry};
use arctern_sys::mount::clone_mount;
use arctern_sys::namespace::{self, Kind};
use arctern_sys::proc::mountinfo::{self, Mount};
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, fstat};

use super::contents;
use super::table::{self, Source, Uncarried};
use crate::error::{CaptureError, Refusal};
use crate::options::External;
use crate::tree::FrozenTask;

/// The mounts of a tree.
#[derive(Debug)]
pub struct MountCollector {
    /// Newest first, as CRIU has them.
    entries: Vec<MntEntry>,
    /// The tmpfs whose contents are captured, by device number.
    tmpfs: HashMap<u32, OwnedFd>,
}

/// What a thread in the mount namespace found.
struct Inside {
    tmpfs: HashMap<u32, OwnedFd>,
    /// Indices of mounts that could not be reached.
    unreachable: Vec<usize>,
    /// Indices of message queue file systems with queues.
    queues: Vec<usize>,
    /// Whether the namespace's root is the task's.
    root_is_root: bool,
}

impl MountCollector {
    /// Looks at the mounts of `root`, the root task of the tree.
    pub fn collect(
        root: &FrozenTask,
        externals: &[External],
        refusals: &mut Vec<Refusal>,
    ) -> Result<Self, CaptureError> {
        let pid = root.pid;
        // Roots of cgroup mounts are shown relative to the reader's cgroup namespace.
        let mounts = namespace::inside(pid, &[Kind::Cgroup], || mountinfo::read(pid))
            .map_err(root.failed("mnt namespace", "read its mounts"))?;
        let host_pts = std::fs::metadata("/dev/pts").map(|m| device_word(m.dev())).ok();
        let mut entries: Vec<MntEntry> = mounts
            .iter()
            .rev()
            .map(|mount| {
                let own_devpts = Some(mount.device_word()) != host_pts;
                table::entry(mount, external_key(externals, mount), own_devpts)
            })
            .collect();
        // The root is the caller's at restore, whatever it was called.
        if let Some(index) = table::root_of(&entries) {
            entries[index].ext_key = None;
        }
        let sources = table::sources(&entries);
        for (entry, source) in entries.iter().zip(&sources) {
            if let Err(why) = source {
                let mount = mounts.iter().find(|mount| mount.id == entry.mnt_id);
                refusals.push(refusal(root, entry, mount, *why));
            }
        }
        let task_root = identity(&arctern_sys::proc::path(pid, "root/."))
            .map_err(root.failed("", "look at its root directory"))?;
        let inside = namespace::inside(pid, &[Kind::Mount], || look(&entries, &sources, task_root))
            .map_err(root.failed("mnt namespace", "look at its mounts"))?;
        if !inside.root_is_root {
            refusals.push(root.refuse(
                "mnt namespace",
                "its root directory is not the root of its mount namespace",
                "capture a tree that was not started in a chroot",
            ));
        }
        for index in inside.unreachable {
            refusals.push(root.refuse(
                format!("mount {}", entries[index].mountpoint),
                "its contents are hidden by a mount above it",
                "unmount what hides it",
            ));
        }
        for index in inside.queues {
            refusals.push(root.refuse(
                format!("mount {}", entries[index].mountpoint),
                "POSIX message queues are not carried",
                "remove the queues",
            ));
        }
        Ok(MountCollector { entries, tmpfs: inside.tmpfs })
    }

    /// The mounts, newest first.
    pub fn entries(&self) -> &[MntEntry] {
        &self.entries
    }

    /// Writes the mounts of the namespace with number `id`, and the contents of its tmpfs.
    pub fn write(&self, root: &FrozenTask, id: u64, images: &ImageDir) -> Result<(), CaptureError> {
        images.write_all(ImageKind::Mountpoints, id, &self.entries)?;
        for (device, mount) in &self.tmpfs {
            let file = images.create_file(ImageKind::TmpfsDev, u64::from(*device))?;
            contents::pack(mount, file)
                .map_err(root.failed("mnt namespace", "copy the contents of a tmpfs"))?;
        }
        Ok(())
    }
}

/// A stat(2) device number as mount messages have it.
fn device_word(dev: u64) -> u32 {
    (libc::major(dev) << 20) | libc::minor(dev)
}

fn external_key(externals: &[External], mount: &Mount) -> Option<String> {
    externals.iter().find_map(|external| match external {
        External::Mount { key, value } if *key == mount.mountpoint => Some(value.clone()),
        _ => None,
    })
}

fn refusal(root: &FrozenTask, entry: &MntEntry, mount: Option<&Mount>, why: Uncarried) -> Refusal {
    let fstype = mount.map_or("unknown", |mount| mount.fstype.as_str());
    let external = format!("keep it outside with --external mnt[{}]:NAME", entry.mountpoint);
    let (cause, remedy) = match why {
        Uncarried::Deleted => ("the mounted directory was removed".to_owned(), external),
        Uncarried::FileSystem => {
            (format!("{} of a {fstype} file system outside of the tree", entry.root), external)
        }
        Uncarried::NoParent => (
            "it is mounted on something that the process cannot see".to_owned(),
            "unmount it".to_owned(),
        ),
        Uncarried::NoRoot => (
            "the process's root directory is no mount point".to_owned(),
            "capture a tree that was not started in a chroot".to_owned(),
        ),
        Uncarried::SamePlace => {
            ("another mount is at the same place".to_owned(), "unmount one of them".to_owned())
        }
    };
    root.refuse(format!("mount {}", entry.mountpoint), cause, remedy)
}

/// What makes a directory itself: device and inode number.
fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Runs in the mount namespace of the tree. A thread that joins it starts at its root.
fn look(
    entries: &[MntEntry],
    sources: &[Result<Source, Uncarried>],
    task_root: (u64, u64),
) -> io::Result<Inside> {
    let mut inside = Inside {
        tmpfs: HashMap::new(),
        unreachable: Vec::new(),
        queues: Vec::new(),
        root_is_root: identity(Path::new("/"))? == task_root,
    };
    let mut covered = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if sources[index] != Ok(Source::Fresh) {
            continue;
        }
        if entry.fstype == Fstype::Mqueue as u32 {
            let queues =
                std::fs::read_dir(&entry.mountpoint).is_ok_and(|mut dir| dir.next().is_some());
            if queues {
                inside.queues.push(index);
            }
        }
        if entry.fstype == Fstype::Tmpfs as u32 {
            match directory_of(entries, entry)? {
                Some(fd) => drop(inside.tmpfs.insert(entry.root_dev, fd)),
                None => covered.push(index),
            }
        }
    }
    if covered.is_empty() {
        return Ok(inside);
    }
    // In a copy of the namespace the mounts on top can be taken off.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for index in covered {
        let entry = &entries[index];
        for hiding in hidden_by(entries, index) {
            // Fails if it went away together with one that hid another mount.
            nix::mount::umount2(hiding, MntFlags::MNT_DETACH).ok();
        }
        match directory_of(entries, entry)? {
            Some(fd) => drop(inside.tmpfs.insert(entry.root_dev, fd)),
            None => inside.unreachable.push(index),
        }
    }
    Ok(inside)
}

/// The root directory of a mount, with nothing mounted in it; None if its path leads to another
/// mount.
fn directory_of(entries: &[MntEntry], entry: &MntEntry) -> io::Result<Option<OwnedFd>> {
    let path = Path::new(&entry.mountpoint);
    // A private copy has no mounts in it. Taking one down again makes the kernel wait, so that it
    // is made only where there are some.
    let fd = if entries.iter().any(|other| other.parent_mnt_id == entry.mnt_id) {
        clone_mount(path)
    } else {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(path, flags, Mode::empty()).map_err(io::Error::from)
    };
    let fd = match fd {
        Ok(fd) => fd,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok((device_word(fstat(&fd)?.st_dev) == entry.root_dev).then_some(fd))
}

/// What to unmount, in order, before the path of a mount leads to it.
fn hidden_by(entries: &[MntEntry], index: usize) -> Vec<&str> {
    let by_id = |id: u32| entries.iter().position(|e| e.mnt_id == id);
    let mut chain = vec![index];
    while let Some(parent) = by_id(entries[chain[chain.len() - 1]].parent_mnt_id)
        && !chain.contains(&parent)
    {
        chain.push(parent);
    }
    let path = Path::new(&entries[index].mountpoint);
    let mut hiding = Vec::new();
    // From the root downwards.
    for &at in chain.iter().rev() {
        for (other, entry) in entries.iter().enumerate() {
            let on_it = entry.parent_mnt_id == entries[at].mnt_id && !chain.contains(&other);
            let in_the_way = path.starts_with(&entry.mountpoint)
                && Path::new(&entry.mountpoint).starts_with(&entries[at].mountpoint);
            if on_it && in_the_way {
                // Once for it, and once for each mount that is stacked on it.
                let stack = 1 + stacked(entries, entry);
                hiding.extend(std::iter::repeat_n(entry.mountpoint.as_str(), stack));
            }
        }
    }
    hiding
}

/// How many mounts are stacked on the root of a mount.
fn stacked(entries: &[MntEntry], entry: &MntEntry) -> usize {
    let mut at = entry;
    for count in 0..entries.len() {
        let above = entries.iter().find(|other| {
            other.parent_mnt_id == at.mnt_id
                && other.mnt_id != at.mnt_id
                && other.mountpoint == entry.mountpoint
        });
        match above {
            Some(above) => at = above,
            None => return count,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::super::table::samples;
    use super::*;

    #[test]
    fn what_hides_a_mount_is_found() {
        let text = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /m rw - tmpfs a rw\n\
                    3 2 0:3 / /m rw - tmpfs b rw\n4 3 0:4 / /m rw - tmpfs c rw\n\
                    5 4 0:5 / /m/n rw - tmpfs d rw\n6 1 0:6 / /m/deep rw - tmpfs e rw\n";
        let entries = samples::entries(text, &[]);
        let hidden = |id: u32| {
            let index = entries.iter().position(|e| e.mnt_id == id).unwrap();
            hidden_by(&entries, index)
        };
        assert_eq!(hidden(2), ["/m", "/m"]);
        assert_eq!(hidden(3), ["/m"]);
        assert!(hidden(4).is_empty() && hidden(5).is_empty() && hidden(1).is_empty());
        assert_eq!(hidden(6), ["/m", "/m", "/m"]);
    }
}
