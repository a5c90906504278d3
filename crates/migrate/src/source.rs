//! The source's side: from a running container to one that runs elsewhere, or still here.

mod conversation;
mod peer;
mod resolve;

use std::time::{Duration, Instant};

use arctern_container::Host;
use arctern_container::transfer::{Departure, Offer};
use arctern_engine::CaptureError;
use arctern_engine::options::{Event, Events};
use serde::Serialize;

use self::conversation::{Conversation, PATIENCE};
use self::peer::{Destination, Marks};
pub use self::resolve::resolve;
use crate::destination::Remote;
use crate::error::MigrateError;
use crate::message::{Answer, Request};

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

/// Moves one container: what could be in the way is asked first, then it is frozen, handed over, and
/// what was measured is told.
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
    let plan = preflight(&mut conversation, departure.offer())?;
    if options.dry_run {
        return Ok(Outcome::Planned(plan));
    }
    make_ready(&mut conversation, host, &departure, plan.image)?;
    let mut frozen = Frozen { events, since: None };
    let (conversation, marks) = hand_over(host, &departure, options, conversation, &mut frozen)?;
    let moved = figures(plan, &conversation, marks, frozen.since, begin);
    Ok(Outcome::Moved(Box::new(moved)))
}

/// The other side says everything that is in the way.
fn preflight(conversation: &mut Conversation, offer: &Offer) -> Result<Plan, MigrateError> {
    conversation.transport.send(&Request::Offer(Box::new(offer.clone())))?;
    let (blockers, has_image) = match conversation.answer(PATIENCE)? {
        Answer::Offer { blockers, has_image } => (blockers, has_image),
        other => return Err(conversation.out_of_turn(&other)),
    };
    match blockers.is_empty() {
        true => Ok(plan(offer, conversation, has_image)),
        false => Err(MigrateError::Blocked { destination: conversation.destination(), blockers }),
    }
}

/// Everything that can be there before the container comes, while it runs here.
fn make_ready(
    conversation: &mut Conversation,
    host: &Host,
    departure: &Departure,
    image: bool,
) -> Result<(), MigrateError> {
    if image {
        conversation.send_image(host, departure)?;
    }
    conversation.transport.send(&Request::Begin)?;
    match conversation.answer(PATIENCE)? {
        Answer::Ready => Ok(()),
        other => Err(conversation.out_of_turn(&other)),
    }
}

/// From the freeze to the end of the container here.
fn hand_over(
    host: &mut Host,
    departure: &Departure,
    options: &MigrateOptions,
    conversation: Conversation,
    frozen: &mut Frozen<'_>,
) -> Result<(Conversation, Marks), MigrateError> {
    let destination = serde_json::to_string(&options.remote).unwrap_or_default();
    let mut peer = Destination { conversation, failure: None, marks: Marks::default() };
    let given = host.hand_over(departure, &destination, options.keep_source, &mut peer, frozen);
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
    Ok((conversation, marks))
}

fn figures(
    plan: Plan,
    conversation: &Conversation,
    marks: Marks,
    frozen: Option<Instant>,
    begin: Instant,
) -> Moved {
    let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
        (Some(from), Some(to)) => micros(to.saturating_duration_since(from)),
        _ => 0,
    };
    Moved {
        plan,
        sent: conversation.transport.sent(),
        downtime_us: between(frozen, marks.running),
        sending_us: between(frozen, marks.sent),
        building_us: between(marks.sent, marks.built),
        commit_us: between(marks.built, marks.running),
        total_us: micros(begin.elapsed()),
        warnings: marks.warnings,
    }
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

/// Passes the engine's events on, and remembers when it began to freeze, the last time if it tried
/// more often.
struct Frozen<'a> {
    events: &'a mut dyn Events,
    since: Option<Instant>,
}

impl Events for Frozen<'_> {
    fn event(&mut self, event: Event) {
        if matches!(event, Event::Phase("freeze")) {
            self.since = Some(Instant::now());
        }
        self.events.event(event);
    }
}
