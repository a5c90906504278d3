//! The other side as a hand-over needs it: what is said within the freeze.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arctern_container::transfer::{Lap, Laps, Passage, Peer};
use arctern_engine::options::{Fate, HookError};
use arctern_engine::precopy::PageSink;

use super::together::Together;
use crate::error::MigrateError;
use crate::message::{Building, Release, Request};
use crate::pages::PageWriter;
use crate::transport::Outgoing;
use crate::wire::{DataWriter, Sender};
use serde::Serialize;

/// How long it may take to build what it has received, with the container frozen here.
const BUILDING: Duration = Duration::from_secs(30);

/// When the freeze began, and where its time goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Mutex<Freeze>>);

#[derive(Debug, Default)]
struct Freeze {
    began: Option<Instant>,
    laps: Laps,
}

impl Clock {
    /// It begins, perhaps anew.
    pub(super) fn freezes(&self) {
        *self.freeze() = Freeze { began: Some(Instant::now()), laps: Laps::default() };
    }

    /// A phase begins.
    pub(super) fn phase(&self, name: &'static str) {
        self.freeze().laps.begin(name);
    }

    /// The phases so far.
    pub(super) fn laps(&self) -> Vec<Lap> {
        self.freeze().laps.take()
    }

    fn freeze(&self) -> MutexGuard<'_, Freeze> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn began(&self) -> Option<Instant> {
        self.freeze().began
    }

    /// What is left of the time that a freeze may take.
    fn left(&self, limit: Option<Duration>) -> Option<Duration> {
        let since = self.began().map_or(Duration::ZERO, |began| began.elapsed());
        limit.map(|limit| limit.saturating_sub(since))
    }
}

/// Moments of the freeze.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) frozen: Option<Instant>,
    pub(super) captured: Option<Instant>,
    pub(super) sent: Option<Instant>,
    pub(super) built: Option<Instant>,
    pub(super) running: Option<Instant>,
    pub(super) warnings: Vec<String>,
    pub(super) stopped: Option<String>,
    pub(super) freeze: Freezing,
}

/// The other side, as the hand-over of one container needs it.
pub(super) struct Destination {
    /// What all that move have in common.
    together: Arc<Together>,
    /// Its place in the offer.
    place: usize,
    pub(super) marks: Marks,
    clock: Clock,
    /// How long the freeze may be.
    limit: Option<Duration>,
    streams: Arc<Mutex<Streams>>,
}

impl Destination {
    pub(super) fn new(
        together: &Arc<Together>,
        place: usize,
        clock: Clock,
        limit: Option<Duration>,
    ) -> Destination {
        let streams = Streams {
            sender: together.sender(),
            together: Arc::clone(together),
            place,
            open: Open::Nothing,
            captured: None,
            clock: clock.clone(),
            limit,
        };
        Destination {
            together: Arc::clone(together),
            place,
            marks: Marks::default(),
            clock,
            limit,
            streams: Arc::new(Mutex::new(streams)),
        }
    }

    /// How long it might have stood still, if it has for longer.
    pub(super) fn is_late(&self) -> Option<Duration> {
        self.limit.filter(|_| self.clock.left(self.limit) == Some(Duration::ZERO))
    }

    /// Nothing was handed over yet: it can still go on here.
    fn in_time(&self) -> Result<(), HookError> {
        match self.is_late() {
            Some(limit) => Err(self.together.fail(MigrateError::Late { limit })),
            None => Ok(()),
        }
    }
}

impl Drop for Destination {
    /// It goes on here, if nothing was decided: then the others do.
    fn drop(&mut self) {
        self.together.leave(self.place);
    }
}

impl Peer for Destination {
    fn pages(&mut self) -> Box<dyn PageSink> {
        Box::new(PageWriter::new(Pages(Arc::clone(&self.streams))))
    }

    fn stands(&mut self) -> Result<(), HookError> {
        self.clock.phase("together");
        Ok(self.together.stands()?)
    }

    fn archive(&mut self) -> Result<Box<dyn Write + Send>, HookError> {
        Ok(Box::new(Archive(Arc::clone(&self.streams))))
    }

