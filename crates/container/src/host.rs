//! One host: a pair of `--root` and `--runroot`, opened by every command.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::paths::{ContainerPaths, Paths};
use crate::process::{ProcessHandle, ProcessId, boot_id};
use crate::state::{Record, Status, Store};
use crate::time::Timestamp;
use crate::transfer::Phase;

/// An opened host.
#[derive(Debug)]
pub struct Host {
    /// Where everything is.
    pub paths: Paths,
    /// Images, layers and root file systems.
    pub images: arctern_storage::Store,
    pub(crate) store: Store,
    boot: String,
}

/// How a container ended: in the run directory until the database has it.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct ExitRecord {
    /// Exit code of init.
    pub code: i32,
    /// When it ended.
    pub finished: Timestamp,
}

impl ExitRecord {
    /// Of a container that was killed just now.
    pub(crate) fn killed() -> ExitRecord {
        ExitRecord { code: 137, finished: Timestamp::now() }
    }
}

impl Host {
    /// Opens a host and makes its directories if they are missing.
    pub fn open(paths: Paths) -> Result<Host> {
        use std::os::unix::fs::DirBuilderExt;
        for dir in [paths.root.join("containers"), paths.runroot.join("containers")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(&dir)
                .map_err(Error::io("create", &dir))?;
        }
        let images = arctern_storage::Store::open(&paths.storage(), &paths.runroot.join("storage"))
            .map_err(Error::storage)?;
        let store = Store::open(&paths.database())?;
        Lock::make(&paths.births())?;
        Ok(Host { paths, images, store, boot: boot_id() })
    }

    /// The id of this boot.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// A container by name, id or beginning of an id, as it really is.
    pub fn find(&mut self, name_or_id: &str) -> Result<Record> {
        let id = self.store.resolve(name_or_id)?;
        self.read(&id)?.ok_or_else(|| Error::NoSuchContainer(name_or_id.to_owned()))
    }

    /// The id of the container that was created last.
    pub fn latest(&self) -> Result<String> {
        self.store.latest()?.ok_or(Error::NoContainers)
    }

