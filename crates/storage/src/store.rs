//! The store on disk: layout, lock, temporary names, durable writes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use crate::error::StoreError;

/// Attaches the action and the path to an I/O error.
pub(crate) trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> AtPath<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::Io { action, path: path.to_owned(), source: e.into() })
    }
}

/// Version of the layout. A store of a newer version is refused.
const FORMAT: u32 = 1;

/// A store: everything of one host that is at rest.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    runroot: PathBuf,
}

/// The lock of one mutation; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Lock {
    _fd: OwnedFd,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, with volatile things (mount points)
    /// below `runroot`. Leftovers of commands that were killed are removed.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a directory cannot be made, [`StoreError::NewerFormat`].
    pub fn open(root: &Path, runroot: &Path) -> Result<Self, StoreError> {
        let absolute = |path: &Path| std::path::absolute(path).at("resolve", path);
        let store = Store { root: absolute(root)?, runroot: absolute(runroot)? };
        let version = store.root.join("version");
        match std::fs::read_to_string(&version) {
            Ok(text) => {
                // A damaged version file is treated as the oldest one: all versions are readable.
                let found = text.trim().parse().unwrap_or(FORMAT);
                if found > FORMAT {
                    return Err(StoreError::NewerFormat { path: version, found, known: FORMAT });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => store.initialise(&version)?,
            Err(e) => return Err(e).at("read", &version),
        }
        make_dir(&store.mounts_dir(), 0o700)?;
        store.sweep()?;
        Ok(store)
    }

    fn initialise(&self, version: &Path) -> Result<(), StoreError> {
        // Images have old set-user-id programs in them: they are nobody else's to run.
        make_dir(&self.root, 0o700)?;
        for (name, mode) in [
            ("blobs/sha256", 0o700),
            ("layers", 0o711),
            ("containers", 0o711),
            ("volumes", 0o711),
            ("checkpoints", 0o700),
            ("tmp", 0o700),
        ] {
            make_dir(&self.root.join(name), mode)?;
        }
        // Another command may be doing the same.
        let _lock = self.lock()?;
        match version.try_exists() {
            Ok(true) => Ok(()),
            _ => write_durably(version, format!("{FORMAT}\n").as_bytes()),
        }
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of volatile things.
    pub fn runroot(&self) -> &Path {
        &self.runroot
    }

    /// Where the checkpoint of a stopped container stays; made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::BadId`], [`StoreError::Io`].
    pub fn checkpoint_dir(&self, container: &str) -> Result<PathBuf, StoreError> {
        let dir = self.root.join("checkpoints").join(checked_id(container)?);
        make_dir(&dir, 0o700)?;
        Ok(dir)
    }

    /// Removes the checkpoint of a container. Absence is no error.
    ///
    /// # Errors
    /// [`StoreError::BadId`], [`StoreError::Io`].
    pub fn remove_checkpoint(&self, container: &str) -> Result<(), StoreError> {
        let dir = self.root.join("checkpoints").join(checked_id(container)?);
        self.discard(&dir)
    }

    pub(crate) fn blob(&self, hex: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(hex)
    }

    pub(crate) fn layer_dir(&self, hex: &str) -> PathBuf {
        self.root.join("layers").join(hex)
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn mounts_dir(&self) -> PathBuf {
        self.runroot.join("mounts")
    }

    /// Waits for the lock of mutations.
    pub(crate) fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.root.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).at("open", &path)?;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _fd: fd }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).at("lock", &path),
            }
        }
    }

    /// A new empty directory in `tmp`, removed when the value is dropped or, if we are killed, at
    /// the next [`Store::open`]. It is on the file system of the store, so that what was made in it
    /// can be renamed into place.
    pub(crate) fn scratch(&self) -> Result<Scratch, StoreError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Under the lock, so that no sweep runs between making and locking the directory.
        let _lock = self.lock()?;
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{n}", std::process::id());
            let path = self.root.join("tmp").join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e).at("make", &path),
            }
            let guard = open_dir(&path)?;
            rustix::fs::flock(&guard, FlockOperation::NonBlockingLockExclusive)
                .at("lock", &path)?;
            return Ok(Scratch { path, _guard: guard });
        }
    }

    /// Takes `path` out of its place: into `tmp`, in one rename. Absence is no error. The caller
    /// holds the lock, and lets it go before it clears the graves, which can take long.
    pub(crate) fn bury(&self, path: &Path, graves: &mut Vec<Scratch>) -> Result<(), StoreError> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let guard = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e).at("open", path),
        };
        // So that nobody else's sweep works on it too.
        rustix::fs::flock(&guard, FlockOperation::NonBlockingLockExclusive).at("lock", path)?;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let grave = self.root.join("tmp").join(format!("{}-{n}.gone", std::process::id()));
        // Of an earlier process with our number.
        remove_tree(&grave)?;
        std::fs::rename(path, &grave).at("remove", path)?;
        graves.push(Scratch { path: grave, _guard: guard });
        Ok(())
    }

    /// Removes `path` crash-safely. Absence is no error. The caller does not hold the lock.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        let mut graves = Vec::new();
        let lock = self.lock()?;
        self.bury(path, &mut graves)?;
        drop(lock);
        clear(graves)
    }

    /// Removes what killed commands left: everything in `tmp` that nobody has locked, and then what
    /// nothing refers to.
    fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        let mut entries = std::fs::read_dir(&tmp).at("list", &tmp)?.peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let lock = self.lock()?;
        let mut found = false;
        for entry in std::fs::read_dir(&tmp).at("list", &tmp)? {
            let path = entry.at("list", &tmp)?.path();
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e).at("open", &path),
            };
            if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
                tracing::debug!(path = %path.display(), "removing the leftover of a killed command");
                remove_tree(&path)?;
                found = true;
            }
        }
        if !found {
            return Ok(());
        }
        // It may have been killed between putting things in their places and referring to them.
        let graves = self.collect_garbage()?;
        drop(lock);
        clear(graves)
    }
}

/// A temporary directory of a running command.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _guard: OwnedFd,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), "temporary directory stays behind: {e}");
        }
    }
}

/// Deletes what was buried.
pub(crate) fn clear(graves: Vec<Scratch>) -> Result<(), StoreError> {
    graves.iter().try_for_each(|grave| remove_tree(&grave.path))
}

/// `id`, if it can be a file name.
pub(crate) fn checked_id(id: &str) -> Result<&str, StoreError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let starts = id.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if starts && id.len() <= 255 && id.chars().all(fine) {
        Ok(id)
    } else {
        Err(StoreError::BadId(id.to_owned()))
    }
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

/// Makes a directory and what is missing above it; `mode` is for the last one, if it is new.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).at("make", parent)?;
            }
            match std::fs::DirBuilder::new().mode(mode).create(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e).at("make", path),
                _ => Ok(()),
            }
        }
        Err(e) => Err(e).at("make", path),
    }
}

/// Removes a tree without following links. Absence is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    use std::os::fd::AsFd;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = match rustix::fs::open(
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e).at("open", parent),
    };
    crate::beneath::remove_at(parent.as_fd(), name).at("remove", path)
}

/// Writes a file so that after a crash either the old or the whole new content is there.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    // The lock is held, so that nobody else writes it; and who is killed leaves one file at most.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.at("write", &temporary)?;
    std::fs::rename(&temporary, path).at("rename into place", path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = open_dir(path)?;
    rustix::fs::fsync(&dir).at("sync", path)
}
