//! The source: a container leaves, or goes on as if nothing had been.

use std::fs;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use arctern_engine::CaptureError;
use arctern_engine::options::{CaptureReport, Events, Fate, HookError, TcpPolicy};
use arctern_engine::precopy::{PageSink, Precopy, RoundFigures};
use arctern_image::archive::{ArchiveWriter, Compression};
use arctern_image::manifest::HostFacts;
use arctern_net::Onward;
use arctern_storage::{LayerBlob, diff, tree};

use super::{Blocker, Marker, Offer, Passage, Passages, Phase, Urgent};
use crate::checkpoint::CheckpointOptions;
use crate::checkpoint::archive::Archive;
use crate::checkpoint::capture::{Ahead, Changes, FREEZE_TIMEOUT, Guard, HandOver, Work, micros};
use crate::checkpoint::volumes;
use crate::config::NetworkMode;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;
use crate::keeper;
use crate::lock::Lock;
use crate::state::{Record, Status};

/// The other host, as the source needs it.
pub trait Peer {
    /// Where the memory goes that was written since the last round. It comes before the archive.
    fn pages(&mut self) -> Box<dyn PageSink>;
    /// Its tasks stand still, and nothing reaches its connections; returns when that is so of all
    /// that move together. An error leaves the container here.
    fn stands(&mut self) -> std::result::Result<(), HookError>;
    /// Where the archive goes: config, images, changed files, in one stream.
    fn archive(&mut self) -> std::result::Result<Box<dyn Write + Send>, HookError>;
    /// The archive is complete; returns when everything that moves is built there. An error leaves
    /// the container here.
    fn built(&mut self) -> std::result::Result<(), HookError>;
    /// Hands the container over, when that may be done with all that move together: it is written
    /// down here that it may be gone. An error means that nobody knows.
    fn commit(&mut self) -> std::result::Result<Fate, HookError>;
    /// Tells it of the connections that come by way of this host. Gives why it will not return them.
    fn pass(&mut self, passage: &Passage) -> std::result::Result<Option<String>, HookError>;
}

/// How a container leaves.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// What [`Marker`] says of the other host.
    pub destination: String,
    /// It stays here, stopped.
    pub keep: bool,
    /// The other host's address, and how long connections by way of this host are led there; `None`
    /// for no limit.
    pub forward: Option<(Onward, Option<Duration>)>,
}

/// A container that is about to leave; nobody else changes it meanwhile.
#[derive(Debug)]
pub struct Departure {
    record: Record,
    offer: Offer,
    /// Its memory as far as it was copied ahead.
    copied: Option<Precopy>,
    /// Large files that it had changed, as they were sent ahead.
    early: Option<diff::Early>,
    _lock: Lock,
}

impl Departure {
    /// Begins to copy its memory ahead, while it runs.
    ///
    /// # Errors
    /// The kernel cannot tell which memory was written ([`CaptureError::NoTracking`]).
    pub fn begin_rounds(&mut self) -> Result<()> {
        let Some(init) = self.record.init else {
            return Err(Error::NoSuchContainer(self.record.name().to_owned()));
        };
        let begun = Precopy::begin(arctern_sys::Pid(init.pid), FREEZE_TIMEOUT);
        let begun = begun.map_err(|e| Error::Capture(Box::new(e)))?;
        self.copied = Some(begun.with_mappings());
        Ok(())
    }

    /// Gives the sink what was written since the round before, in the first one everything.
    pub fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFigures> {
        let Some(copied) = &mut self.copied else { return Ok(RoundFigures::default()) };
        copied.round(sink).map_err(|e| Error::Capture(Box::new(e)))
    }

    /// Bytes of memory that were written since the last round.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.copied.as_ref().map_or(0, Precopy::written)
    }

    /// What the other host has to know.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }
}

/// A container that has left.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// What the engine did.
    pub report: CaptureReport,
    /// From the beginning of the capture to the end of the container here, in microseconds.
    pub total_us: u64,
}

impl Host {
    /// Takes running containers in hand that move together.
    pub fn departures(&mut self, containers: &[String]) -> Result<Vec<Departure>> {
        let transfer = ids::new_id().map_err(Error::system("read random bytes"))?;
        let mut ids = Vec::new();
        for name in containers {
            let id = self.store.resolve(name)?;
            if ids.iter().any(|(_, known)| *known == id) {
                return Err(Error::Invalid(format!("container `{name}` is named twice")));
            }
            ids.push((ids.len(), id));
        }
        // Two commands that want the same ones do not wait for each other.
        ids.sort_by(|a, b| a.1.cmp(&b.1));
        let mut departures = Vec::new();
        for (place, id) in ids {
            departures.push((place, self.departure(&id, &transfer)?));
        }
        departures.sort_by_key(|(place, _)| *place);
        let mut departures: Vec<Departure> = departures.into_iter().map(|(_, d)| d).collect();
        let mut carried: Vec<String> = Vec::new();
        for Departure { offer, .. } in &mut departures {
            let own = offer.config.named_volumes.iter().map(|volume| volume.name.clone());
            let (shared, first) = own.partition(|name| carried.contains(name));
            offer.shared = shared;
            carried.extend::<Vec<String>>(first);
        }
        Ok(departures)
    }

