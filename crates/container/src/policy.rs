//! What is done with a container without anybody asking: it is started again after its end, and its
//! health is checked.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::InvalidOption;

/// When a container is started again after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    #[serde(alias = "")]
    No,
    /// Whenever it ended by itself.
    Always,
    /// When its exit code was not 0.
    OnFailure,
    /// As always; one that was stopped by command stays so when the host boots.
    UnlessStopped,
}

impl RestartPolicy {
    /// As given to `--restart`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::Always => "always",
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::UnlessStopped => "unless-stopped",
        }
    }
}

/// The value of `--restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// When.
    pub policy: RestartPolicy,
    /// How often at most; None for no end.
    pub retries: Option<u32>,
}

impl FromStr for Restart {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "no, always, unless-stopped or on-failure[:TIMES]";
        let bad = || InvalidOption::new("restart policy", text, FORM);
        let (name, times) = match text.split_once(':') {
            Some((name, times)) => (name, Some(times)),
            None => (text, None),
        };
        let policy = match name {
            "no" | "never" => RestartPolicy::No,
            "always" => RestartPolicy::Always,
            "on-failure" => RestartPolicy::OnFailure,
            "unless-stopped" => RestartPolicy::UnlessStopped,
            _ => return Err(bad()),
        };
        let retries = match times {
            None => None,
            Some(_) if policy != RestartPolicy::OnFailure => return Err(bad()),
            Some(times) => Some(times.parse().map_err(|_| bad())?),
        };
        Ok(Restart { policy, retries })
    }
}

/// A container that ran this long has come up: the next wait is short again.
const STEADY: Duration = Duration::from_secs(10);

/// The wait before the first start again, and the longest one; it doubles in between.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Counts how often a container was started again, and how long to wait before the next time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// How often in all.
    pub count: u32,
    /// How often since it last ran steadily.
    streak: u32,
}

impl Restarts {
    /// How long to wait before the next start of a container that ended with `code` after it had
    /// run for `ran`; None when it is to stay as it is.
    pub fn next(&mut self, restart: Restart, code: i32, ran: Duration) -> Option<Duration> {
        let again = match restart.policy {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure => code != 0,
        };
        if !again || restart.retries.is_some_and(|retries| self.count >= retries) {
            return None;
        }
        self.count += 1;
        self.streak = if ran >= STEADY { 0 } else { self.streak.saturating_add(1) };
        let doublings = self.streak.saturating_sub(1).min(16);
        Some(FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT))
    }
}

/// How a container's health is checked (`--health-cmd` and others). Fields are Podman's, times in
/// nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `CMD` and words, or `CMD-SHELL` and a line for the container's shell.
    #[serde(default)]
    pub test: Vec<String>,
    /// From the end of a check to the next one.
    #[serde(default)]
    pub interval: u64,
    /// A check that takes longer has failed.
    #[serde(default)]
    pub timeout: u64,
    /// Failures in a row that make a container unhealthy.
    #[serde(default)]
    pub retries: u32,
    /// Failures so early do not count.
    #[serde(default)]
    pub start_period: u64,
}

impl HealthCheck {
    /// The words to execute in the container; None for a test that says `NONE`.
    #[must_use]
    pub fn command(&self) -> Option<Vec<String>> {
        match self.test.split_first() {
            Some((kind, words)) if kind == "CMD" && !words.is_empty() => Some(words.to_vec()),
            Some((kind, [line])) if kind == "CMD-SHELL" => {
                Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()])
            }
            _ => None,
        }
    }

    /// The test of `--health-cmd`: a JSON list of words, or a line for the shell.
    #[must_use]
    pub fn parse_test(text: &str) -> Vec<String> {
        match serde_json::from_str::<Vec<String>>(text) {
            Ok(words) if words.first().is_some_and(|w| w == "CMD" || w == "CMD-SHELL") => words,
            Ok(words) => [vec!["CMD".to_owned()], words].concat(),
            Err(_) => {
                let line = text.strip_prefix("CMD-SHELL ").unwrap_or(text);
                vec!["CMD-SHELL".to_owned(), line.to_owned()]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_parsed() {
        let parse = |text: &str| text.parse::<Restart>();
        let always = Restart { policy: RestartPolicy::Always, retries: None };
        assert_eq!(parse("always"), Ok(always));
        let twice = Restart { policy: RestartPolicy::OnFailure, retries: Some(2) };
        assert_eq!(parse("on-failure:2"), Ok(twice));
        for bad in ["", "sometimes", "always:3", "on-failure:", "on-failure:x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wait_doubles_until_the_container_stays_up() {
        let always = Restart { policy: RestartPolicy::Always, retries: None };
        let mut restarts = Restarts::default();
        let mut wait = |ran| restarts.next(always, 0, Duration::from_secs(ran)).expect("again");
        assert_eq!(wait(0), Duration::from_millis(100));
        assert_eq!(wait(1), Duration::from_millis(200));
        assert_eq!(wait(0), Duration::from_millis(400));
        assert_eq!(wait(11), Duration::from_millis(100));
        for _ in 0..40 {
            wait(0);
        }
        assert_eq!(wait(0), LONGEST_WAIT);
    }

    #[test]
    fn failures_are_counted() {
        let twice = Restart { policy: RestartPolicy::OnFailure, retries: Some(2) };
        let mut restarts = Restarts::default();
        assert_eq!(restarts.next(twice, 0, Duration::ZERO), None);
        assert!(restarts.next(twice, 1, Duration::ZERO).is_some());
        assert!(restarts.next(twice, 1, Duration::ZERO).is_some());
        assert_eq!(restarts.next(twice, 1, Duration::ZERO), None);
        assert_eq!(restarts.next(Restart::default(), 1, Duration::ZERO), None);
    }

    #[test]
    fn tests_of_health_in_every_form() {
        let check = |text: &str| HealthCheck {
            test: HealthCheck::parse_test(text),
            interval: 0,
            timeout: 0,
            retries: 3,
            start_period: 0,
        };
        let shell = Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), "true || false".to_owned()]);
        assert_eq!(check("true || false").command(), shell);
        assert_eq!(check("CMD-SHELL true || false").command(), shell);
        assert_eq!(check(r#"["CMD-SHELL", "true || false"]"#).command(), shell);
        assert_eq!(check(r#"["true"]"#).command(), Some(vec!["true".to_owned()]));
        let none = HealthCheck { test: vec!["NONE".to_owned()], ..check("") };
        assert_eq!(none.command(), None);
    }
}
