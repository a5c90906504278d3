//! `checkpoint`: from a running container to images, and to an archive.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use arctern_engine::options::{
    AfterCapture, CaptureOptions, CaptureReport, Connection, Event, Events, External, Fate,
    HookError, NetworkLock, TcpPolicy,
};
use arctern_engine::precopy::{PageSink, Precopy};
use arctern_net::Keep;
use arctern_storage::{RootFs, diff, tree};

use super::archive::Archive;
use super::{CheckpointOptions, Checkpointed, NETNS_KEY, discard, durable, streams, volumes};
use crate::cgroup::Hierarchies;
use crate::config::NetworkMode;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::keeper::Keeper;
use crate::netlock::NetLock;
use crate::paths::ContainerPaths;
use crate::spec;
use crate::state::{Record, Status};
use crate::time::Timestamp;
use crate::transfer::{Marker, Passages, Peer, Phase};

/// How long tasks may take to stop.
pub(crate) const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest deleted file that goes into the images: as much as a container may reasonably hold; the
/// engine names the file when it is larger.
pub(super) const GHOST_LIMIT: u64 = 1 << 30;

/// Smallest changed file, in bytes, that is copied before the freeze instead of in it.
const EARLY_FILES: u64 = 1 << 20;

impl Host {
    /// Captures a running container. After a failure it runs on and nothing is left.
    pub fn checkpoint(
        &mut self,
        name_or_id: &str,
        options: &CheckpointOptions,
        events: &mut dyn Events,
    ) -> Result<Checkpointed> {
        let begin = Instant::now();
        let (record, _lock) = self.find_locked(name_or_id)?;
        let pid = self.check_capturable(&record, options)?;
        self.room_for_capture(&record, pid, options, options.has_archive())?;
        let taken = self.take(&record, pid, options, events);
        let swept = match self.store.get(record.id()) {
            Ok(Some(now)) => self.sweep(&now),
            other => other.map(drop),
        };
        let (report, size) = match taken {
            // Through the engine it comes as a failure of a hook.
            Err(_) if options.cancel.check().is_err() => return Err(Error::Interrupted),
            // Whatever the engine stumbled over, that is the cause.
            Err(error) if self.has_ended(&record) => {
                tracing::debug!("{}", error.chain());
                return Err(Error::EndedMeanwhile(record.config.name));
            }
            other => other?,
        };
        swept?;
        Ok(Checkpointed { record, report, total_us: micros(begin.elapsed()), size })
    }

    /// Gives the engine's report and the size. What is left beside the container is swept afterwards.
    fn take(
        &mut self,
        record: &Record,
        pid: i32,
        options: &CheckpointOptions,
        events: &mut dyn Events,
    ) -> Result<(CaptureReport, u64)> {
        let id = record.id();
        let paths = self.paths.container(id);
        // Images come and go in thousands; not every file system can be told.
        let _ = arctern_sys::directory::spread_subdirectories(&paths.dir);
        for dir in [&paths.checkpoint_new(), &paths.capture_dir()] {
            fs::create_dir(dir).map_err(Error::io("create", dir))?;
        }
        options.cancel.check()?;
        let mut archive = Archive::begin(self, record, options)?;
        for warning in strangers(&Hierarchies::of(&self.paths)?, id, pid) {
            events.event(Event::Warning(warning));
        }
        let shim = self.connect(record, false).ok();
        let mut guard = match options.tcp {
            TcpPolicy::Established => Some(Guard::prepare(self, record)?),
            TcpPolicy::Refuse | TcpPolicy::Close => None,
        };
        let work = Work {
            record,
            pid,
            options,
            archive: &mut archive,
            guard: guard.as_mut(),
            hand_over: None,
            ahead: None,
            early: None,
        };
        let result = self.capture(work, events);
        if let Some(guard) = guard {
            guard.end(result.is_ok() && !options.leave_running, options.lock_limit)?;
        }
        let (report, size) = result?;
        let size = match (size, archive) {
            (Some(size), _) => size,
            (None, Some(mut archive)) => {
                events.event(Event::Phase("archive"));
                let written =
                    archive.fill(&paths, &paths.checkpoint()).and_then(|()| options.cancel.check());
                let written = written.and_then(|()| archive.finish());
                if written.is_err() || !options.keep {
                    // Its memory is in the archive; beside a container that goes on it would only
                    // grow old.
                    discard(&paths.checkpoint())?;
                }
                written?
            }
            (None, None) => {
                durable::complete(&paths.checkpoint())?;
                tree_size(&paths.checkpoint())?
            }
        };
        // What is told is not undone by a power cut.
        self.store.durably(|store| store.update(id, |_| ()))?;
        if !options.leave_running {
            self.await_end(record, shim, None)?;
        }
        Ok((report, size))
    }

