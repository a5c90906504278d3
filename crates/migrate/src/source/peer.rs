//! The other side as a hand-over needs it: what is said within the freeze.

use std::io::Write;
use std::time::{Duration, Instant};

use arctern_container::transfer::Peer;
use arctern_engine::options::{Fate, HookError};

use super::conversation::Conversation;
use crate::error::MigrateError;
use crate::message::{Answer, Request};

/// How long it may take to build what it has received, with the container frozen here.
const BUILDING: Duration = Duration::from_secs(30);

/// Moments of the freeze.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) sent: Option<Instant>,
    pub(super) built: Option<Instant>,
    pub(super) running: Option<Instant>,
    pub(super) warnings: Vec<String>,
}

/// The other side, as a hand-over needs it.
pub(super) struct Destination {
    pub(super) conversation: Conversation,
    /// Why the conversation failed.
    pub(super) failure: Option<MigrateError>,
    pub(super) marks: Marks,
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
