//! `--dry-run`: what rounds would do, from what the container writes and the link carries now.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use arctern_container::transfer::Departure;
use arctern_engine::options::HookError;
use arctern_engine::precopy::PageSink;
use serde::Serialize;

use super::conversation::{Conversation, PATIENCE};
use super::rounds::{FIXED, is_no_tracking};
use super::{MigrateOptions, micros};
use crate::error::MigrateError;
use crate::message::{Answer, Request};
use crate::policy::{self, Next};
use crate::throttle::pause;

/// How long what is written is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// What is sent to see how fast the link is: this much, or for this long.
const PROBE: (usize, Duration) = (16 << 20, Duration::from_secs(1));

/// What a move would be, as far as it can be known before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// Bytes that the link carries in a second.
    pub rate: u64,
    /// Bytes of memory that the container writes in a second.
    pub dirty_rate: u64,
    /// Rounds of memory while it runs.
    pub rounds: u32,
    /// Bytes of memory that they send.
    pub ahead: u64,
    /// Bytes of memory that are left for the freeze.
    pub rest: u64,
    /// How long the freeze would be, in microseconds.
    pub downtime_us: u64,
    /// It would be refused: the freeze is longer than is accepted.
    pub refused: bool,
}

/// Watches the container for a moment, and the link. The tasks stand still for the blink in which their
/// memory is marked, and nothing is left of it. None where the kernel does not tell what is written.
pub(super) fn estimate(
    conversation: &mut Conversation,
    departure: &mut Departure,
    options: &MigrateOptions,
) -> Result<Option<Estimate>, MigrateError> {
    if let Err(error) = departure.begin_rounds() {
        return if is_no_tracking(&error) { Ok(None) } else { Err(error.into()) };
    }
    let figures = departure.round(&mut Nowhere)?;
    let begin = Instant::now();
    let rate = probe(conversation)?;
    if let Some(left) = WATCHED.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        pause(left).map_err(|error| conversation.transport.failed(error))?;
    }
    let dirty_rate = departure.written() as f64 / begin.elapsed().as_secs_f64();
    let memory = figures.sent;
    let (rounds, end) = policy::foresee(memory, rate, dirty_rate, &options.limits, FIXED);
    Ok(Some(Estimate {
        rate: rate as u64,
        dirty_rate: dirty_rate as u64,
        rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
        ahead: rounds.iter().map(|round| round.sent).sum(),
        rest: rounds.last().map_or(memory, |round| round.dirty),
        downtime_us: micros(policy::downtime(&rounds, FIXED)),
        refused: matches!(end, Next::Refuse { .. }),
    }))
}

/// Bytes a second to the other side.
fn probe(conversation: &mut Conversation) -> Result<f64, MigrateError> {
    let begin = Instant::now();
    conversation.transport.send(&Request::Probe)?;
    let mut data = conversation.transport.data();
    // ssh may compress: these do not get shorter.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let bytes: Vec<u8> = (0..(256 << 10) / 8).flat_map(|_| next()).collect();
    let mut sent = 0;
    let mut write = || -> io::Result<()> {
        while sent < PROBE.0 && begin.elapsed() < PROBE.1 {
            data.write_all(&bytes)?;
            sent += bytes.len();
        }
        Ok(())
    };
    let written = write();
    if let Err(error) = written.and_then(|()| data.finish()) {
        return Err(conversation.transport.failed(error).into());
    }
    match conversation.answer(PATIENCE)? {
        Answer::Stored => Ok(sent as f64 / begin.elapsed().as_secs_f64().max(1e-6)),
        other => Err(conversation.out_of_turn(&other)),
    }
}

/// Takes pages and forgets them.
struct Nowhere;

impl PageSink for Nowhere {
    fn space(&mut self, _: i32) -> Result<(), HookError> {
        Ok(())
    }

    fn stored(&mut self, _: u64, _: &[u8]) -> Result<(), HookError> {
        Ok(())
    }

    fn unchanged(&mut self, _: u64, _: u64) -> Result<(), HookError> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}