    /// Takes the lock of a container and then reads it: what is read holds until the lock goes.
    pub fn find_locked(&mut self, name_or_id: &str) -> Result<(Record, Lock)> {
        let id = self.store.resolve(name_or_id)?;
        let gone = || Error::NoSuchContainer(name_or_id.to_owned());
        let path = self.paths.container(&id).lock();
        let lock = match Lock::wait(&path) {
            // Another command is removing it, or was killed while it did.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let births = self.births()?;
                if self.store.get(&id)?.is_none() {
                    return Err(gone());
                }
                self.make_dirs(&id)?;
                drop(births);
                Lock::wait(&path)?
            }
            other => other?,
        };
        let record = self.store.get(&id)?.ok_or_else(gone)?;
        let record = self.settle(record)?.ok_or_else(gone)?;
        self.sweep(&record)?;
        Ok((record, lock))
    }

    /// All containers as they really are, oldest first.
    pub fn list(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        self.mend_locks()?;
        for record in self.store.list()? {
            if self.is_unfinished(&record) || self.has_leftovers(&record) {
                records.extend(self.read(&record.config.id)?);
            } else {
                records.push(self.seen(record));
            }
        }
        Ok(records)
    }

    /// The network locks of this host, by address.
    pub fn locks(&self) -> Result<BTreeMap<Ipv4Addr, arctern_net::Lock>> {
        crate::network::locks(&self.paths)
    }

    /// Gives up the network locks whose time is over, and what only they needed.
    pub(crate) fn end_expired_locks(&mut self) -> Result<()> {
        crate::network::end_expired_locks(&self.paths)?;
        if self.store.is_empty()? {
            crate::network::remove_unused(&self.paths)?;
        }
        Ok(())
    }

    /// Opens locks that should not stand any more: their time is over, or the command that made one
    /// was killed and its container goes on.
    fn mend_locks(&mut self) -> Result<()> {
        let locks = self.locks()?;
        if locks.values().any(arctern_net::Lock::expired) {
            self.end_expired_locks()?;
        }
        for lock in locks.values().filter(|lock| !lock.kept) {
            let path = self.paths.container(&lock.container).lock();
            if let Ok(Some(_lock)) = Lock::try_take(&path)
                && let Some(record) = self.store.get(&lock.container)?
            {
                self.settle(record)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, id: &str) -> Result<Option<Record>> {
        let Some(record) = self.store.get(id)? else { return Ok(None) };
        if !self.is_unfinished(&record) && !self.has_leftovers(&record) {
            return Ok(Some(self.seen(record)));
        }
        let path = self.paths.container(id).lock();
        if record.status == Status::Restoring && !path.exists() {
            // Its removal was cut off, by a disk that was full or by the death of the command: it goes on.
            let _births = self.births()?;
            if self.store.get(id)?.is_none() {
                return Ok(None);
            }
            self.make_dirs(id)?;
        }
        // Whoever holds the lock is at work on it; then what is stored is shown as it is.
        let Ok(Some(_lock)) = Lock::try_take(&path) else {
            return Ok(Some(self.seen(record)));
        };
        let Some(record) = self.store.get(id)? else { return Ok(None) };
        let settled = self.settle(record)?;
        if let Some(record) = &settled {
            self.sweep(record)?;
        }
        Ok(settled)
    }

    /// A record with the status that the kernel confirms.
    fn seen(&self, mut record: Record) -> Record {
        if record.status == Status::Checkpointed && self.init(&record).is_some() {
            // A checkpoint is being finished, or its command was killed before it stopped anything.
            record.status = Status::Running;
        }
        if record.status == Status::Running && self.init(&record).is_none() {
            record.status = Status::Exited;
            if let Some(exit) = self.exit_record(&record.config.id) {
                record.exit_code = Some(exit.code);
                record.finished_at = Some(exit.finished);
            }
        }
        record
    }

    /// The container's init, if it runs.
    #[must_use]
    pub fn init(&self, record: &Record) -> Option<ProcessHandle> {
        (record.boot == self.boot).then_some(record.init)?.and_then(|p| p.open())
    }

    /// Whether a container has ended, or is about to: while its processes are being killed its init
    /// is the last.
    pub(crate) fn has_ended(&self, record: &Record) -> bool {
        let soon = Some(Duration::from_millis(500));
        self.init(record).is_none_or(|init| init.wait(soon).unwrap_or(false))
    }

    /// Its shim, if that runs.
    pub(crate) fn shim_of(&self, record: &Record) -> Option<ProcessHandle> {
        (record.boot == self.boot).then_some(record.shim)?.and_then(|p| p.open())
    }

    /// Whether a dead shim left something to clean up.
    pub(crate) fn is_unfinished(&self, record: &Record) -> bool {
        if record.status == Status::Migrating {
            // Its command holds its lock, or is gone.
            return true;
        }
        let unfinished = matches!(record.status, Status::Running | Status::Restoring);
        let claims = unfinished || record.shim.is_some();
        claims && self.shim_of(record).is_none() && self.init(record).is_none()
    }

    /// Makes the record true. The caller holds the lock. None when the container is gone, as `--rm`
    /// ones are after their end.
    pub(crate) fn settle(&mut self, record: Record) -> Result<Option<Record>> {
        if self.init(&record).is_some() {
            if record.status == Status::Migrating {
                let marker = self.migration(&record);
                return match marker.map(|marker| marker.phase) {
                    // Only the other host knows: `migrate --resolve`.
                    Some(Phase::Committed) => Ok(Some(record)),
                    _ => self.go_on(&record),
                };
            }
            // Whoever locked it was killed before it stopped the container.
            crate::network::end_lock(&self.paths, &record.config)?;
            if record.status == Status::Checkpointed {
                // The command that made the checkpoint was killed before it stopped the container. It
                // goes on, so the images, if they have their name yet, are swept.
                return self.store.update(&record.config.id, |r| {
                    r.status = Status::Running;
                    r.checkpointed_at = None;
                });
            }
            return Ok(Some(record));
        }
        if let Some(shim) = self.shim_of(&record) {
            // Init has ended and its shim is cleaning up.
            let _ = shim.wait(Some(Duration::from_secs(30)));
        }
        // A shim writes the end down before it ends itself, without this lock: what is read now is final.
        let Some(record) = self.store.get(&record.config.id)? else { return Ok(None) };
        if !self.is_unfinished(&record) {
            return Ok(Some(record));
        }
        if record.status == Status::Restoring && self.keep_arrived(&record)? {
            return self.store.get(&record.config.id);
        }
        if record.status == Status::Restoring {
            // The command that restored it was killed half-way.
            self.teardown(&record.config.id)?;
            self.forget_restore(&record.config.id)?;
            return Ok(None);
        }
        let ran = matches!(record.status, Status::Running | Status::Migrating);
        if ran || record.shim.is_some() {
            return self.finish(&record.config.id, None);
        }
        Ok(Some(record))
    }

    /// Cleans up after a container whose shim did not, and writes down how it ended.
    pub(crate) fn finish(&mut self, id: &str, exit: Option<ExitRecord>) -> Result<Option<Record>> {
        let exit = self.exit_record(id).or(exit);
        let released = self.release(id);
        self.record_end(id, exit)?;
        released?;
        self.clear(id)
    }

    /// Writes down how a container ended. What belongs to it may still have to be cleared.
    pub(crate) fn record_end(&mut self, id: &str, exit: Option<ExitRecord>) -> Result<()> {
        if let Some(moving) = self.store.get(id)?.filter(|r| r.status == Status::Migrating) {
            // It runs on another host, or may: no policy starts a second copy here.
            self.mark_moved(&moving)?;
        }
        self.store.update(id, |r| {
            let ended = |r: &mut Record, code| {
                r.exit_code = Some(code);
                r.finished_at = Some(exit.map_or_else(Timestamp::now, |e| e.finished));
            };
            match r.status {
                Status::Running => {
                    r.status = Status::Exited;
                    ended(r, exit.map_or(255, |e| e.code));
                }
                Status::Migrating => {
                    r.status = Status::Exited;
                    ended(r, 0);
                }
                // Killed by the engine after it was captured: that is no failure.
                Status::Checkpointed if r.init.is_some() => ended(r, 0),
                _ => {}
            }
            r.init = None;
        })?;
        let _ = fs::remove_file(self.paths.container(id).exit());
        Ok(())
    }

    /// Unmounts what is left of an ended container, and removes one that was started with `--rm`:
    /// then there is no record any more.
    pub(crate) fn clear(&mut self, id: &str) -> Result<Option<Record>> {
        self.images.unmount_root(id).map_err(Error::storage)?;
        match self.store.get(id)? {
            // It has its shim as long as there is something of it.
            Some(r)
                if r.config.auto_remove
                    && r.status != Status::Created
                    && fs::remove_file(self.paths.container(id).kept()).is_err() =>
            {
                self.remove_files(id)?;
                self.remove_anonymous(&r.config)?;
                Ok(None)
            }
            _ => self.store.update(id, |r| r.shim = None),
        }
    }

    /// Removes everything that a container has in the kernel.
    pub(crate) fn teardown(&self, id: &str) -> Result<()> {
        let released = self.release(id);
        let unmounted = self.images.unmount_root(id).map_err(Error::storage);
        released.and(unmounted)
    }

    /// Removes what others may want to have: processes, control groups, network, sockets. The root
    /// file system stays mounted, because unmounting it may have to write it to disk first. Goes on
    /// after a failure and gives the first one.
    pub(crate) fn release(&self, id: &str) -> Result<()> {
        let mut first: Result<()> = Ok(());
        let mut note = |result: Result<()>| {
            if let Err(e) = result {
                if first.is_ok() {
                    first = Err(e);
                } else {
                    tracing::warn!("while cleaning up {id}: {}", e.chain());
                }
            }
        };
        match Hierarchies::of(&self.paths) {
            Ok(groups) => {
                note(empty(&groups, id));
            }
            Err(e) => note(Err(e)),
        }
        note(crate::runtime::forget(&self.paths.oci(), id));
        note(self.store.get(id).and_then(|record| match record {
            Some(record) => crate::network::teardown(&self.paths, &record.config),
            None => Ok(()),
        }));
        let ctl = self.paths.container(id).run.join("ctl");
        let _ = fs::remove_file(ctl);
        first
    }

    /// Removes a container that does not run, with its files.
    pub(crate) fn remove_files(&mut self, id: &str) -> Result<()> {
        self.images.remove_root(id).map_err(Error::storage)?;
        let paths = self.paths.container(id);
        for large in paths.temporary().iter().chain([&paths.checkpoint()]) {
            crate::checkpoint::discard(large)?;
        }
        let births = self.births()?;
        self.remove_dirs(id)?;
        // Last: as long as the row is there, the next command can go on with the removal.
        self.store.durably(|store| store.remove(id))?;
        drop(births);
        if self.store.is_empty()? {
            crate::network::remove_unused(&self.paths)?;
        }
        Ok(())
    }

    /// Removes a container whose restore from an archive came to nothing, with the volumes that came
    /// with it.
    pub(crate) fn forget_restore(&mut self, id: &str) -> Result<()> {
        self.images.volumes_not_restored(id).map_err(Error::storage)?;
        self.remove_files(id)
    }

    /// Makes the directories of a container.
    pub(crate) fn make_dirs(&self, id: &str) -> Result<ContainerPaths> {
        use std::os::unix::fs::DirBuilderExt;
        let paths = self.paths.container(id);
        for dir in [&paths.dir, &paths.run, &paths.bundle(), &paths.etc()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(Error::io("create", dir))?;
        }
        Lock::make(&paths.lock())?;
        Ok(paths)
    }

    pub(crate) fn exit_record(&self, id: &str) -> Option<ExitRecord> {
        let bytes = fs::read(self.paths.container(id).exit()).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Removes a container's control groups with every process in them.
fn empty(groups: &Hierarchies, id: &str) -> Result<()> {
    // What joins meanwhile makes a group busy, and is found in it then.
    for _ in 0..10 {
        kill_all(groups, id)?;
        match groups.remove(id) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {}
            other => return other,
        }
    }
    groups.remove(id)
}

/// Kills every process in a container's control groups and waits for their end.
fn kill_all(groups: &Hierarchies, id: &str) -> Result<()> {
    // A frozen process does not die.
    if let Some(freezer) = crate::lifecycle::freezer(groups, id) {
        let _ = freezer.thaw();
    }
    // A new process may appear while the others are being killed; each round leaves fewer.
    for _ in 0..100 {
        let pids = groups.pids(id);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            if let Some(process) = ProcessId::of(pid).and_then(|p| p.open()) {
                let kill = rustix::process::Signal::KILL;
                process.signal(kill).map_err(Error::system(format!("kill process {pid}")))?;
                let _ = process.wait(Some(Duration::from_secs(10)));
            }
        }
    }
    Err(Error::Invalid(format!("processes of container {id} do not die")))
}
