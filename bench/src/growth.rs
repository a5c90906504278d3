//! How the time of one item grows with their number.
//!
//! The time of one item is that of the whole command with N items, less that of the same command with
//! a single one, divided by N - 1. What a command costs before it has looked at anything is so in neither
//! of the two times that are compared; counted in, it would weigh more on the few than on the many, and
//! make every ratio smaller than it is. Times are medians of all rounds.
//!
//! The machine must be idle: where others use its processors a short command often gets through without
//! being stopped, a long one never does, and the ratio grows with that.

use serde::Serialize;
use std::time::Duration;

/// The time of one item where there are N and where there are a tenth of them.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// N.
    pub count: usize,
    /// Of one item among a tenth, in microseconds.
    pub few_us: f64,
    /// Of one item among N, in microseconds.
    pub many_us: f64,
    /// The second divided by the first; no figure if noise made several items cheaper than one.
    pub ratio: Option<f64>,
    /// The ratio of whole commands, each divided by its number of items: with the start in it.
    pub ratio_with_start: f64,
}

impl Growth {
    /// From the time of a command with one item, and of those with two numbers of them.
    pub fn new(one: Duration, few: (usize, Duration), many: (usize, Duration)) -> Self {
        let each = |(count, time): (usize, Duration)| {
            time.saturating_sub(one).as_secs_f64() * 1e6 / (count - 1) as f64
        };
        let whole = |(count, time): (usize, Duration)| time.as_secs_f64() / count as f64;
        let (few_us, many_us) = (each(few), each(many));
        let ratio_with_start = whole(many) / whole(few);
        let ratio = (few_us > 0.0 && many_us > 0.0).then(|| many_us / few_us);
        Self { count: many.0, few_us, many_us, ratio, ratio_with_start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_costs_does_not_hide_growth() {
        let time = Duration::from_micros;
        let linear = Growth::new(time(1002), (10, time(1020)), (100, time(1200)));
        assert!(linear.ratio.is_some_and(|ratio| (ratio - 1.0).abs() < 0.001), "{linear:?}");
        assert!(linear.ratio_with_start < 0.2, "{linear:?}");
        let square = Growth::new(time(1001), (10, time(1100)), (100, time(11_000)));
        assert!(square.ratio.is_some_and(|ratio| ratio > 9.0), "{square:?}");
        let noise = Growth::new(time(1001), (10, time(1000)), (100, time(1200)));
        assert_eq!(noise.ratio, None, "{noise:?}");
    }
}
