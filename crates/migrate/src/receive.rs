//! The destination's side, run by ssh: it answers until the source is done or gone.

use std::io::{self, Read, Write};

use arctern_container::Host;
use arctern_container::error::chain;
use arctern_container::lifecycle::Started;
use arctern_container::transfer::{Arrival, Offer, Passage, Verdict};
use arctern_engine::options::{Event, Events};

use crate::message::{Answer, Building, Hello, Release, Request, VERSION};
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
    let mut destination = Destination { host, offers: Vec::new(), arrivals: Vec::new() };
    let talked = destination.talk(&mut receiver, &sender);
    // Whatever ended the conversation: what was not committed does not come any more.
    for arrival in std::mem::take(&mut destination.arrivals) {
        if let Err(error) = destination.host.abandon(arrival) {
            tracing::error!("{}", error.chain());
        }
    }
    talked
}

struct Destination<'a> {
    host: &'a mut Host,
    offers: Vec<Offer>,
    /// In the order of the offers, when they are made ready.
    arrivals: Vec<Arrival>,
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
                Request::Offer(offers) => {
                    transfer = offers.first().map(|offer| offer.transfer.clone());
                    let blockers = self.host.blockers(&offers);
                    let missing = offers.iter().map(|o| self.host.missing_image(o)).collect();
                    self.offers = offers;
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
                Request::Files(of) => self.files(of, receiver),
                Request::Round(of) => self.round(of, receiver),
                Request::Rest(of) => self.rest(of, receiver),
                Request::Archive(of) => self.archive(of, receiver),
                Request::Pass(of, passage) => self.pass(of, &passage),
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
                        && let Err(error) = self.host.conclude(transfer)
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
        let Some(first) = self.offers.first().filter(|_| self.arrivals.is_empty()) else {
            return Err(out_of_turn());
        };
        for offer in &self.offers {
            // What is decided of one is decided of all.
            if offer.transfer != first.transfer {
                return Err(out_of_turn());
            }
            self.arrivals.push(self.host.expect(offer)?);
        }
        Ok(Some(Answer::Ready))
    }

    fn files<R: Read>(
        &mut self,
        of: usize,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrivals.get_mut(of).ok_or_else(out_of_turn)?;
        let mut data = receiver.data();
        self.host.take_files(arrival, &mut data)?;
        data.drain().map_err(arctern_container::Error::system("receive files"))?;
        Ok(Some(Answer::Stored))
    }

    fn round<R: Read>(
        &mut self,
        of: usize,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrivals.get_mut(of).ok_or_else(out_of_turn)?;
        let mut pages = self.host.expect_round(arrival)?;
        read_pages(receiver.data(), &mut pages).map_err(arctern_container::Error::Memory)?;
        pages.conclude().map_err(|error| arctern_container::Error::Memory(error.into()))?;
        self.host.took_round(arrival)?;
        Ok(Some(Answer::Stored))
    }

    fn rest<R: Read>(
        &mut self,
        of: usize,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrivals.get_mut(of).ok_or_else(out_of_turn)?;
        let mut pages = self.host.expect_rest(arrival)?;
        read_pages(receiver.data(), &mut pages).map_err(arctern_container::Error::Memory)?;
        Ok(None)
    }

    fn archive<R: Read>(
        &mut self,
        of: usize,
        receiver: &mut Receiver<R>,
    ) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrivals.get_mut(of).ok_or_else(out_of_turn)?;
        let mut data = receiver.data();
        self.host.take_archive(arrival, &mut data, &mut Quiet)?;
        data.drain().map_err(arctern_container::Error::system("receive the container"))?;
        // It is built while the next one comes.
        self.host.begin_to_build(arrival);
        if !self.arrivals.iter().all(Arrival::is_complete) {
            return Ok(None);
        }
        let mut built = Vec::new();
        for arrival in &mut self.arrivals {
            let (laps, builder) = self.host.built(arrival)?;
            built.push(Building { laps, builder });
        }
        Ok(Some(Answer::Built(built)))
    }

    fn pass(&mut self, of: usize, passage: &Passage) -> arctern_container::Result<Option<Answer>> {
        let arrival = self.arrivals.get(of).ok_or_else(out_of_turn)?;
        let refused = self.host.send_back(arrival, passage).err().map(|error| chain(&error));
        Ok(Some(Answer::Passed { refused }))
    }

    fn commit(&mut self) -> arctern_container::Result<Option<Answer>> {
        match self.host.commit(std::mem::take(&mut self.arrivals)) {
            Ok(started) => Ok(Some(Answer::Running(started.into_iter().map(release).collect()))),
            Err(arctern_container::Error::NotCommitted) => Ok(Some(Answer::GivenUp)),
            Err(error) => Err(error),
        }
    }
}

fn release(started: arctern_container::Result<Started>) -> Release {
    match started {
        Ok(Started { warnings, laps, .. }) => Release { warnings, builder: laps, stopped: None },
        Err(error) => Release { stopped: Some(chain(&error)), ..Release::default() },
    }
}

fn out_of_turn() -> arctern_container::Error {
    arctern_container::Error::Invalid("the source spoke out of turn".to_owned())
}
