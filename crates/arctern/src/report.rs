//! How a failure is shown: what could not be done, why, and what to do about it.

use std::fmt::Write;

use arctern_container::error::chain;

/// A failed command: what it was about to do, and the error.
#[derive(Debug)]
pub struct Failure {
    /// Fits after `cannot`: `checkpoint container web`.
    pub action: String,
    /// Why not.
    pub error: anyhow::Error,
    /// Exit code, when the error has none of its own.
    pub code: u8,
    /// How things stand now, as a sentence.
    pub state: Option<String>,
}

impl Failure {
    /// A command that could not do `action`.
    pub fn new(action: impl Into<String>, error: impl Into<anyhow::Error>) -> Failure {
        Failure { action: action.into(), error: error.into(), code: 125, state: None }
    }

    /// Adds how things stand now.
    pub fn leaving(mut self, state: impl Into<String>) -> Failure {
        self.state = Some(state.into());
        self
    }
}

/// Result of a command: its exit code.
pub type CommandResult = Result<u8, Failure>;

/// Says what could not be done.
pub trait Cannot<T> {
    /// Names the action; it is made only when there is an error.
    fn cannot<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Cannot<T> for Result<T, E> {
    fn cannot<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(action(), error))
    }
}

/// Prints a failure on standard error and gives its exit code.
pub fn print(failure: &Failure) -> u8 {
    eprint!("{}", render(failure));
    code(failure)
}

fn code(failure: &Failure) -> u8 {
    match failure.error.downcast_ref::<arctern_container::Error>() {
        Some(error) => u8::try_from(error.exit_code()).unwrap_or(125),
        None => failure.code,
    }
}

fn render(failure: &Failure) -> String {
    let mut text = format!("error: cannot {}\n", failure.action);
    let message = chain(failure.error.as_ref());
    for line in message.lines() {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(hint) = hint(&failure.error) {
        let _ = writeln!(text, "hint: {hint}");
    }
    if let Some(state) = &failure.state {
        let _ = writeln!(text, "{state}");
    }
    text
}

/// What to do about it, from the kind of error.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<arctern_storage::StoreError>() {
        return error.hint();
    }
    error.downcast_ref::<arctern_container::Error>().and_then(|e| e.hint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_object_cause_and_remedy() {
        let failure: Failure = Err::<(), _>(arctern_container::Error::StillRunning("web".into()))
            .cannot(|| "remove container web")
            .expect_err("failure");
        insta::assert_snapshot!(render(&failure), @r"
        error: cannot remove container web
          container `web` is running
        hint: `arctern stop web` first, or pass --force
        ");
        assert_eq!(code(&failure), 125);
    }
}