    /// Volumes of containers that are about to leave, and that running ones use which stay: what these
    /// write from then on is not seen by the others.
    pub fn left_behind(&mut self, departures: &[Departure]) -> Result<Vec<Blocker>> {
        let leaves = |id: &str| departures.iter().any(|departure| departure.record.id() == id);
        let mut list = Vec::new();
        for other in self.store.list()? {
            if leaves(other.id()) || self.init(&other).is_none() {
                continue;
            }
            for Departure { record, .. } in departures {
                let shared = record.config.named_volumes.iter().find(|volume| {
                    other.config.named_volumes.iter().any(|used| used.name == volume.name)
                });
                list.extend(shared.map(|volume| Blocker {
                    cause: format!(
                        "volume `{}` of `{}` is used by container `{}`, which stays",
                        volume.name,
                        record.name(),
                        other.name()
                    ),
                    remedy: "move both in one command, or stop that one".to_owned(),
                }));
            }
        }
        Ok(list)
    }

    fn departure(&mut self, id: &str, transfer: &str) -> Result<Departure> {
        let (record, lock) = self.find_locked(id)?;
        let pid = self.check_capturable(&record, &options())?;
        self.room_for_capture(&record, pid, &options(), true)?;
        let facts = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
        let root = self.images.root_fs(record.id()).map_err(Error::storage)?;
        let amount = arctern_engine::room::at_least(arctern_sys::Pid(pid));
        let files = tree::measure(&root.upper).unwrap_or_default().least;
        let offer = Offer {
            transfer: transfer.to_owned(),
            config: record.config.clone(),
            network: record.network.clone(),
            facts,
            memory: amount.memory,
            images: amount.images,
            changed: files + volumes::least(self, &record.config),
            layers: self.images.layer_blobs(&record.config.image_id).unwrap_or_default(),
            shared: Vec::new(),
        };
        Ok(Departure { record, offer, copied: None, early: None, _lock: lock })
    }

    /// Copies large files that the container has changed, while it runs: an archive for the other host,
    /// if there are any. What changes from here on is in the last archive again.
    pub fn files_ahead(&self, departure: &mut Departure) -> Result<Option<fs::File>> {
        let paths = self.paths.container(departure.record.id());
        let dir = paths.capture_dir();
        fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
        let mut early = Changes::of(self, &departure.record)?.early(&paths)?;
        let part = early.part(&dir).map_err(Error::storage)?;
        departure.early = Some(early);
        Ok(part)
    }

    /// A container that was about to leave stays: nothing of the attempt is left.
    pub fn stay(&mut self, departure: Departure) -> Result<()> {
        self.sweep(&departure.record)
    }

    /// The image of a container that is about to leave, as an archive with these layers.
    pub fn image_of(
        &self,
        departure: &Departure,
        layers: &[LayerBlob],
    ) -> Result<arctern_storage::ImageArchive> {
        let id = &departure.record.config.image_id;
        self.images.export_layers(id, layers).map_err(Error::storage)
    }

    /// Freezes the container, sends it to `peer`, and gives it up when it runs there. After an error
    /// it goes on, except after [`CaptureError::InDoubt`].
    pub fn hand_over(
        &mut self,
        departure: &mut Departure,
        leaving: &Leaving,
        peer: &mut dyn Peer,
        events: &mut dyn Events,
    ) -> Result<HandedOver> {
        let begin = Instant::now();
        let Departure { record, offer, copied, early, .. } = departure;
        let paths = self.paths.container(record.id());
        let Some(init) = record.init else {
            return Err(Error::NoSuchContainer(record.name().to_owned()));
        };
        let options = CheckpointOptions { skip_volumes: offer.shared.clone(), ..options() };
        // Images come and go in thousands; not every file system can be told.
        let _ = arctern_sys::directory::spread_subdirectories(&paths.dir);
        for dir in [&paths.checkpoint_new(), &paths.capture_dir()] {
            match fs::create_dir(dir) {
                // Of files that went ahead.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && early.is_some() => {}
                other => other.map_err(Error::io("create", dir))?,
            }
        }
        let stream = peer.archive().map_err(|e| Error::Capture(Box::new(CaptureError::Hook(e))))?;
        let writer = ArchiveWriter::stream(stream, &leaving.destination, Compression::None)
            .map_err(Error::archive)?;
        let mut archive = Some(Archive::over(writer, self, record, &options)?);
        let shim = self.connect(record, false).ok();
        let marker = Marker {
            transfer: offer.transfer.clone(),
            destination: leaving.destination.clone(),
            phase: Phase::Held,
            onward: None,
        };
        let mut passages = Passages::new(&self.paths, record, leaving.forward.as_ref())?;
        let mut guard = Guard::prepare(self, record)?;
        marker.write(&paths.dir)?;
        self.store.update(record.id(), |r| r.status = Status::Migrating)?;
        let mut rest = peer.pages();
        let ahead = copied.as_mut().map(|copied| Ahead { copied, rest: &mut *rest });
        let work = Work {
            record,
            pid: init.pid,
            options: &options,
            archive: &mut archive,
            guard: Some(&mut guard),
            hand_over: Some(HandOver { marker: &marker, peer, passages: &mut passages }),
            ahead,
            early: early.take(),
        };
        let urgent = Urgent::begin();
        let captured = self.capture(work, events);
        drop(urgent);
        match captured {
            Ok((report, _)) => {
                guard.end(true, passages.limit(options.lock_limit))?;
                self.await_end(record, shim, None)?;
                if leaving.keep {
                    Marker::remove(&paths.dir)?;
                    self.sweep(record)?;
                } else {
                    self.remove_ended(record)?;
                }
                if passages.accepted().is_none() {
                    self.leave_nothing(record)?;
                }
                Ok(HandedOver { report, total_us: micros(begin.elapsed()) })
            }
            Err(error) if is_doubt(&error) => Err(error),
            Err(error) => {
                let opened = guard.end(false, None);
                self.announce(record);
                self.store.update(record.id(), |r| r.status = Status::Running)?;
                Marker::remove(&paths.dir)?;
                self.sweep(record)?;
                opened.and(Err(error))
            }
        }
    }

