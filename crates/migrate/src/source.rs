//! The source's side: from a running container to one that runs elsewhere, or still here.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use arctern_container::Host;
use arctern_container::transfer::{Departure, Offer, Peer};
use arctern_engine::CaptureError;
use arctern_engine::options::{Event, Events, Fate, HookError};
use serde::Serialize;

use crate::destination::Remote;
use crate::error::MigrateError;
use crate::message::{Answer, Hello, Request, VERSION};
use crate::transport::Transport;

/// How long the other side may take for what needs no data: preparing, answering.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to build what it has received, with the container frozen here.
const BUILDING: Duration = Duration::from_secs(30);

/// How a container is moved.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// Where to.
    pub remote: Remote,
    /// The ssh program.
    pub ssh: String,
    /// Only say what would be.
    pub dry_run: bool,
    /// Leave the container here, stopped.
    pub keep_source: bool,
}

/// What was found before anything was touched.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The container's name.
    pub container: String,
    /// Where to.
    pub destination: String,
    /// Bytes of memory that it uses.
    pub memory: u64,
    /// Bytes of files that it has changed.
    pub changed: u64,
    /// The image has to be sent too.
    pub image: bool,
}

/// What a move did. Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// What was found before.
    pub plan: Plan,
    /// Bytes that were sent.
    pub sent: u64,
    /// From the first task stopped here until the other side said that it runs.
    pub downtime_us: u64,
    /// Of it: until the archive was sent.
    pub sending_us: u64,
    /// Of it: from there until everything was built at the other side.
    pub building_us: u64,
    /// Of it: from there until it ran.
    pub commit_us: u64,
    /// The whole command.
    pub total_us: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Nothing was touched.
    Planned(Plan),
    /// It runs at its destination.
    Moved(Box<Moved>),
}

/// Moves one container.
///
/// # Errors
/// See [`MigrateError`]: before the commit the container goes on here.
pub fn migrate(
    host: &mut Host,
    container: &str,
    options: &MigrateOptions,
    events: &mut dyn Events,
) -> Result<Outcome, MigrateError> {
    let begin = Instant::now();
    let departure = host.departure(container)?;
    let mut conversation = Conversation::begin(options, "receive")?;
    let offer = departure.offer();
    conversation.transport.send(&Request::Offer(Box::new(offer.clone())))?;
    let (blockers, has_image) = match conversation.answer(PATIENCE)? {
        Answer::Offer { blockers, has_image } => (blockers, has_image),
        other => return Err(conversation.out_of_turn(&other)),
    };
    if !blockers.is_empty() {
        return Err(MigrateError::Blocked { destination: conversation.destination(), blockers });
    }
    let plan = plan(offer, &conversation, has_image);
    if options.dry_run {
        return Ok(Outcome::Planned(plan));
    }
    if !has_image {
        conversation.send_image(host, &departure)?;
    }
    conversation.transport.send(&Request::Begin)?;
    match conversation.answer(PATIENCE)? {
        Answer::Ready => {}
        other => return Err(conversation.out_of_turn(&other)),
    }

    let destination = serde_json::to_string(&options.remote).unwrap_or_default();
    let mut peer = Destination { conversation, failure: None, marks: Marks::default() };
    let mut watch = Watch { events, frozen: None };
    let given =
        host.hand_over(&departure, &destination, options.keep_source, &mut peer, &mut watch);
    let frozen = watch.frozen;
    let Destination { mut conversation, failure, marks } = peer;
    match (given, failure) {
        (Ok(_), None) => {}
        // What the conversation failed with says more than that it failed.
        (Err(error), Some(failure)) => {
            return Err(match is_doubt(&error) {
                true => MigrateError::InDoubt { destination: conversation.destination() },
                false => failure,
            });
        }
        (_, Some(failure)) => return Err(failure),
        (Err(error), None) => return Err(error.into()),
    }
    // The other side may be gone by now: it has all that it needs.
    let _ = conversation.transport.send(&Request::Done);
    let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
        (Some(from), Some(to)) => micros(to.saturating_duration_since(from)),
        _ => 0,
    };
    Ok(Outcome::Moved(Box::new(Moved {
        plan,
        sent: conversation.transport.sent(),
        downtime_us: between(frozen, marks.running),
        sending_us: between(frozen, marks.sent),
        building_us: between(marks.sent, marks.built),
        commit_us: between(marks.built, marks.running),
        total_us: micros(begin.elapsed()),
        warnings: marks.warnings,
    })))
}

/// Asks the destination of a move that ended in doubt, and does what follows.
///
/// # Errors
/// The other side cannot be asked: the container stays as it is.
pub fn resolve(
    host: &mut Host,
    container: &str,
    ssh: &str,
    keep_source: bool,
) -> Result<Fate, MigrateError> {
    let Some(marker) = host.doubt(container)? else { return Ok(Fate::Back) };
    let remote: Remote = serde_json::from_str(&marker.destination)
        .map_err(arctern_container::Error::json("the destination of a migration"))?;
    let options = MigrateOptions { remote, ssh: ssh.to_owned(), dry_run: false, keep_source };
    let mut conversation = Conversation::begin(&options, "receive")?;
    conversation.transport.send(&Request::Ask { transfer: marker.transfer })?;
    let fate = match conversation.answer(PATIENCE)? {
        Answer::Taken => Fate::Gone,
        Answer::GivenUp => Fate::Back,
        other => return Err(conversation.out_of_turn(&other)),
    };
    host.settle_migration(container, fate, keep_source)?;
    let _ = conversation.transport.send(&Request::Done);
    Ok(fate)
}

