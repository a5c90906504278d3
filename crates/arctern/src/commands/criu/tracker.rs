//! What goes on between two commands that dump the same tree: a process that keeps the descriptors by
//! which the kernel tells what was written.
//!
//! It is found by the tree's root process, through a file in [`DIR`]; the next command takes the
//! descriptors out of it and ends it. It ends by itself when the root process does, and with it ends
//! the tracking. Images name the tracking that began with them, so that a dump on top of others than the
//! last ones is noticed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use arctern_engine::tracking::{SavedTracking, Tracking};
use arctern_image::images::ImageDir;
use arctern_sys::Pid;
use arctern_sys::proc::stat;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use serde::{Deserialize, Serialize};

/// Where trackers are found, by the pid of the root process.
const DIR: &str = "/run/arctern/tracking";
/// In a directory of images: the id of the tracking that began with them.
const MARK: &str = "arctern-tracking";

/// What the file of a tracker says.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Same as in the images.
    id: String,
    pid: i32,
    started: u64,
    root_started: u64,
    /// Descriptors in the tracker.
    fds: Vec<i32>,
    tracking: SavedTracking,
}

/// A tracker that was ended, with what it kept. Dropped, the tracking ends.
pub struct Tracker {
    id: String,
    tracking: SavedTracking,
    fds: Vec<OwnedFd>,
}

impl Tracker {
    /// Ends the tracker of the tree under `root` and takes over what it kept; None if there is none.
    pub fn take(root: i32) -> Option<Tracker> {
        let file = file_of(root);
        let record: Record = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        let _ = fs::remove_file(&file);
        let handle = pidfd_open(pid(record.pid)?, PidfdFlags::empty()).ok()?;
        // Looked up after it was opened: this is the one that wrote the file.
        if started(record.pid)? != record.started {
            return None;
        }
        let fetch = |fd: &i32| pidfd_getfd(&handle, *fd, PidfdGetfdFlags::empty()).ok();
        let fds: Option<Vec<OwnedFd>> = record.fds.iter().map(fetch).collect();
        let _ = pidfd_send_signal(&handle, Signal::KILL);
        if started(root)? != record.root_started {
            return None;
        }
        Some(Tracker { id: record.id, tracking: record.tracking, fds: fds? })
    }

    /// What is known, if it was tracked since the dump in `images`.
    pub fn tracking_since(self, images: &Path) -> anyhow::Result<Option<Tracking>> {
        match fs::read_to_string(images.join(MARK)) {
            Ok(id) if id == self.id => {}
            _ => return Ok(None),
        }
        Ok(Some(Tracking::load(self.tracking, self.fds, &ImageDir::open(images)?)?))
    }

    /// Starts a process that keeps what is tracked since the dump in `images`.
    pub fn start(root: i32, tracking: Tracking, images: &Path) -> anyhow::Result<()> {
        use std::os::fd::AsRawFd;
        let what = "keep the tracking of written memory";
        let (tracking, fds) = tracking.save();
        for fd in &fds {
            fcntl_setfd(fd, FdFlags::empty()).context(what)?;
        }
        let child = Command::new("/proc/self/exe")
            .arg0("arctern-tracker")
            .args(["internal", "tracker", &root.to_string()])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(what)?;
        let (Some(pid), id) = (i32::try_from(child.id()).ok(), uuid().context(what)?) else {
            return Ok(());
        };
        let (Some(started), Some(root_started)) = (started(pid), started(root)) else {
            return Ok(()); // The tree is gone, and the tracker with it.
        };
        let fds = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let record = Record { id: id.clone(), pid, started, root_started, fds, tracking };
        let written = (|| {
            fs::create_dir_all(DIR)?;
            let (file, new) = (file_of(root), file_of(root).with_extension("new"));
            fs::write(&new, serde_json::to_vec(&record)?)?;
            fs::rename(new, file)?;
            fs::write(images.join(MARK), id)
        })();
        written.context(what).inspect_err(|_| {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                Signal::KILL,
            );
        })
    }
}

/// Runs as the tracker of the tree under `root`: its descriptors were inherited.
pub fn keep(root: i32) -> anyhow::Result<()> {
    let root_pid = pid(root).context("that is no pid")?;
    let handle = pidfd_open(root_pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(handle.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let own = i32::try_from(std::process::id())?;
    let record = fs::read(file_of(root)).ok();
    let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    if record.is_some_and(|record| record.pid == own) {
        fs::remove_file(file_of(root))?;
    }
    Ok(())
}

fn file_of(root: i32) -> PathBuf {
    Path::new(DIR).join(root.to_string())
}

fn pid(pid: i32) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid)
}

/// When a process began, in the kernel's own count.
fn started(pid: i32) -> Option<u64> {
    stat::read(Pid(pid)).ok().map(|stat| stat.start_time)
}

/// An id that no other tracking has.
fn uuid() -> std::io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
