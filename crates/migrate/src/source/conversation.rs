//! Asking the other side, and understanding what it says.

use std::io;
use std::time::Duration;

use arctern_container::Host;
use arctern_container::transfer::Departure;

use super::MigrateOptions;
use crate::error::MigrateError;
use crate::message::{Answer, Hello, Request, VERSION};
use crate::transport::Transport;

/// How long the other side may take for what needs no data: preparing, answering.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A conversation with the other side, from its first word.
pub(super) struct Conversation {
    pub(super) transport: Transport,
    destination: String,
}

impl Conversation {
    pub(super) fn begin(
        options: &MigrateOptions,
        word: &str,
    ) -> Result<Conversation, MigrateError> {
        let mut transport =
            Transport::open(&options.ssh, &options.remote, word, options.bandwidth)?;
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

    pub(super) fn destination(&self) -> String {
        self.destination.clone()
    }

    /// The next answer; a failure of the other side as our error.
    pub(super) fn answer(&mut self, patience: Duration) -> Result<Answer, MigrateError> {
        match self.transport.receive(patience)? {
            Answer::Failed { message, hint } => {
                Err(MigrateError::Refused { destination: self.destination(), message, hint })
            }
            answer => Ok(answer),
        }
    }

    pub(super) fn out_of_turn(&self, answer: &Answer) -> MigrateError {
        MigrateError::OutOfTurn { destination: self.destination(), answer: format!("{answer:?}") }
    }

    /// What the other side said while we wrote to it: a broken pipe says less.
    pub(super) fn instead_of(&mut self, error: MigrateError) -> MigrateError {
        match self.answer(Duration::from_secs(1)) {
            Err(said @ MigrateError::Refused { .. }) => said,
            _ => error,
        }
    }

    pub(super) fn send_image(
        &mut self,
        host: &Host,
        departure: &Departure,
    ) -> Result<(), MigrateError> {
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