fn is_doubt(error: &arctern_container::Error) -> bool {
    matches!(error, arctern_container::Error::Capture(inner)
        if matches!(**inner, CaptureError::InDoubt(_)))
}

fn plan(offer: &Offer, conversation: &Conversation, has_image: bool) -> Plan {
    Plan {
        container: offer.config.name.clone(),
        destination: conversation.destination(),
        memory: offer.memory,
        changed: offer.changed,
        image: !has_image,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A conversation with the other side, from its first word.
struct Conversation {
    transport: Transport,
    destination: String,
}

impl Conversation {
    fn begin(options: &MigrateOptions, word: &str) -> Result<Conversation, MigrateError> {
        let mut transport = Transport::open(&options.ssh, &options.remote, word)?;
        let destination = options.remote.destination.to_string();
        transport.send(&Request::Hello(Hello::new()))?;
        let mut conversation = Conversation { transport, destination };
        // The user may have to type a password.
        match conversation.answer(Duration::from_secs(600))? {
            Answer::Hello(hello) if hello.version == VERSION => Ok(conversation),
            Answer::Hello(hello) => Err(MigrateError::Version {
                destination: conversation.destination(),
                theirs: hello.program,
                version: hello.version,
            }),
            other => Err(conversation.out_of_turn(&other)),
        }
    }

    fn destination(&self) -> String {
        self.destination.clone()
    }

    /// The next answer; a failure of the other side as our error.
    fn answer(&mut self, patience: Duration) -> Result<Answer, MigrateError> {
        match self.transport.receive(patience)? {
            Answer::Failed { message, hint } => {
                Err(MigrateError::Refused { destination: self.destination(), message, hint })
            }
            answer => Ok(answer),
        }
    }

    fn out_of_turn(&self, answer: &Answer) -> MigrateError {
        MigrateError::OutOfTurn { destination: self.destination(), answer: format!("{answer:?}") }
    }

    /// What the other side said while we wrote to it: a broken pipe says less.
    fn instead_of(&mut self, error: MigrateError) -> MigrateError {
        match self.answer(Duration::from_secs(1)) {
            Err(said @ MigrateError::Refused { .. }) => said,
            _ => error,
        }
    }

    fn send_image(&mut self, host: &Host, departure: &Departure) -> Result<(), MigrateError> {
        let mut image = host.image_of(departure)?;
        self.transport.send(&Request::Image)?;
        let mut data = self.transport.data();
        let sent = io::copy(&mut image, &mut data).and_then(|_| data.finish());
        match sent {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = self.transport.failed(error).into();
                Err(self.instead_of(error))
            }
        }
    }
}

/// Passes the engine's events on, and remembers when it began to freeze, the last time if it tried
/// more often.
struct Watch<'a> {
    events: &'a mut dyn Events,
    frozen: Option<Instant>,
}

impl Events for Watch<'_> {
    fn event(&mut self, event: Event) {
        if matches!(event, Event::Phase("freeze")) {
            self.frozen = Some(Instant::now());
        }
        self.events.event(event);
    }
}

/// Moments of the freeze.
#[derive(Debug, Default)]
struct Marks {
    sent: Option<Instant>,
    built: Option<Instant>,
    running: Option<Instant>,
    warnings: Vec<String>,
}

/// The other side, as a hand-over needs it.
struct Destination {
    conversation: Conversation,
    /// Why the conversation failed.
    failure: Option<MigrateError>,
    marks: Marks,
}

/// Stands for [`Destination::failure`] on its way through the engine.
#[derive(Debug, thiserror::Error)]
#[error("the other host did not take the container")]
struct NotTaken;

impl Destination {
    fn fail<T>(&mut self, error: MigrateError) -> Result<T, HookError> {
        self.failure = Some(error);
        Err(Box::new(NotTaken))
    }
}

impl Peer for Destination {
    fn archive(&mut self) -> Result<Box<dyn Write + Send>, HookError> {
        match self.conversation.transport.send(&Request::Archive) {
            Ok(()) => Ok(Box::new(self.conversation.transport.data())),
            Err(error) => self.fail(error.into()),
        }
    }

    fn built(&mut self) -> Result<(), HookError> {
        self.marks.sent = Some(Instant::now());
        if let Err(error) = self.conversation.transport.end_data() {
            return self.fail(error.into());
        }
        match self.conversation.answer(BUILDING) {
            Ok(Answer::Built) => {
                self.marks.built = Some(Instant::now());
                Ok(())
            }
            Ok(other) => {
                let error = self.conversation.out_of_turn(&other);
                self.fail(error)
            }
            Err(error) => self.fail(error),
        }
    }

    fn commit(&mut self) -> Result<Fate, HookError> {
        if let Err(error) = self.conversation.transport.send(&Request::Commit) {
            // A part of it may have arrived.
            return self.fail(error.into());
        }
        match self.conversation.answer(BUILDING) {
            Ok(Answer::Running { warnings }) => {
                self.marks.running = Some(Instant::now());
                self.marks.warnings = warnings;
                Ok(Fate::Gone)
            }
            Ok(Answer::GivenUp) => {
                let error = self.conversation.out_of_turn(&Answer::GivenUp);
                self.failure = Some(error);
                Ok(Fate::Back)
            }
            Ok(other) => {
                let error = self.conversation.out_of_turn(&other);
                self.fail(error)
            }
            // Whatever it failed with, only its verdict says whose the container is.
            Err(error) => self.fail(error),
        }
    }
}
