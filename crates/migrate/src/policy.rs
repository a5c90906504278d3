//! When to go on with copying ahead, and when to freeze: a pure function of what was measured.
//!
//! A round sends what changed during the round before, while the container runs. Rounds are worth
//! their bytes as long as they shrink; what is left at the end is sent in the freeze.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one round measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Bytes of memory that it sent.
    pub sent: u64,
    /// How long it took.
    pub duration: Duration,
    /// Bytes that had changed when it was over: what the next round would send.
    pub dirty: u64,
}

/// What the user allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rounds at most.
    pub rounds: u32,
    /// The longest freeze that is accepted; None: as short as rounds can make it.
    pub downtime: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { rounds: 8, downtime: None }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round.
    Round,
    /// Freeze, send the rest, and hand over.
    Freeze,
    /// The freeze would be longer than is accepted, and another round would not make it shorter.
    Refuse {
        /// How long it would be.
        downtime: Duration,
    },
}

/// The least that a round must have shrunk by for another one: a quarter.
const SHRINK: (u64, u64) = (3, 4);

/// Less than this many bytes are not worth a round: the freeze has other costs.
const ENOUGH: u64 = 1 << 20;

/// How long a freeze would be: `fixed` for what does not depend on memory, then the bytes left at
/// the rate that the last round had.
#[must_use]
pub fn downtime(rounds: &[Round], fixed: Duration) -> Duration {
    let Some(last) = rounds.last() else { return fixed };
    let rate = rate(rounds);
    if last.dirty == 0 || rate <= 0.0 {
        return fixed;
    }
    let sending = Duration::try_from_secs_f64(last.dirty as f64 / rate).unwrap_or(Duration::MAX);
    fixed.saturating_add(sending)
}

/// Bytes in a second, of the largest round: a small one measures more of its fixed cost than of the
/// link.
fn rate(rounds: &[Round]) -> f64 {
    let largest = rounds.iter().max_by_key(|r| r.sent);
    largest.map_or(0.0, |r| r.sent as f64 / r.duration.as_secs_f64().max(1e-6))
}

/// Decides after each round. `fixed` is what a freeze takes without any memory to send.
#[must_use]
pub fn next(rounds: &[Round], limits: &Limits, fixed: Duration) -> Next {
    let Some(last) = rounds.last() else {
        return if limits.rounds == 0 { Next::Freeze } else { Next::Round };
    };
    let expected = downtime(rounds, fixed);
    let accepted = limits.downtime.is_none_or(|limit| expected <= limit);
    let over = rounds.len() >= usize::try_from(limits.rounds).unwrap_or(usize::MAX);
    let shrinks = last.dirty.saturating_mul(SHRINK.1) <= last.sent.saturating_mul(SHRINK.0);
    let worth = last.dirty > ENOUGH && shrinks && !over;
    match (worth, accepted) {
        (true, _) => Next::Round,
        (false, true) => Next::Freeze,
        (false, false) => Next::Refuse { downtime: expected },
    }
}

/// What rounds would do to `memory` bytes on a link of `link` bytes a second, while `written` bytes are
/// written in a second: the rounds, and how they would end.
#[must_use]
pub fn foresee(
    memory: u64,
    link: f64,
    written: f64,
    limits: &Limits,
    fixed: Duration,
) -> (Vec<Round>, Next) {
    let mut rounds = Vec::new();
    let mut left = memory;
    loop {
        match next(&rounds, limits, fixed) {
            Next::Round => {}
            end => return (rounds, end),
        }
        let seconds = left as f64 / link.max(1.0);
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        // What is written twice is sent once.
        let dirty = ((seconds * written) as u64).min(memory);
        rounds.push(Round { sent: left, duration, dirty });
        left = dirty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIXED: Duration = Duration::from_millis(30);

    fn round(sent: u64, milliseconds: u64, dirty: u64) -> Round {
        Round { sent, duration: Duration::from_millis(milliseconds), dirty }
    }

    #[test]
    fn rounds_go_on_while_they_shrink() {
        let limits = Limits::default();
        assert_eq!(next(&[], &limits, FIXED), Next::Round);
        let mut rounds = vec![round(1 << 30, 1000, 100 << 20)];
        assert_eq!(next(&rounds, &limits, FIXED), Next::Round);
        rounds.push(round(100 << 20, 100, 12 << 20));
        assert_eq!(next(&rounds, &limits, FIXED), Next::Round);
        rounds.push(round(12 << 20, 15, 11 << 20));
        assert_eq!(next(&rounds, &limits, FIXED), Next::Freeze);
    }

    #[test]
    fn little_is_not_worth_a_round() {
        assert_eq!(
            next(&[round(1 << 30, 1000, 900 << 10)], &Limits::default(), FIXED),
            Next::Freeze
        );
        assert_eq!(next(&[], &Limits { rounds: 0, downtime: None }, FIXED), Next::Freeze);
    }

    #[test]
    fn what_dirties_faster_than_the_link_is_refused_or_frozen() {
        // 100 Mbit/s, and everything is dirty again after each round.
        let rounds = [round(100 << 20, 8400, 100 << 20)];
        assert_eq!(next(&rounds, &Limits::default(), FIXED), Next::Freeze);
        let strict = Limits { downtime: Some(Duration::from_millis(300)), ..Limits::default() };
        let Next::Refuse { downtime } = next(&rounds, &strict, FIXED) else { panic!("accepted") };
        assert!(downtime > Duration::from_secs(8) && downtime < Duration::from_secs(9));
        let patient = Limits { downtime: Some(Duration::from_secs(10)), ..Limits::default() };
        assert_eq!(next(&rounds, &patient, FIXED), Next::Freeze);
    }

    #[test]
    fn a_link_that_hardly_moves_takes_as_long_as_there_is() {
        let limits = Limits { rounds: 1, downtime: Some(Duration::from_secs(1)) };
        let rounds = [Round { sent: 1, duration: Duration::MAX / 2, dirty: u64::MAX }];
        assert_eq!(next(&rounds, &limits, FIXED), Next::Refuse { downtime: Duration::MAX });
    }

    #[test]
    fn what_rounds_would_do_is_foreseen() {
        let limits = Limits::default();
        let (rounds, end) = foresee(1 << 30, 1e8, 1e7, &limits, FIXED);
        assert_eq!(end, Next::Freeze);
        assert_eq!(rounds.len(), 4, "a tenth is left each time: {rounds:?}");
        assert!(downtime(&rounds, FIXED) < Duration::from_millis(50));
        let strict = Limits { downtime: Some(Duration::from_millis(300)), ..limits };
        let (rounds, end) = foresee(1 << 30, 1e7, 1e8, &strict, FIXED);
        assert_eq!(rounds.len(), 1);
        assert!(matches!(end, Next::Refuse { .. }), "{end:?}");
        assert_eq!(foresee(0, 0.0, 0.0, &limits, FIXED).1, Next::Freeze);
    }

    proptest! {
        /// Whatever is measured, the rounds end.
        #[test]
        fn it_ends(
            measured in proptest::collection::vec((any::<u64>(), 0..u64::MAX / 2, any::<u64>()), 0..20),
            allowed in 0..10u32,
        ) {
            let limits = Limits { rounds: allowed, downtime: Some(Duration::from_secs(1)) };
            let mut rounds = Vec::new();
            for (sent, milliseconds, dirty) in measured {
                if next(&rounds, &limits, FIXED) != Next::Round {
                    break;
                }
                rounds.push(round(sent, milliseconds, dirty));
            }
            prop_assert!(rounds.len() <= allowed as usize);
        }
    }
}