    fn built(&mut self) -> Result<(), HookError> {
        self.clock.phase("build");
        let ended = lock(&self.streams).end();
        self.marks.frozen = self.clock.began();
        self.marks.captured = lock(&self.streams).captured;
        self.marks.sent = Some(Instant::now());
        let left = self.clock.left(self.limit);
        let patience = left.map_or(BUILDING, |left| left.min(BUILDING));
        match self.together.built(self.place, ended, patience) {
            Ok(Building { laps, builder }) => {
                self.marks.freeze.destination = laps;
                self.marks.freeze.builder = builder;
                self.marks.built = Some(Instant::now());
                self.in_time()
            }
            Err(error) => Err(error.into()),
        }
    }

    fn pass(&mut self, passage: &Passage) -> Result<Option<String>, HookError> {
        self.clock.phase("pass");
        Ok(self.together.pass(self.place, passage, BUILDING)?)
    }

    fn commit(&mut self) -> Result<Fate, HookError> {
        self.clock.phase("commit");
        match self.together.commit(self.place, BUILDING)? {
            Some(Release { warnings, builder, stopped }) => {
                self.marks.freeze.source = self.clock.laps();
                self.marks.freeze.release = builder;
                self.marks.running = Some(Instant::now());
                self.marks.warnings = warnings;
                self.marks.stopped = stopped;
                Ok(Fate::Gone)
            }
            None => Ok(Fate::Back),
        }
    }
}

/// What is sent in the freeze: memory, then the archive, each announced by its first byte.
struct Streams {
    sender: Sender<Outgoing>,
    together: Arc<Together>,
    /// Of the container, in the offer.
    place: usize,
    open: Open,
    /// When the archive began.
    captured: Option<Instant>,
    clock: Clock,
    limit: Option<Duration>,
}

enum Open {
    Nothing,
    Pages(DataWriter<Outgoing>),
    Archive(DataWriter<Outgoing>),
}

/// Where the time of a freeze went: at the source, and at the destination meanwhile.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Freezing {
    /// From the first task stopped until the other side said that it runs.
    pub source: Vec<Lap>,
    /// From the first memory in the freeze until everything was built.
    pub destination: Vec<Lap>,
    /// Of it: in the process that built.
    pub builder: Vec<Lap>,
    /// From the commit until it ran.
    pub release: Vec<Lap>,
}

impl Streams {
    fn pages(&mut self) -> io::Result<&mut DataWriter<Outgoing>> {
        // On a link that turned out to be slower than it was, this would go on and on.
        if self.clock.left(self.limit) == Some(Duration::ZERO) {
            return Err(io::Error::other("the container stands still for too long"));
        }
        if !matches!(self.open, Open::Pages(_)) {
            self.together.turn(self.place)?;
            self.sender.message(&Request::Rest(self.place))?;
            self.open = Open::Pages(self.sender.data());
        }
        match &mut self.open {
            Open::Pages(data) => Ok(data),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn archive(&mut self) -> io::Result<&mut DataWriter<Outgoing>> {
        if !matches!(self.open, Open::Archive(_)) {
            self.end()?;
            self.captured = Some(Instant::now());
            self.together.turn(self.place)?;
            self.sender.message(&Request::Archive(self.place))?;
            self.open = Open::Archive(self.sender.data());
        }
        match &mut self.open {
            Open::Archive(data) => Ok(data),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => Ok(()),
            Open::Pages(data) | Open::Archive(data) => data.finish(),
        }
    }
}

fn lock(streams: &Mutex<Streams>) -> std::sync::MutexGuard<'_, Streams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Pages(Arc<Mutex<Streams>>);

impl Write for Pages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).pages()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).pages()?.flush()
    }
}

struct Archive(Arc<Mutex<Streams>>);

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).archive()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // What was not begun has nothing to send.
        let mut streams = lock(&self.0);
        match &mut streams.open {
            Open::Archive(data) => data.flush(),
            _ => Ok(()),
        }
    }
}
