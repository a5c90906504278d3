//! Where the time of a freeze goes: its phases in order, on one host.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// One phase. What comes back to it later is added to it. Times in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lap {
    /// What is done in it.
    pub phase: String,
    /// When it began first, after the first one.
    pub at_us: u64,
    /// How long it took.
    pub us: u64,
}

/// Takes the time of phases that follow one another.
#[derive(Clone, Debug, Default)]
pub struct Laps {
    done: Vec<Lap>,
    begin: Option<Instant>,
    now: Option<(&'static str, Instant)>,
}

impl Laps {
    /// A phase begins, and ends the one before.
    pub fn begin(&mut self, phase: &'static str) {
        self.end();
        let now = Instant::now();
        self.begin.get_or_insert(now);
        self.now = Some((phase, now));
    }

    /// The phase ends, and none begins.
    pub fn end(&mut self) {
        let (Some((phase, since)), Some(begin)) = (self.now.take(), self.begin) else { return };
        let micros =
            |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let us = micros(since.elapsed());
        match self.done.iter_mut().find(|lap| lap.phase == phase) {
            Some(lap) => lap.us += us,
            None => {
                let at_us = micros(since.saturating_duration_since(begin));
                self.done.push(Lap { phase: phase.to_owned(), at_us, us });
            }
        }
    }

    /// The phases so far, which ends the last one.
    #[must_use]
    pub fn take(&mut self) -> Vec<Lap> {
        self.end();
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_comes_back_is_one() {
        let mut laps = Laps::default();
        for phase in ["files", "memory", "files"] {
            laps.begin(phase);
        }
        let taken = laps.take();
        let names: Vec<&str> = taken.iter().map(|lap| lap.phase.as_str()).collect();
        assert_eq!(names, ["files", "memory"]);
        assert_eq!(taken[0].at_us, 0);
        assert!(laps.take().is_empty());
    }
}
