//! The source's side: from a running container to one that runs elsewhere, or still here.

mod conversation;
mod estimate;
mod peer;
mod resolve;
mod rounds;

use std::time::{Duration, Instant};

use arctern_container::Host;
use arctern_container::transfer::{Departure, Leaving, Offer};
use arctern_engine::CaptureError;
use arctern_engine::options::{CaptureReport, Event, Events};
use arctern_storage::LayerBlob;
use serde::Serialize;

use self::conversation::{Conversation, PATIENCE};
pub use self::estimate::Estimate;
pub use self::peer::Freezing;
use self::peer::{Clock, Destination, Marks};
pub use self::resolve::resolve;
pub use self::rounds::RoundDone;
use self::rounds::copy_ahead;
use crate::destination::Remote;
use crate::error::MigrateError;
use crate::message::{Answer, Request};
use crate::policy::Limits;

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
    /// How often memory is sent ahead, and how long the freeze may be.
    pub limits: Limits,
    /// Bytes that may be sent in a second.
    pub bandwidth: Option<u64>,
    /// How long connections by way of this host are led to the other one.
    pub forward: Forwarding,
}

impl MigrateOptions {
    /// To there, with nothing special about it.
    #[must_use]
    pub fn to(remote: Remote, ssh: &str) -> MigrateOptions {
        MigrateOptions {
            remote,
            ssh: ssh.to_owned(),
            dry_run: false,
            keep_source: false,
            limits: Limits::default(),
            bandwidth: None,
            forward: Forwarding::Never,
        }
    }
}

/// Hears how a move is getting on.
pub trait Watch: Events {
    /// A round of memory is at the other side.
    fn round(&mut self, round: &RoundDone);
}

/// How long connections by way of the source are led to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// They are not.
    Never,
    /// For so long.
    For(Duration),
    /// Until it is ended.
    Always,
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
    /// Layers of it that the other host lacks, and that are sent.
    pub layers: usize,
    /// Bytes of them.
    pub image_bytes: u64,
    /// What the move would be; only if nothing else was asked for.
    pub estimate: Option<Estimate>,
}

/// What a move did. Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// What was found before.
    pub plan: Plan,
    /// Bytes of changed files that were sent ahead, while it ran.
    pub files: u64,
    /// Memory that was sent ahead, while it ran.
    pub rounds: Vec<RoundDone>,
    /// Bytes of memory that were sent in the freeze.
    pub rest: u64,
    /// Bytes that were sent in all.
    pub sent: u64,
    /// When the first task was stopped here, after the command began.
    pub frozen_at_us: u64,
    /// From the first task stopped here until the other side said that it runs.
    pub downtime_us: u64,
    /// Of it: until the state was captured and the rest of the memory sent.
    pub capture_us: u64,
    /// Of it: from there until the archive was sent.
    pub sending_us: u64,
    /// Of it: from there until everything was built at the other side.
    pub building_us: u64,
    /// Of it: from there until it ran.
    pub commit_us: u64,
    /// Where the downtime went.
    pub freeze: Freezing,
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

/// Moves one container: what could be in the way is asked first, then it is frozen, handed over, and
/// what was measured is told.
///
/// # Errors
/// See [`MigrateError`]: before the commit the container goes on here.
pub fn migrate(
    host: &mut Host,
    container: &str,
    options: &MigrateOptions,
    watch: &mut dyn Watch,
) -> Result<Outcome, MigrateError> {
    let begin = Instant::now();
    let mut departure = host.departure(container)?;
    let mut conversation = Conversation::begin(options, "receive")?;
    let (plan, missing) = preflight(&mut conversation, departure.offer())?;
    if options.dry_run {
        let estimate = estimate::estimate(&mut conversation, &mut departure, options)?;
        return Ok(Outcome::Planned(Plan { estimate, ..plan }));
    }
    make_ready(&mut conversation, host, &departure, missing.as_deref())?;
    let ahead = send_ahead(&mut conversation, host, &mut departure, options, begin, watch);
    let (files, rounds) = match ahead {
        Ok(ahead) => ahead,
        Err(error) => {
            host.stay(departure)?;
            return Err(error);
        }
    };
    let (conversation, marks, report) =
        hand_over(host, &mut departure, options, conversation, watch)?;
    let moved = Moved { files, rounds, ..figures(plan, &conversation, marks, &report, begin) };
    Ok(Outcome::Moved(Box::new(moved)))
}

/// The other side says everything that is in the way, and which layers of the image it lacks.
fn preflight(
    conversation: &mut Conversation,
    offer: &Offer,
) -> Result<(Plan, Option<Vec<LayerBlob>>), MigrateError> {
    conversation.transport.send(&Request::Offer(Box::new(offer.clone())))?;
    let (blockers, missing) = match conversation.answer(PATIENCE)? {
        Answer::Offer { blockers, missing } => (blockers, missing),
        other => return Err(conversation.out_of_turn(&other)),
    };
    let plan = plan(offer, conversation, missing.as_deref());
    match blockers.is_empty() {
        true => Ok((plan, missing)),
        false => Err(MigrateError::Blocked { blockers, plan: Box::new(plan) }),
    }
}