    /// What can refuse, before anything is frozen.
    pub(crate) fn check_capturable(
        &self,
        record: &Record,
        options: &CheckpointOptions,
    ) -> Result<i32> {
        let name = || record.name().to_owned();
        let (Some(_), Some(init)) = (self.init(record), record.init) else {
            return Err(Error::WrongState {
                name: name(),
                status: record.status,
                needed: "running",
            });
        };
        self.must_not_be_paused(record)?;
        if record.config.auto_remove && !options.has_archive() && !options.leave_running {
            return Err(Error::Invalid(format!(
                "container `{}` was started with --rm: its checkpoint would go with it; give --file",
                name()
            )));
        }
        Ok(init.pid)
    }

    /// Gives the engine's report, and the archive's size if the archive is already written.
    pub(crate) fn capture(
        &mut self,
        work: Work<'_>,
        events: &mut dyn Events,
    ) -> Result<(CaptureReport, Option<u64>)> {
        let Work { record, pid, options, archive, guard, hand_over, ahead, early } = work;
        let id = record.id().to_owned();
        let paths = self.paths.container(&id);
        let images = paths.checkpoint_new();
        let spec = spec::load(&paths.spec())?;
        let binds = spec::mounts::binds(&spec);
        let changes = Changes::of(self, record)?;
        let with_rootfs = archive.is_some() && !options.ignore_rootfs;

        let source = changes.source();
        let mut early = match early {
            Some(early) => early,
            None if with_rootfs => changes.early(&paths)?,
            None => diff::Early::default(),
        };

        let with_volumes = archive.is_some() && !options.ignore_volumes;
        let mut kept = match with_volumes {
            true => Some(volumes::Capture::begin(
                self,
                &record.config,
                &options.skip_volumes,
                &paths.capture_dir(),
                EARLY_FILES,
            )?),
            false => None,
        };

        let moves = hand_over.is_some();
        let hand_over = hand_over.map(RefCell::new);
        let mut while_frozen = || -> std::result::Result<(), HookError> {
            options.cancel.check()?;
            if let Some(hand_over) = &hand_over {
                hand_over.borrow_mut().peer.stands()?;
            }
            streams::save(&paths.run, pid, &images)?;
            if with_rootfs {
                std::mem::take(&mut early).finish(&source, &paths.capture_dir())?;
            }
            kept.as_mut().map_or(Ok(()), volumes::Capture::finish)
        };
        let stops = !options.leave_running;
        // The hook tells its phase too, between two events of the engine.
        let events = RefCell::new(events);
        let mut size = None;
        // What moves to another host is there as it would be in a file.
        let archived = options.has_archive() || moves;
        let keep = guard.as_ref().map(|guard| guard.terms(record, options.lock_limit, archived));
        let lock = guard.map(|guard| RefCell::new(&mut guard.lock));
        let after = match (moves, stops) {
            (true, _) => AfterCapture::HandOver,
            (false, true) => AfterCapture::Kill,
            (false, false) => AfterCapture::Resume,
        };
        let mut before_release = || -> std::result::Result<(), HookError> {
            options.cancel.check()?;
            if let Some(hand_over) = &hand_over {
                if let Some(mut archive) = archive.take() {
                    events.borrow_mut().event(Event::Phase("send"));
                    archive.fill(&paths, &images)?;
                    archive.finish()?;
                }
                let HandOver { marker, peer, passages } = &mut *hand_over.borrow_mut();
                // The other side builds meanwhile.
                Marker { phase: Phase::Committed, ..marker.clone() }.prepare(&paths.dir)?;
                peer.built()?;
                return passages.offer(*peer, &mut |event| events.borrow_mut().event(event));
            }
            if !stops {
                // The engine goes on writing what it has read, while the tasks run already.
                return Ok(());
            }
            if let (Some(lock), Some(keep)) = (&lock, &keep) {
                lock.borrow_mut().keep(keep.clone())?;
            }
            let mut filled = archive.take();
            if let Some(archive) = &mut filled {
                events.borrow_mut().event(Event::Phase("archive"));
                archive.fill(&paths, &images)?;
            }
            // The last moment at which it can go on.
            options.cancel.check()?;
            durable::put_in_place(&paths)?;
            self.store.update(&id, |r| {
                r.status = Status::Checkpointed;
                r.checkpointed_at = Some(Timestamp::now());
            })?;
            // Last, because it is what others can see.
            if let Some(archive) = filled {
                match archive.finish() {
                    Ok(bytes) => size = Some(bytes),
                    Err(error) => {
                        self.store.update(&id, run_on)?;
                        return Err(error.into());
                    }
                }
            }
            Ok(())
        };
        let mut give = || -> std::result::Result<Fate, HookError> {
            let Some(hand_over) = &hand_over else { return Ok(Fate::Back) };
            let HandOver { marker, peer, passages } = &mut *hand_over.borrow_mut();
            let onward = passages.accepted();
            events.borrow_mut().event(Event::Phase("record"));
            let marker = Marker { phase: Phase::Committed, onward, ..marker.clone() };
            if let Err(error) = marker.write(&paths.dir) {
                // Nothing was sent, by whomever: all of them go on.
                events.borrow_mut().event(Event::Warning(error.chain()));
                return Ok(Fate::Back);
            }
            let fate = peer.commit();
            if !matches!(fate, Ok(Fate::Back))
                && let (Some(lock), Some(keep)) = (&lock, &keep)
            {
                let limit = passages.limit(keep.limit);
                lock.borrow_mut().keep(Keep { limit, ..keep.clone() })?;
            }
            if matches!(fate, Ok(Fate::Gone)) {
                passages.open(&mut |event| events.borrow_mut().event(event));
            }
            fate
        };
        let mut shared_lock = lock.as_ref().map(SharedLock);
        let capture = CaptureOptions {
            after,
            externals: externals(record, pid, &binds)?,
            shell_job: false,
            orphan_terminals: record.config.terminal,
            external_unix: options.external_unix,
            file_locks: options.file_locks,
            ghost_limit: GHOST_LIMIT,
            timeout: FREEZE_TIMEOUT,
            freeze_cgroup: Hierarchies::of(&self.paths)?.freezer(&id).filter(|dir| dir.is_dir()),
            tcp: options.tcp,
            skip_in_flight: options.skip_in_flight,
            network: shared_lock.as_mut().map(|lock| lock as &mut dyn NetworkLock),
            while_frozen: Some(&mut while_frozen),
            before_release: Some(&mut before_release),
            hand_over: Some(&mut give),
        };
        let mut engine_events = Shared(&events);
        let result = match ahead {
            Some(Ahead { copied, rest }) => {
                copied.finish(&images, Some(rest), capture, &mut engine_events)
            }
            None => {
                let pid = arctern_sys::Pid(pid);
                arctern_engine::capture(pid, &images, capture, &mut engine_events)
            }
        };
        match result {
            Ok(report) => {
                if after == AfterCapture::Resume {
                    durable::put_in_place(&paths)?;
                    self.store.update(&id, |r| r.checkpointed_at = Some(Timestamp::now()))?;
                }
                Ok((report, size))
            }
            Err(error) => {
                // It may have failed after the hook: then nothing of what the hook did stays.
                if after == AfterCapture::Kill {
                    self.store.update(&id, run_on)?;
                    discard(&paths.checkpoint())?;
                    if let (Some(_), Some(file)) = (size, &options.file) {
                        let _ = fs::remove_file(file);
                    }
                }
                Err(Error::Capture(Box::new(error)))
            }
        }
    }
}

