//! The source's side: from running containers to ones that run elsewhere, or still here.

mod conversation;
mod estimate;
mod peer;
mod resolve;
mod rounds;
mod together;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arctern_container::Host;
use arctern_container::transfer::{Blocker, Departure, HandedOver, Leaving, Offer};
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
use self::together::{Ended, Together};
use crate::destination::Remote;
use crate::error::MigrateError;
use crate::message::{Answer, Request};
use crate::policy::Limits;

/// How containers are moved.
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
    /// A round of memory is at the other side; of which container, if several move.
    fn round(&mut self, container: Option<&str>, round: &RoundDone);
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

/// What was found of one container before anything was touched.
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

/// What a move did with one container. Times in microseconds.
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
    /// Bytes that were sent in all, for all that moved together.
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

/// What came of it, for each container in the order of the command.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Nothing was touched.
    Planned(Vec<Plan>),
    /// They run at their destination.
    Moved(Vec<Moved>),
}

/// What the other side lacks of the image of a container; none: it has it.
type Missing = Option<Vec<LayerBlob>>;

/// Moves containers together: what could be in the way is asked first, then they are frozen, handed
/// over all at once, and what was measured is told.
///
/// # Errors
/// See [`MigrateError`]: before the commit all of them go on here.
pub fn migrate(
    host: &mut Host,
    containers: &[String],
    options: &MigrateOptions,
    watch: &mut dyn Watch,
) -> Result<Outcome, MigrateError> {
    let begin = Instant::now();
    let mut departures = host.departures(containers)?;
    let staying = host.left_behind(&departures)?;
    let mut conversation = Conversation::begin(options, "receive")?;
    let (mut plans, missing) = preflight(&mut conversation, &departures, staying)?;
    if options.dry_run {
        for (plan, departure) in plans.iter_mut().zip(&mut departures) {
            plan.estimate = estimate::estimate(&mut conversation, departure, options)?;
        }
        return Ok(Outcome::Planned(plans));
    }
    make_ready(&mut conversation, host, &departures, &missing)?;
    let ahead = send_ahead(&mut conversation, host, &mut departures, options, begin, watch);
    let (files, rounds) = match ahead {
        Ok(ahead) => ahead,
        Err(error) => {
            departures.into_iter().try_for_each(|departure| host.stay(departure))?;
            return Err(error);
        }
    };
    let (conversation, handed) = hand_over(host, &mut departures, options, conversation, watch)?;
    for (plan, (marks, _)) in plans.iter().zip(&handed) {
        if let Some(cause) = &marks.stopped {
            return Err(MigrateError::Stopped {
                container: plan.container.clone(),
                destination: conversation.destination(),
                cause: cause.clone(),
            });
        }
    }
    let ahead = files.into_iter().zip(rounds);
    let moved =
        plans.into_iter().zip(handed).zip(ahead).map(|((plan, handed), (files, rounds))| {
            let (marks, report) = handed;
            Moved { files, rounds, ..figures(plan, &conversation, marks, &report, begin) }
        });
    Ok(Outcome::Moved(moved.collect()))
}

/// The other side says everything that is in the way, and which layers of the images it lacks.
fn preflight(
    conversation: &mut Conversation,
    departures: &[Departure],
    mut blockers: Vec<Blocker>,
) -> Result<(Vec<Plan>, Vec<Missing>), MigrateError> {
    let offers: Vec<Offer> = departures.iter().map(|d| d.offer().clone()).collect();
    conversation.transport.send(&Request::Offer(offers))?;
    let missing = match conversation.answer(PATIENCE)? {
        Answer::Offer { blockers: theirs, missing } if missing.len() == departures.len() => {
            blockers.extend(theirs);
            missing
        }
        other => return Err(conversation.out_of_turn(&other)),
    };
    let plans = departures.iter().zip(&missing);
    let plans = plans.map(|(d, missing)| plan(d.offer(), conversation, missing.as_deref()));
    let plans: Vec<Plan> = plans.collect();
    match blockers.is_empty() {
        true => Ok((plans, missing)),
        false => {
            Err(MigrateError::Blocked { blockers, destination: conversation.destination(), plans })
        }
    }
}

/// Everything that can be there before the containers come, while they run here.
fn make_ready(
    conversation: &mut Conversation,
    host: &Host,
    departures: &[Departure],
    missing: &[Missing],
) -> Result<(), MigrateError> {
    let mut sent = Vec::new();
    for (departure, missing) in departures.iter().zip(missing) {
        let image = &departure.offer().config.image_id;
        if let Some(layers) = missing.as_deref().filter(|_| !sent.contains(&image)) {
            conversation.send_image(host, departure, layers)?;
            sent.push(image);
        }
    }
    conversation.transport.send(&Request::Begin)?;
    match conversation.answer(PATIENCE)? {
        Answer::Ready => Ok(()),
        other => Err(conversation.out_of_turn(&other)),
    }
}

