//! Memory goes ahead while the container runs, round after round, until the policy says that the rest
//! is better sent in the freeze.

use std::time::{Duration, Instant};

use arctern_container::transfer::Departure;
use arctern_engine::CaptureError;
use arctern_engine::options::{Event, HookError};
use arctern_engine::precopy::PageSink;
use arctern_image::messages::MmEntry;
use serde::Serialize;

use super::conversation::{ARRIVING, Conversation};
use super::{MigrateOptions, Watch, micros};
use crate::error::MigrateError;
use crate::message::{Answer, Request};
use crate::pages::PageWriter;
use crate::policy::{self, Next, Round};

/// What a freeze takes without any memory to send, as far as it can be known before.
pub(super) const FIXED: Duration = Duration::from_millis(60);

/// One round of memory of one container, as it was.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RoundDone {
    /// 1 for the first.
    pub number: u32,
    /// Bytes of pages that were sent.
    pub sent: u64,
    /// Bytes of pages that are zeros, and were not.
    pub zeros: u64,
    /// Bytes that had been written again when it was over.
    pub dirty: u64,
    /// When it began, after the command, in microseconds.
    pub begin_us: u64,
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// How long the tasks stood still in it, in microseconds.
    pub stopped_us: u64,
    /// Bytes sent in a second.
    pub rate: u64,
    /// Bytes written by the container in a second.
    pub dirty_rate: u64,
    /// How long a freeze of all that move would be after it, in microseconds.
    pub downtime_us: u64,
}

/// Sends memory ahead as long as that is worth it.
pub(super) fn copy_ahead(
    conversation: &mut Conversation,
    departures: &mut [Departure],
    options: &MigrateOptions,
    begin: Instant,
    watch: &mut dyn Watch,
) -> Result<Vec<Vec<RoundDone>>, MigrateError> {
    let mut done: Vec<Vec<RoundDone>> = vec![Vec::new(); departures.len()];
    let mut measured: Vec<Round> = Vec::new();
    if policy::next(&measured, &options.limits, FIXED) == Next::Freeze {
        return Ok(done);
    }
    let mut begun = departures.iter_mut().map(Departure::begin_rounds);
    if let Err(error) = begun.try_for_each(std::convert::identity) {
        if !is_no_tracking(&error) {
            return Err(error.into());
        }
        let text = "this kernel does not tell which memory was written: all of it is sent while \
                    the container stands still";
        watch.event(Event::Warning(text.to_owned()));
        return Ok(done);
    }
    loop {
        match policy::next(&measured, &options.limits, FIXED) {
            Next::Round => {}
            Next::Freeze => return Ok(done),
            Next::Refuse { downtime } => {
                return Err(too_long(downtime, options, &measured, &done));
            }
        }
        watch.event(Event::Phase("memory ahead"));
        let mut rounds = Vec::new();
        for (of, departure) in departures.iter_mut().enumerate() {
            rounds.push(one(conversation, of, departure, done[of].last(), begin, watch)?);
        }
        for (round, departure) in rounds.iter_mut().zip(departures.iter()) {
            // While the others were sent it went on writing.
            (round.dirty, round.dirty_rate) = written(departure, round.begin_us, begin);
        }
        // They stand still together: what is left of all is sent then.
        measured.push(Round {
            sent: rounds.iter().map(|round| round.sent).sum(),
            duration: Duration::from_micros(rounds.iter().map(|round| round.total_us).sum()),
            dirty: rounds.iter().map(|round| round.dirty).sum(),
        });
        let downtime_us = micros(policy::downtime(&measured, FIXED));
        for ((of, round), departure) in rounds.into_iter().enumerate().zip(departures.iter()) {
            let round = RoundDone { downtime_us, ..round };
            let name = (done.len() > 1).then_some(departure.offer().config.name.as_str());
            watch.round(name, &round);
            done[of].push(round);
        }
    }
}

/// Bytes that were written since a round began, and in a second.
fn written(departure: &Departure, begin_us: u64, begin: Instant) -> (u64, u64) {
    let dirty = departure.written();
    let since = begin.elapsed().saturating_sub(Duration::from_micros(begin_us));
    (dirty, per_second(dirty, since))
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    (bytes as f64 / took.as_secs_f64().max(1e-6)) as u64
}

fn one(
    conversation: &mut Conversation,
    of: usize,
    departure: &mut Departure,
    before: Option<&RoundDone>,
    begin: Instant,
    watch: &mut dyn Watch,
) -> Result<RoundDone, MigrateError> {
    let started = Instant::now();
    let expected = before.map_or(departure.offer().memory, |round| round.dirty);
    conversation.transport.send(&Request::Round(of))?;
    let to = PageWriter::new(conversation.transport.data());
    let mut sink = Counting { to, sent: 0, expected, watch };
    let taken = departure.round(&mut sink);
    let data = sink.to.into_inner();
    let figures = match taken {
        Ok(figures) => figures,
        Err(error) => return Err(conversation.instead_of(error.into())),
    };
    if let Err(error) = data.finish() {
        let error = conversation.transport.failed(error).into();
        return Err(conversation.instead_of(error));
    }
    match conversation.answer(ARRIVING)? {
        Answer::Stored => {}
        other => return Err(conversation.out_of_turn(&other)),
    }
    let took = started.elapsed();
    Ok(RoundDone {
        number: before.map_or(1, |round| round.number + 1),
        sent: figures.sent,
        zeros: figures.zeros,
        dirty: 0,
        begin_us: micros(started.saturating_duration_since(begin)),
        total_us: micros(took),
        stopped_us: figures.frozen_us,
        rate: per_second(figures.sent, took),
        dirty_rate: 0,
        downtime_us: 0,
    })
}

pub(super) fn is_no_tracking(error: &arctern_container::Error) -> bool {
    matches!(error, arctern_container::Error::Capture(inner)
        if matches!(**inner, CaptureError::NoTracking))
}

fn too_long(
    expected: Duration,
    options: &MigrateOptions,
    measured: &[Round],
    done: &[Vec<RoundDone>],
) -> MigrateError {
    let largest = measured.iter().max_by_key(|round| round.sent);
    let last = done.iter().filter_map(|rounds| rounds.last());
    MigrateError::TooLong {
        expected,
        limit: options.limits.downtime.unwrap_or_default(),
        rounds: u32::try_from(measured.len()).unwrap_or(u32::MAX),
        rate: largest.map_or(0, |round| per_second(round.sent, round.duration)),
        dirty_rate: last.map(|round| round.dirty_rate).sum(),
    }
}

/// Tells how far a round is.
struct Counting<'a, S> {
    to: S,
    sent: u64,
    expected: u64,
    watch: &'a mut dyn Watch,
}

impl<S: PageSink> PageSink for Counting<'_, S> {
    fn space(&mut self, pid: i32) -> Result<(), HookError> {
        self.to.space(pid)
    }

    fn mappings(&mut self, mm: &MmEntry) -> Result<(), HookError> {
        self.to.mappings(mm)
    }

    fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError> {
        self.sent += bytes.len() as u64;
        let total = self.expected.max(self.sent);
        self.watch.event(Event::Progress { done: self.sent, total });
        self.to.stored(vaddr, bytes)
    }

    fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError> {
        self.to.unchanged(vaddr, pages)
    }

    fn end(&mut self) -> Result<(), HookError> {
        self.to.end()
    }
}
