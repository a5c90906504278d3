//! The destination's side, run by ssh: it answers until the source is done or gone.

use std::io::{self, Read, Write};

use arctern_container::Host;
use arctern_container::error::chain;
use arctern_container::transfer::{Arrival, Offer, Passage, Verdict};
use arctern_engine::options::{Event, Events};

use crate::message::{Answer, Hello, Request, VERSION};
use crate::pages::read_pages;
use crate::wire::{Receiver, Sender};

/// What the engine tells is not shown: the source has the user's terminal.
struct Quiet;

impl Events for Quiet {
    fn event(&mut self, event: Event) {
        if let Event::Warning(text) = event {
            tracing::warn!("{text}");
        }
    }
}

/// Answers a source.
///
/// # Errors
/// The streams fail, or what comes is no conversation. What was not committed is removed first.
pub fn receive<R: Read, W: Write>(host: &mut Host, from: R, to: W) -> io::Result<()> {
    let (mut receiver, sender) = (Receiver::new(from), Sender::new(to));
    let Some(Request::Hello(hello)) = receiver.message()? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    sender.message(&Answer::Hello(Hello::new()))?;
    if hello.version != VERSION {
        return Ok(());
    }
    let mut destination = Destination { host, offer: None, arrival: None };
    let talked = destination.talk(&mut receiver, &sender);
    // Whatever ended the conversation: what was not committed does not come any more.
    if let Some(arrival) = destination.arrival.take()
        && let Err(error) = destination.host.abandon(arrival)
    {
        tracing::error!("{}", error.chain());
    }
    talked
}

struct Destination<'a> {
    host: &'a mut Host,
    offer: Option<Box<Offer>>,
    arrival: Option<Arrival>,
}

impl Destination<'_> {
    fn talk<R: Read, W: Write>(
        &mut self,
        receiver: &mut Receiver<R>,
        sender: &Sender<W>,
    ) -> io::Result<()> {
        let mut transfer = None;
        while let Some(request) = receiver.message()? {
            let answer = match request {
                Request::Offer(offer) => {
                    transfer = Some(offer.transfer.clone());
                    let blockers = self.host.blockers(&offer);
                    let missing = self.host.missing_image(&offer);
                    self.offer = Some(offer);
                    blockers.map(|blockers| Some(Answer::Offer { blockers, missing }))
                }
                Request::Image => {
                    let mut data = receiver.data();
                    let taken = self.host.take_image(&mut data).map(|()| None);
                    if taken.is_ok() {
                        data.drain()?;
                    }
                    taken
                }
                Request::Probe => {
                    receiver.data().drain()?;
                    Ok(Some(Answer::Stored))
                }
                Request::Begin => self.begin(),
                Request::Files => self.files(receiver),
                Request::Round => self.round(receiver),
                Request::Rest => self.rest(receiver),
                Request::Archive => self.archive(receiver),
                Request::Pass(passage) => self.pass(&passage),
                Request::Commit => self.commit(),
                Request::Ask { transfer: asked } => {
                    let verdict = Verdict::Aborted.decide(&self.host.paths, &asked);
                    transfer = Some(asked);
                    verdict.map(|verdict| match verdict {
                        Verdict::Committed => Some(Answer::Taken),
                        Verdict::Aborted => Some(Answer::GivenUp),
                    })
                }
                Request::Done => {
                    if let Some(transfer) = &transfer
                        && let Err(error) = Verdict::forget(&self.host.paths, transfer)
                    {
                        tracing::warn!("{}", error.chain());
                    }
                    return Ok(());
                }
                Request::Hello(_) => return Err(io::ErrorKind::InvalidData.into()),
            };
            match answer {
                Ok(Some(answer)) => sender.message(&answer)?,
                Ok(None) => {}
                Err(error) => {
                    let answer = Answer::Failed { message: chain(&error), hint: error.hint() };
                    return sender.message(&answer);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> arctern_container::Result<Option<Answer>> {
        let offer = self.offer.as_ref().ok_or_else(out_of_turn)?;
        self.arrival = Some(self.host.expect(offer)?);
        Ok(Some(Answer::Ready))
    }

    fn files<R: Read>(
        &mut self,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.as_mut().ok_or_else(out_of_turn)?;
        let mut data = receiver.data();
        self.host.take_files(arrival, &mut data)?;
        data.drain().map_err(arctern_container::Error::system("receive files"))?;
        Ok(Some(Answer::Stored))
    }

    fn round<R: Read>(
        &mut self,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.as_mut().ok_or_else(out_of_turn)?;
        let mut pages = self.host.expect_round(arrival)?;
        read_pages(receiver.data(), &mut pages).map_err(arctern_container::Error::Memory)?;
        pages.conclude().map_err(|error| arctern_container::Error::Memory(error.into()))?;
        self.host.took_round(arrival)?;
        Ok(Some(Answer::Stored))
    }

    fn rest<R: Read>(
        &mut self,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.as_mut().ok_or_else(out_of_turn)?;
        let mut pages = self.host.expect_rest(arrival)?;
        read_pages(receiver.data(), &mut pages).map_err(arctern_container::Error::Memory)?;
        Ok(None)
    }

    fn archive<R: Read>(
        &mut self,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.as_mut().ok_or_else(out_of_turn)?;
        let mut data = receiver.data();
        self.host.take_archive(arrival, &mut data, &mut Quiet)?;
        data.drain().map_err(arctern_container::Error::system("receive the container"))?;
        let (laps, builder) = self.host.build(arrival)?;
        Ok(Some(Answer::Built { laps, builder }))
    }

    fn pass(&mut self, passage: &Passage) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.as_ref().ok_or_else(out_of_turn)?;
        let refused = self.host.send_back(arrival, passage).err().map(|error| chain(&error));
        Ok(Some(Answer::Passed { refused }))
    }

    fn commit(&mut self) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrival.take().ok_or_else(out_of_turn)?;
        match self.host.commit(arrival) {
            Ok(started) => {
                Ok(Some(Answer::Running { warnings: started.warnings, builder: started.laps }))
            }
            Err(arctern_container::Error::NotCommitted) => Ok(Some(Answer::GivenUp)),
            Err(error) => Err(error),
        }
    }
}

fn out_of_turn() -> arctern_container::Error {
    arctern_container::Error::Invalid("the source spoke out of turn".to_owned())
}
