//! Faults that tests ask for: `ARCTERN_FAULT=capture:K` or `restore:K` makes the K-th step of the
//! operation fail (counted from 0; a step's name works too). `kill-capture:K` or `kill-restore:K` kills
//! the program there.

use arctern_sys::Pid;
use arctern_sys::pidfd::PidFd;

/// The fault of one kind of operation, if a test asks for one.
#[derive(Debug, Default)]
pub struct Faults {
    wanted: Option<String>,
    kills: bool,
    next: usize,
}

impl Faults {
    /// Looks for a fault of `operation` in the environment.
    pub fn from_env(operation: &str) -> Self {
        let value = std::env::var("ARCTERN_FAULT").unwrap_or_default();
        let kills = value.strip_prefix("kill-");
        let wanted = kills
            .unwrap_or(&value)
            .split_once(':')
            .and_then(|(kind, step)| (kind == operation).then(|| step.to_owned()));
        Faults { wanted, kills: kills.is_some(), next: 0 }
    }

    /// A place that is no step of its own.
    pub fn point(operation: &str, name: &str) -> Result<(), String> {
        Self { next: usize::MAX - 1, ..Self::from_env(operation) }.step(name)
    }

    /// Counts a step; the step's name if it is to fail.
    pub fn step(&mut self, name: &str) -> Result<(), String> {
        let number = self.next;
        self.next += 1;
        match &self.wanted {
            Some(wanted) if *wanted == number.to_string() || wanted == name => {
                if self.kills {
                    let own = Pid(std::process::id() as i32);
                    let _ = PidFd::open(own).and_then(|own| own.send_signal(libc::SIGKILL));
                }
                Err(name.to_owned())
            }
            _ => Ok(()),
        }
    }
}
