//! Network namespaces that exist without a process: bind mounts of `/proc/thread-self/ns/net`.
//!
//! `unshare(2)` and `setns(2)` for network namespaces are per thread. What has to happen in another
//! one runs in a thread made for it that ends afterwards: nothing ever has to switch back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// What went wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the network namespace {path}")]
pub struct NetnsError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes a network namespace that stays until [`delete`], held by a bind mount on `path`.
///
/// # Errors
/// [`NetnsError`]; nothing stays behind then.
pub fn create(path: &Path) -> Result<OwnedFd, NetnsError> {
    let failed = |source: io::Error| NetnsError { action: "create", path: path.into(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    let made = in_thread(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        let current = "/proc/thread-self/ns/net";
        rustix::mount::mount_bind(current, path)?;
        open_file(Path::new(current))
    });
    match made {
        Ok(Ok(fd)) => Ok(fd),
        Ok(Err(e)) | Err(e) => {
            // The file is ours; that it cannot be removed now is less than the first error.
            let _ = std::fs::remove_file(path);
            Err(failed(e))
        }
    }
}

/// Opens a network namespace that [`create`] made.
///
/// # Errors
/// [`NetnsError`].
pub fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    open_file(path).map_err(|source| NetnsError { action: "open", path: path.into(), source })
}

/// Takes the bind mount and its file away; the namespace goes when its last process has. Absence is
/// no error.
///
/// # Errors
/// [`NetnsError`].
pub fn delete(path: &Path) -> Result<(), NetnsError> {
    let failed = |source: io::Error| NetnsError { action: "delete", path: path.into(), source };
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // INVAL: not mounted, for example after a crash between making the file and mounting.
        Ok(()) | Err(Errno::INVAL) | Err(Errno::NOENT) => {}
        Err(e) => return Err(failed(e.into())),
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Runs `work` in a thread inside a network namespace.
///
/// # Errors
/// Those of `setns(2)`, and of making a thread.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let result: io::Result<T> = in_thread(|| {
        nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })?;
    result
}

/// Whether two descriptors are the same namespace.
///
/// # Errors
/// Those of `fstat(2)`.
pub fn same(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