/// One capture: of what, how, and where to.
pub(crate) struct Work<'a> {
    pub record: &'a Record,
    /// Its init, as the host sees it.
    pub pid: i32,
    pub options: &'a CheckpointOptions,
    pub archive: &'a mut Option<Archive>,
    pub guard: Option<&'a mut Guard>,
    /// It moves to another host.
    pub hand_over: Option<HandOver<'a>>,
    /// Its memory was copied ahead.
    pub ahead: Option<Ahead<'a>>,
    /// Large files that it had changed were copied ahead.
    pub early: Option<diff::Early>,
}

/// Where the changes of a container's root file system are.
pub(crate) struct Changes {
    root: RootFs,
    excludes: Vec<std::path::PathBuf>,
}

impl Changes {
    pub fn of(host: &Host, record: &Record) -> Result<Changes> {
        let root = host.images.root_fs(record.id()).map_err(Error::storage)?;
        let spec = spec::load(&host.paths.container(record.id()).spec())?;
        let binds = spec::mounts::binds(&spec);
        Ok(Changes { root, excludes: binds.into_iter().map(|(to, _)| to).collect() })
    }

    fn source(&self) -> diff::Source<'_> {
        let Changes { root, excludes } = self;
        diff::Source { upper: &root.upper, lowers: &root.lowers, excludes }
    }

    /// Copies large files, while the container runs.
    pub fn early(&self, paths: &ContainerPaths) -> Result<diff::Early> {
        diff::Early::begin(&self.source(), &paths.capture_dir(), EARLY_FILES)
            .map_err(Error::storage)
    }
}

