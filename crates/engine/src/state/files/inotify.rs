//! inotify.
//!
//! fdinfo gives each watch's number, mask, inode, device and file handle, and no path. The path is
//! found by opening the handle on a mount of that device; where the file system does not open
//! handles (overlayfs), among the paths of the tree's own open files. CRIU restores from the same
//! path.
//!
//! Watch numbers only grow, so restore adds and removes watches until the number comes up, and
//! drains the notices of the removals. Refused: unread events, which the kernel cannot be given
//! back, and watches whose file is not found.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arctern_image::messages::{FdTypes, FhEntry, FileEntry, InotifyFileEntry, InotifyWdEntry};
use arctern_sys::proc::fdinfo::InotifyWatch;
use arctern_sys::{fd, proc};

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::ghost::kernel_device;
use super::table::Opener;
use crate::error::{CaptureError, Refusal, Remedy, RestoreError};
use crate::tree::FrozenTask;

/// Words of a file handle in CRIU's images, at the least.
const HANDLE_WORDS: usize = 16;
/// Watches are numbered one by one; more would take too long.
const MAX_WD: u32 = 1 << 16;
/// Files looked at in search of a watched inode.
const MAX_SEARCH: usize = 100_000;

impl FileCollector {
    pub(super) fn inotify(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let unread = fd::readable(&d.file).map_err(d.failed("ask for its unread events"))?;
        if unread != 0 {
            refusals.push(d.refuse(
                format!("{unread} bytes of events wait to be read and cannot be put back"),
                Remedy::try_again("when the program has read them"),
            ));
            return Ok(None);
        }
        let id = self.new_id();
        let mut watches = Vec::with_capacity(d.info.inotify.len());
        for watch in &d.info.inotify {
            if watch.wd as u32 > MAX_WD {
                refusals.push(d.refuse(
                    format!(
                        "its watch has number {}; more than {MAX_WD} cannot be counted up to",
                        watch.wd
                    ),
                    "restart the program",
                ));
                return Ok(None);
            }
            let Some(path) = find(d.task(), watch) else {
                refusals.push(d.refuse(
                    format!(
                        "the path of watch {} (inode {}, device {:x}) cannot be found",
                        watch.wd, watch.ino, watch.device
                    ),
                    "remove the watch before the checkpoint",
                ));
                return Ok(None);
            };
            let Some(path) = path.to_str().map(str::to_owned) else {
                refusals.push(d.refuse("a watched path is not UTF-8", "rename the file"));
                return Ok(None);
            };
            let mut handle: Vec<u64> = watch
                .handle
                .chunks(8)
                .map(|chunk| {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u64::from_le_bytes(word)
                })
                .collect();
            handle.resize(handle.len().max(HANDLE_WORDS), 0);
            watches.push(InotifyWdEntry {
                id,
                i_ino: watch.ino,
                mask: watch.mask,
                ignored_mask: watch.ignored,
                s_dev: watch.device,
                wd: watch.wd as u32,
                f_handle: FhEntry {
                    bytes: watch.handle.len() as u32,
                    r#type: watch.handle_type as u32,
                    handle,
                    path: Some(path),
                    mnt_id: None,
                },
            });
        }
        // The kernel lists the latest first.
        watches.sort_by_key(|watch| watch.wd);
        Ok(Some(FileEntry {
            ify: Some(Box::new(InotifyFileEntry {
                id,
                flags: d.flags(),
                fown: d.fown.clone(),
                wd: watches,
            })),
            ..entry(FdTypes::Inotify, id)
        }))
    }
}