    /// What is written down about a move that did not end.
    pub fn migration(&self, record: &Record) -> Option<Marker> {
        Marker::read(&self.paths.container(record.id()).dir)
    }

    /// The containers of a move that is in doubt.
    pub fn in_doubt(&self, transfer: &str) -> Result<Vec<String>> {
        let mut list = self.store.list()?;
        list.retain(|record| {
            record.status == Status::Migrating
                && self.migration(record).is_some_and(|marker| marker.transfer == transfer)
        });
        Ok(list.into_iter().map(|record| record.config.id).collect())
    }

    /// The move of a container that is in doubt; None when it is not, because it runs here. Waits for
    /// whoever is at work on it.
    pub fn doubt(&mut self, name_or_id: &str) -> Result<Option<Marker>> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        match record.status {
            Status::Migrating => Ok(self.migration(&record)),
            Status::Running => Ok(None),
            status => {
                Err(Error::WrongState { name: record.config.name, status, needed: "migrating" })
            }
        }
    }

    /// Ends the doubt: the container runs at its destination and is given up here, or it goes on.
    pub fn settle_migration(&mut self, name_or_id: &str, fate: Fate, keep: bool) -> Result<()> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        if record.status != Status::Migrating {
            return Err(Error::WrongState {
                name: record.config.name,
                status: record.status,
                needed: "migrating",
            });
        }
        match fate {
            Fate::Back => self.go_on(&record).map(drop),
            Fate::Gone => {
                if let Some(init) = self.init(&record) {
                    self.kill_init(&record, &init)?;
                    self.await_cleanup(&record, None)?;
                }
                let onward = self.migration(&record).and_then(|marker| marker.onward);
                match &onward {
                    Some(onward) => {
                        let network = crate::network::of(&self.paths, &record.config)?;
                        let home = network.send_on(record.id(), onward).map_err(Error::network)?;
                        home.iter().for_each(|back| keeper::dismiss_process(back.keeper));
                    }
                    None => self.leave_nothing(&record)?,
                }
                match keep {
                    true => Marker::remove(&self.paths.container(record.id()).dir),
                    false => self.remove_ended(&record),
                }
            }
        }
    }

    /// A container that has an address of this host's own bridge, and by way of this host no connections
    /// that go on, needs nothing here any more.
    fn leave_nothing(&self, record: &Record) -> Result<()> {
        let config = &record.config;
        let ours = config.network == NetworkMode::Bridge
            && !crate::network::of(&self.paths, config)?.is_lan();
        match ours {
            true => crate::network::end_lock(&self.paths, config),
            false => Ok(()),
        }
    }

    /// Takes the word of a destination back that a container is there.
    fn announce(&self, record: &Record) {
        if let Err(e) = crate::network::announce(&self.paths, &record.config) {
            tracing::warn!("peers may look for container {} elsewhere: {e}", record.name());
        }
    }

    /// A container whose move was given up goes on. The caller holds its lock.
    pub(crate) fn go_on(&mut self, record: &Record) -> Result<Option<Record>> {
        let paths = self.paths.container(record.id());
        crate::network::end_lock(&self.paths, &record.config)?;
        self.announce(record);
        self.thaw(record);
        let updated = self.store.update(record.id(), |r| r.status = Status::Running)?;
        Marker::remove(&paths.dir)?;
        self.sweep(record)?;
        Ok(updated)
    }
}

/// How a container is captured that moves: with everything it has.
fn options() -> CheckpointOptions {
    CheckpointOptions { tcp: TcpPolicy::Established, file_locks: true, ..Default::default() }
}

fn is_doubt(error: &Error) -> bool {
    matches!(error, Error::Capture(inner) if matches!(**inner, CaptureError::InDoubt(_)))
}