/// Everything that can be there before the container comes, while it runs here.
fn make_ready(
    conversation: &mut Conversation,
    host: &Host,
    departure: &Departure,
    missing: Option<&[LayerBlob]>,
) -> Result<(), MigrateError> {
    if let Some(layers) = missing {
        conversation.send_image(host, departure, layers)?;
    }
    conversation.transport.send(&Request::Begin)?;
    match conversation.answer(PATIENCE)? {
        Answer::Ready => Ok(()),
        other => Err(conversation.out_of_turn(&other)),
    }
}

/// Files and memory, while the container runs here.
fn send_ahead(
    conversation: &mut Conversation,
    host: &Host,
    departure: &mut Departure,
    options: &MigrateOptions,
    begin: Instant,
    watch: &mut dyn Watch,
) -> Result<(u64, Vec<RoundDone>), MigrateError> {
    watch.event(Event::Phase("files ahead"));
    let files = conversation.send_files(host, departure)?;
    let rounds = copy_ahead(conversation, departure, options, begin, watch)?;
    Ok((files, rounds))
}

/// From the freeze to the end of the container here.
fn hand_over(
    host: &mut Host,
    departure: &mut Departure,
    options: &MigrateOptions,
    conversation: Conversation,
    watch: &mut dyn Watch,
) -> Result<(Conversation, Marks, CaptureReport), MigrateError> {
    let destination = serde_json::to_string(&options.remote).unwrap_or_default();
    let forward = conversation.onward(options.forward);
    let leaving = Leaving { destination, keep: options.keep_source, forward };
    let clock = Clock::default();
    let mut events = Frozen { watch, clock: clock.clone() };
    let mut peer = Destination::new(conversation, clock, options.limits.downtime);
    let given = host.hand_over(departure, &leaving, &mut peer, &mut events);
    let late = peer.is_late();
    let Destination { mut conversation, failure, marks, .. } = peer;
    let report = match (given, failure) {
        (Ok(handed), None) => handed.report,
        // What the conversation failed with says more than that it failed.
        (Err(error), Some(failure)) => {
            return Err(match is_doubt(&error) {
                true => MigrateError::InDoubt { destination: conversation.destination() },
                false => failure,
            });
        }
        (_, Some(failure)) => return Err(failure),
        (Err(_), None) if late.is_some() => {
            return Err(MigrateError::Late { limit: late.unwrap_or_default() });
        }
        (Err(error), None) => {
            let cut = is_of_a_hook(&error);
            let error = error.into();
            return Err(if cut { conversation.instead_of(error) } else { error });
        }
    };
    // The other side may be gone by now: it has all that it needs.
    let _ = conversation.transport.send(&Request::Done);
    Ok((conversation, marks, report))
}

fn figures(
    plan: Plan,
    conversation: &Conversation,
    marks: Marks,
    report: &CaptureReport,
    begin: Instant,
) -> Moved {
    let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
        (Some(from), Some(to)) => micros(to.saturating_duration_since(from)),
        _ => 0,
    };
    Moved {
        plan,
        files: 0,
        rounds: Vec::new(),
        rest: report.pages_written * arctern_sys::PAGE_SIZE,
        sent: conversation.transport.sent(),
        frozen_at_us: between(Some(begin), marks.frozen),
        downtime_us: between(marks.frozen, marks.running),
        capture_us: between(marks.frozen, marks.captured),
        sending_us: between(marks.captured, marks.sent),
        building_us: between(marks.sent, marks.built),
        commit_us: between(marks.built, marks.running),
        freeze: marks.freeze,
        total_us: micros(begin.elapsed()),
        warnings: marks.warnings,
    }
}

fn is_doubt(error: &arctern_container::Error) -> bool {
    matches!(error, arctern_container::Error::Capture(inner)
        if matches!(**inner, CaptureError::InDoubt(_)))
}

/// What a hook of ours failed with is mostly that the other side has gone, and it says why.
fn is_of_a_hook(error: &arctern_container::Error) -> bool {
    matches!(error, arctern_container::Error::Capture(inner)
        if matches!(**inner, CaptureError::Hook(_)))
}

fn plan(offer: &Offer, conversation: &Conversation, missing: Option<&[LayerBlob]>) -> Plan {
    let layers = missing.unwrap_or_default();
    Plan {
        container: offer.config.name.clone(),
        destination: conversation.destination(),
        memory: offer.memory,
        changed: offer.changed,
        image: missing.is_some(),
        layers: layers.len(),
        image_bytes: layers.iter().map(|layer| layer.bytes).sum(),
        estimate: None,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Passes the engine's events on, and notes when it began to freeze, the last time if it tried more
/// often.
struct Frozen<'a> {
    watch: &'a mut dyn Watch,
    clock: Clock,
}

impl Events for Frozen<'_> {
    fn event(&mut self, event: Event) {
        if let Event::Phase(phase) = event {
            if phase == "freeze" {
                self.clock.freezes();
            }
            self.clock.phase(phase);
        }
        self.watch.event(event);
    }
}
