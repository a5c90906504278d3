//! Why a move did not come about.

use std::time::Duration;

use arctern_container::transfer::Blocker;

use crate::source::Plan;
use crate::transport::TransportError;

/// Why a move did not come about. All containers run at their source, except after
/// [`MigrateError::Stopped`] and [`MigrateError::InDoubt`].
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Things are in the way, all of them; nothing was touched.
    #[error(
        "{} thing(s) in the way at {}:{}{}",
        .blockers.len(), .destination, listed(.blockers), lacking(.plans)
    )]
    Blocked {
        /// What they are.
        blockers: Vec<Blocker>,
        /// Where to.
        destination: String,
        /// What would be sent.
        plans: Vec<Plan>,
    },
    /// The two programs do not understand each other.
    #[error(
        "{destination} has arctern {theirs}, which speaks version {version} of the protocol, and not {}",
        crate::message::VERSION
    )]
    Version {
        /// Where to.
        destination: String,
        /// The other program's version.
        theirs: String,
        /// Its protocol's version.
        version: u32,
    },
    /// The other side could not do its part.
    #[error("{destination}: {message}")]
    Refused {
        /// Where to.
        destination: String,
        /// Its message, with causes.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The other side says what was not asked.
    #[error("{destination} answered out of turn: {answer}")]
    OutOfTurn {
        /// Where to.
        destination: String,
        /// What it said.
        answer: String,
    },
    /// Its memory changes too fast for the link.
    #[error(
        "it would stand still for about {}, and {} is accepted: it writes {}/s, and {}/s are sent \
         ({rounds} round(s) were)",
        seconds(.expected), seconds(.limit), mebibytes(*.dirty_rate), mebibytes(*.rate)
    )]
    TooLong {
        /// How long it would stand still.
        expected: Duration,
        /// What the user accepts.
        limit: Duration,
        /// How many rounds were tried.
        rounds: u32,
        /// Bytes that the link carries in a second.
        rate: u64,
        /// Bytes that the container writes in a second.
        dirty_rate: u64,
    },
    /// It stands still for longer than the user accepts.
    #[error("it had stood still for {} when the other side was ready", seconds(.limit))]
    Late {
        /// What the user accepts.
        limit: Duration,
    },
    /// The connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// This side.
    #[error(transparent)]
    Container(#[from] arctern_container::Error),
    /// One of several containers, because of which the others stay too.
    #[error("container `{container}`")]
    Of {
        /// Its name.
        container: String,
        /// What is with it.
        source: Box<arctern_container::Error>,
    },
    /// The move was committed, and the container does not run at its destination.
    #[error("`{container}` has arrived at {destination} and was not let go there: {cause}")]
    Stopped {
        /// Its name.
        container: String,
        /// Where it is.
        destination: String,
        /// What the other side says.
        cause: String,
    },
    /// The move was committed, and nobody knows whether it arrived.
    #[error("the connection to {destination} ended after the container was handed over")]
    InDoubt {
        /// Where to.
        destination: String,
    },
}

fn seconds(time: &Duration) -> String {
    match time.as_millis() {
        0..1000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn listed(blockers: &[Blocker]) -> String {
    let lines = blockers.iter().map(|b| format!("\n- {}; {}", b.cause, b.remedy));
    lines.collect()
}

/// What is no obstacle, since it is sent.
fn lacking(plans: &[Plan]) -> String {
    let lines = plans.iter().filter(|plan| plan.image).map(|plan| {
        let image = match plans.len() {
            1 => "the image".to_owned(),
            _ => format!("the image of `{}`", plan.container),
        };
        let bytes = mebibytes(plan.image_bytes);
        format!("\nit also lacks {} layer(s) of {image}, which would be sent: {bytes}", plan.layers)
    });
    lines.collect()
}

impl MigrateError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            MigrateError::Refused { hint, .. } => hint.clone(),
            MigrateError::TooLong { .. } | MigrateError::Late { .. } => Some(
                "accept a longer --max-downtime, allow more --bandwidth or more --rounds, or move it \
                 when it has less to do"
                    .into(),
            ),
            MigrateError::Version { .. } => Some("install the same version on both hosts".into()),
            MigrateError::Container(error) => error.hint(),
            MigrateError::Of { source, .. } => source.hint(),
            MigrateError::Stopped { container, .. } => Some(format!(
                "it is there with its checkpoint: `arctern container restore --tcp-established \
                 {container}` on that host lets it go on"
            )),
            MigrateError::InDoubt { .. } => Some(
                "neither copy runs unless it arrived: `arctern migrate --resolve CONTAINER` asks, when \
                 the connection is back"
                    .into(),
            ),
            _ => None,
        }
    }
}
