//! Why a move did not come about.

use arctern_container::transfer::Blocker;

use crate::transport::TransportError;

/// Why a move did not come about. The container runs at its source, except after
/// [`MigrateError::InDoubt`].
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Things are in the way, all of them; nothing was touched.
    #[error("{} thing(s) in the way at {destination}:{}", .blockers.len(), listed(.blockers))]
    Blocked {
        /// Where to.
        destination: String,
        /// What they are.
        blockers: Vec<Blocker>,
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
    /// The connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// This side.
    #[error(transparent)]
    Container(#[from] arctern_container::Error),
    /// The container was committed, and nobody knows whether it arrived.
    #[error("the connection to {destination} ended after the container was handed over")]
    InDoubt {
        /// Where to.
        destination: String,
    },
}

fn listed(blockers: &[Blocker]) -> String {
    let lines = blockers.iter().map(|b| format!("\n- {}; {}", b.cause, b.remedy));
    lines.collect()
}

impl MigrateError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            MigrateError::Refused { hint, .. } => hint.clone(),
            MigrateError::Version { .. } => Some("install the same version on both hosts".into()),
            MigrateError::Container(error) => error.hint(),
            MigrateError::InDoubt { .. } => Some(
                "neither copy runs unless it arrived: `arctern migrate --resolve CONTAINER` asks, when \
                 the connection is back"
                    .into(),
            ),
            _ => None,
        }
    }
}