/// The path of a watched file, as the task sees it.
fn find(task: &FrozenTask, watch: &InotifyWatch) -> Option<PathBuf> {
    let root = proc::path(task.pid, "root");
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let is_it = |path: &Path| {
        nix::sys::stat::lstat(path).is_ok_and(|stat| {
            stat.st_ino == watch.ino && kernel_device(stat.st_dev) == watch.device
        })
    };
    let mounts = proc::read(task.pid, "mountinfo").ok()?;
    let points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = words.nth(2)?.split_once(':')?;
            let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
            let point = words.nth(1)?;
            (device == watch.device).then(|| PathBuf::from(unescape(point)))
        })
        .collect();
    for point in &points {
        if let Some(path) = fd::open_handle(&below(point), watch.handle_type, &watch.handle)
            .ok()
            .and_then(|file| link_of(&file))
            && is_it(&below(&path))
        {
            return Some(path);
        }
    }
    search(points, below, is_it)
}

/// Looks for the inode below the mount points, nearest first.
fn search(
    points: Vec<PathBuf>,
    below: impl Fn(&Path) -> PathBuf,
    is_it: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let mut queue: std::collections::VecDeque<PathBuf> = points.into();
    let mut seen = 0;
    while let Some(path) = queue.pop_front() {
        let here = below(&path);
        if is_it(&here) {
            return Some(path);
        }
        let Ok(entries) = std::fs::read_dir(&here) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_SEARCH {
                return None;
            }
            let child = path.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => queue.push_back(child),
                Ok(_) if is_it(&below(&child)) => return Some(child),
                _ => {}
            }
        }
    }
    None
}

fn link_of(file: &impl std::os::fd::AsRawFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// mountinfo writes blanks, tabs, line feeds and backslashes in octal.
fn unescape(text: &str) -> std::ffi::OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsStr::from_bytes(&bytes).to_owned()
}

pub(super) fn open(o: &mut Opener<'_>, inotify: &InotifyFileEntry) -> i32 {
    let flags = inotify.flags & libc::O_NONBLOCK as u32;
    o.create(libc::SYS_inotify_init1, &[flags.into()], "make the inotify descriptor")
}

/// Adds the watches under their numbers.
pub(super) fn watch(
    o: &mut Opener<'_>,
    fd: i32,
    inotify: &InotifyFileEntry,
) -> Result<(), RestoreError> {
    // Events, IN_EXCL_UNLINK, IN_ONESHOT; the kernel keeps bits of its own in the mask.
    const MASK: u32 = 0xfff | 0x0400_0000 | 0x8000_0000;
    let mut watches: Vec<&InotifyWdEntry> = inotify.wd.iter().collect();
    watches.sort_by_key(|watch| watch.wd);
    let mut next = 1;
    for watch in &watches {
        let Some(path) = watch.f_handle.path.as_deref() else {
            return Err(RestoreError::Inconsistent(format!(
                "watch {} of inotify descriptor {fd} has no path",
                watch.wd
            )));
        };
        if watch.wd < next || watch.wd > MAX_WD {
            return Err(RestoreError::Inconsistent(format!(
                "inotify descriptor {fd} has a watch with number {}",
                watch.wd
            )));
        }
        while next <= watch.wd {
            let path = o.c_string(path.as_bytes());
            let args = [fd.into(), path.into(), (watch.mask & MASK).into()];
            o.call(libc::SYS_inotify_add_watch, &args, "watch the file");
            if next < watch.wd {
                o.call(libc::SYS_inotify_rm_watch, &[fd.into(), next.into()], "pass over a number");
            }
            next += 1;
            o.item(format!("fd {fd} (inotify: {})", watch.f_handle.path()))?;
        }
    }
    if watches.last().is_some_and(|last| last.wd as usize != watches.len()) {
        drain(o, fd)?;
    }
    Ok(())
}

/// Reads away what the removed watches left behind.
fn drain(o: &mut Opener<'_>, fd: i32) -> Result<(), RestoreError> {
    let queue = o.fetch(fd)?;
    let mut buffer = vec![0; 1 << 16];
    while fd::readable(&queue).map_err(o.failed_here("ask for its events"))? != 0 {
        nix::unistd::read(&queue, &mut buffer)
            .map_err(|e| o.failed_here("read its events")(e.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mountinfo() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/a\\04"), "/a\\04");
        assert_eq!(unescape("\\"), "\\");
    }
}
