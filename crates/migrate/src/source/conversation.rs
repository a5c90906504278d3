//! Asking the other side, and understanding what it says.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use arctern_container::Host;
use arctern_container::transfer::{Departure, Onward};

use arctern_storage::LayerBlob;

use super::{Forwarding, MigrateOptions};
use crate::error::MigrateError;
use crate::message::{Answer, Hello, Request, VERSION};
use crate::transport::Transport;

/// How long the other side may take for what needs no data: preparing, answering.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to say that data is there, after its last byte was written: what pipes and
/// sockets hold on a slow link. Whether the link is dead ssh finds out.
pub(super) const ARRIVING: Duration = Duration::from_secs(600);

/// A conversation with the other side, from its first word.
pub(super) struct Conversation {
    pub(super) transport: Transport,
    destination: String,
    /// Where the other side was called, as it sees it.
    called_at: Option<IpAddr>,
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
        let mut conversation = Conversation { transport, destination, called_at: None };
        // The user may have to type a password.
        match conversation.answer(Duration::from_secs(600))? {
            Answer::Hello(hello) if hello.version == VERSION => {
                conversation.called_at = hello.called_at;
                Ok(conversation)
            }
            Answer::Hello(hello) => Err(MigrateError::Version {
                destination: conversation.destination(),
                theirs: hello.program,
                version: hello.version,
            }),
            other => Err(conversation.out_of_turn(&other)),
        }
    }

    /// Where connections by way of this host go when the container runs there.
    pub(super) fn onward(&self, forward: Forwarding) -> Option<(Onward, Option<Duration>)> {
        let limit = match forward {
            Forwarding::Never => return None,
            Forwarding::For(time) => Some(time),
            Forwarding::Always => None,
        };
        let IpAddr::V4(via) = self.called_at?.to_canonical() else { return None };
        Some((Onward { via, host: self.destination() }, limit))
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

    /// The last word: the move is over, and can be forgotten. The other side may be gone by now, which
    /// has all that it needs.
    pub(super) fn done(&mut self) {
        if self.transport.send(&Request::Done).is_ok() {
            self.transport.await_end();
        }
    }

    pub(super) fn send_image(
        &mut self,
        host: &Host,
        departure: &Departure,
        layers: &[LayerBlob],
    ) -> Result<(), MigrateError> {
        let image = host.image_of(departure, layers)?;
        self.send_stream(&Request::Image, image).map(drop)
    }

    /// Large files that the container at this place of the offer has changed; gives the bytes that were
    /// sent.
    pub(super) fn send_files(
        &mut self,
        host: &Host,
        of: usize,
        departure: &mut Departure,
    ) -> Result<u64, MigrateError> {
        let Some(files) = host.files_ahead(departure)? else { return Ok(0) };
        let sent = self.send_stream(&Request::Files(of), files)?;
        match self.answer(ARRIVING)? {
            Answer::Stored => Ok(sent),
            other => Err(self.out_of_turn(&other)),
        }
    }

    fn send_stream(
        &mut self,
        request: &Request,
        mut stream: impl io::Read,
    ) -> Result<u64, MigrateError> {
        self.transport.send(request)?;
        let mut data = self.transport.data();
        let sent = io::copy(&mut stream, &mut data);
        match sent.and_then(|sent| data.finish().map(|()| sent)) {
            Ok(sent) => Ok(sent),
            Err(error) => {
                let error = self.transport.failed(error).into();
                Err(self.instead_of(error))
            }
        }
    }
}