/// Memory that was copied ahead, and where the rest goes.
pub(crate) struct Ahead<'a> {
    pub copied: &'a mut Precopy,
    pub rest: &'a mut dyn PageSink,
}

/// To whom a container is handed over, and what is written down about it.
pub(crate) struct HandOver<'a> {
    pub marker: &'a Marker,
    pub peer: &'a mut dyn Peer,
    pub passages: &'a mut Passages,
}

/// A receiver of events that is used from two places in turn.
struct Shared<'a, 'b>(&'a RefCell<&'b mut dyn Events>);

impl Events for Shared<'_, '_> {
    fn event(&mut self, event: Event) {
        self.0.borrow_mut().event(event);
    }
}

/// The network lock of a capture, with the keeper that opens it if this command is killed.
pub(crate) struct Guard {
    lock: NetLock,
    keeper: Keeper,
}

impl Guard {
    pub fn prepare(host: &Host, record: &Record) -> Result<Guard> {
        let mut keeper = Keeper::start(&host.paths, record.id())?;
        let lock = NetLock::prepare(&host.paths, &record.config)?.with_bell(keeper.bell());
        keeper.listens();
        Ok(Guard { lock, keeper })
    }

    /// How the lock is to stay.
    fn terms(&self, record: &Record, limit: Option<Duration>, archived: bool) -> Keep {
        Keep { name: record.name().to_owned(), limit, archived, keeper: self.keeper.process() }
    }

    /// The tasks are gone and the lock is kept, or they go on and it is open.
    pub fn end(mut self, kept: bool, limit: Option<Duration>) -> Result<()> {
        match (kept, self.lock.outlives(limit)) {
            (true, Some(limit)) => self.keeper.keep(limit),
            (true, None) => drop(self.keeper),
            (false, _) => self.lock.open()?,
        }
        self.lock.finish()
    }
}

/// A lock that is used from two places in turn.
struct SharedLock<'a, 'b>(&'a RefCell<&'b mut NetLock>);

impl NetworkLock for SharedLock<'_, '_> {
    fn lock(&mut self, connections: &[Connection]) -> std::result::Result<(), HookError> {
        self.0.borrow_mut().lock(connections)
    }

    fn let_out(&mut self) -> std::result::Result<(), HookError> {
        self.0.borrow_mut().let_out()
    }

    fn unlock(&mut self) -> std::result::Result<(), HookError> {
        self.0.borrow_mut().unlock()
    }

    fn drops(&self) -> bool {
        self.0.borrow().drops()
    }
}

/// Takes back what the database was told of a checkpoint.
fn run_on(record: &mut Record) {
    record.status = Status::Running;
    record.checkpointed_at = None;
}

/// Processes in the container that are no descendants of its init: those that `exec` started. Their
/// parent is a command of the host, so they are no part of the tree.
fn strangers(groups: &Hierarchies, id: &str, init: i32) -> Vec<String> {
    let pids = groups.pids(id);
    let outside = |pid: &i32| {
        let (name, parent) = crate::process::name_and_parent(*pid)?;
        let stranger = *pid != init && !pids.contains(&parent);
        stranger
            .then(|| format!("process {pid} ({name}) was started by `exec` and is not captured"))
    };
    pids.iter().filter_map(outside).collect()
}

/// What stays outside the images, as runc names it: bind mounts by their destination, and the
/// network namespace, which is set up anew for the restored container.
pub(super) fn externals(
    record: &Record,
    pid: i32,
    binds: &[(std::path::PathBuf, std::path::PathBuf)],
) -> Result<Vec<External>> {
    let mut list: Vec<External> = binds
        .iter()
        .map(|(destination, _)| {
            let text = destination.display().to_string();
            External::Mount { key: text.clone(), value: text }
        })
        .collect();
    if record.config.network != NetworkMode::Host {
        let path = format!("/proc/{pid}/ns/net");
        let stat = rustix::fs::stat(&path).map_err(|e| Error::io("inspect", &path)(e.into()))?;
        list.push(External::NetNs { ino: stat.st_ino, name: NETNS_KEY.to_owned() });
    }
    Ok(list)
}

/// Bytes of the files of images.
pub(super) fn tree_size(dir: &Path) -> Result<u64> {
    Ok(tree::measure(dir).map_err(Error::io("list", dir))?.length)
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