/// Files and memory of each, while they run here.
fn send_ahead(
    conversation: &mut Conversation,
    host: &Host,
    departures: &mut [Departure],
    options: &MigrateOptions,
    begin: Instant,
    watch: &mut dyn Watch,
) -> Result<(Vec<u64>, Vec<Vec<RoundDone>>), MigrateError> {
    watch.event(Event::Phase("files ahead"));
    let mut files = Vec::new();
    for (of, departure) in departures.iter_mut().enumerate() {
        files.push(conversation.send_files(host, of, departure)?);
    }
    let rounds = copy_ahead(conversation, departures, options, begin, watch)?;
    Ok((files, rounds))
}

/// What the hand-over of one container came to.
struct Given {
    result: arctern_container::Result<HandedOver>,
    marks: Marks,
    /// It might have stood still for so long, and has for longer.
    late: Option<Duration>,
}

/// From the freeze to the end of the containers here.
fn hand_over(
    host: &mut Host,
    departures: &mut [Departure],
    options: &MigrateOptions,
    conversation: Conversation,
    watch: &mut dyn Watch,
) -> Result<(Conversation, Vec<(Marks, CaptureReport)>), MigrateError> {
    let destination = serde_json::to_string(&options.remote).unwrap_or_default();
    let forward = conversation.onward(options.forward);
    let leaving = Leaving { destination, keep: options.keep_source, forward };
    let together = Arc::new(Together::new(conversation, departures.len()));
    let limit = options.limits.downtime;
    let given = match &mut *departures {
        [departure] => vec![give(host, departure, &leaving, limit, (&together, 0), watch)],
        several => each_for_itself(host, several, &leaving, limit, &together, watch)?,
    };
    let Some(together) = Arc::into_inner(together) else {
        return Err(arctern_container::Error::Invalid("a hand-over has not ended".into()).into());
    };
    let Ended { mut conversation, failure, first } = together.end();
    if given.iter().any(|given| given.result.as_ref().is_err_and(is_doubt)) {
        return Err(MigrateError::InDoubt { destination: conversation.destination() });
    }
    // What the conversation failed with says more than that it failed.
    if let Some(failure) = failure {
        return Err(failure);
    }
    let mut handed = Vec::new();
    let mut failed = Vec::new();
    for (place, Given { result, marks, late }) in given.into_iter().enumerate() {
        match result {
            Ok(HandedOver { report, .. }) => handed.push((marks, report)),
            Err(error) => failed.push((place, error, late)),
        }
    }
    // The others went on because the first did.
    failed.sort_by_key(|(place, ..)| Some(*place) != first);
    if let Some((place, error, late)) = failed.into_iter().next() {
        if let Some(limit) = late {
            return Err(MigrateError::Late { limit });
        }
        let cut = is_of_a_hook(&error);
        let error = match departures.len() {
            1 => error.into(),
            _ => MigrateError::Of {
                container: departures[place].offer().config.name.clone(),
                source: Box::new(error),
            },
        };
        return Err(if cut { conversation.instead_of(error) } else { error });
    }
    conversation.done();
    Ok((conversation, handed))
}

/// The hand-over of one of the containers, with its place in the offer.
fn give(
    host: &mut Host,
    departure: &mut Departure,
    leaving: &Leaving,
    limit: Option<Duration>,
    (together, place): (&Arc<Together>, usize),
    events: &mut dyn Events,
) -> Given {
    let clock = Clock::default();
    let mut events = Frozen { events, clock: clock.clone() };
    let mut peer = Destination::new(together, place, clock, limit);
    let result = host.hand_over(departure, leaving, &mut peer, &mut events);
    Given { result, marks: std::mem::take(&mut peer.marks), late: peer.is_late() }
}

/// The hand-over of several, by a thread each: whom it stops, only the same thread can let go.
fn each_for_itself(
    host: &Host,
    departures: &mut [Departure],
    leaving: &Leaving,
    limit: Option<Duration>,
    together: &Arc<Together>,
    watch: &mut dyn Watch,
) -> Result<Vec<Given>, MigrateError> {
    let hosts: Result<Vec<Host>, _> =
        departures.iter().map(|_| Host::open(host.paths.clone())).collect();
    let hosts = hosts?;
    let given = std::thread::scope(|scope| {
        let begin = |(place, (departure, mut host)): (usize, (_, Host))| {
            scope.spawn(move || {
                let mut warnings = Warnings::default();
                let of = (together, place);
                let given = give(&mut host, departure, leaving, limit, of, &mut warnings);
                (given, warnings.0)
            })
        };
        let threads: Vec<_> = departures.iter_mut().zip(hosts).enumerate().map(begin).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let tell = |(given, warnings): (Given, Vec<String>)| {
        warnings.into_iter().for_each(|warning| watch.event(Event::Warning(warning)));
        given
    };
    Ok(given.into_iter().map(tell).collect())
}

/// Keeps warnings until nobody stands still: what is forked meanwhile may need the output.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Events for Warnings {
    fn event(&mut self, event: Event) {
        if let Event::Warning(text) = event {
            self.0.push(text);
        }
    }
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
    events: &'a mut dyn Events,
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
        self.events.event(event);
    }
}
