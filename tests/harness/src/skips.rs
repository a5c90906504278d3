//! Skips: a test that cannot run says why, and only those of `expected-skips.txt` may.
//!
//! A line of that file is `PATTERN REASON`; in the pattern `*` stands for any text.

use crate::random::soak;
use anyhow::Result;
use std::fmt;

const EXPECTED: &str = include_str!("../expected-skips.txt");

/// The reason for which a test is expected not to run here.
pub fn expected(test: &str) -> Option<&'static str> {
    EXPECTED
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(pattern, _)| matches(pattern, test))
        .map(|(_, reason)| reason.trim())
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|&at| tail.is_char_boundary(at))
                .any(|at| matches(rest, &tail[at..]))
        }),
    }
}

/// Runs the body of a test; a skip passes with its reason printed, except in CI when it was not
/// expected.
pub fn judge(test: &str, body: impl FnOnce() -> Result<()>) -> Result<(), String> {
    if let Some(reason) = expected(test) {
        println!("skip {test}: {reason}");
        return Ok(());
    }
    match body() {
        Ok(()) => Ok(()),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) if std::env::var_os("CI").is_none() => {
                println!("skip {test}: {}", skip.0);
                Ok(())
            }
            Some(skip) => Err(format!("unexpected skip (not in expected-skips.txt): {}", skip.0)),
            None => Err(format!("{error:#}")),
        },
    }
}

/// As [`judge`], of a test that is too long for an ordinary run: that skips it as `TEST::ordinary`.
pub fn judge_long(test: &str, body: impl FnOnce() -> Result<()>) -> Result<(), String> {
    if soak() {
        return judge(test, body);
    }
    judge(&ordinary(test), || Err(Skip("too long for an ordinary run".to_owned()).into()))
}

/// The name under which an ordinary run skips a test that is too long for it.
pub fn ordinary(test: &str) -> String {
    format!("{test}::ordinary")
}

/// A test that finds out while it runs that it cannot.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skip: {}", self.0)
    }
}

impl std::error::Error for Skip {}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn star_stands_for_any_text() {
        assert!(matches("a::*", "a::b"));
        assert!(matches("*::b-*", "a::b-c"));
        assert!(!matches("a::b", "a::bc"));
        assert!(!matches("a*c", "ab"));
    }
}
