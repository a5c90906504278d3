//! Errors of captures and restores, and refusals: what we understood and will not do.

use std::fmt;
use std::io;

use arctern_image::images::ImageError;
use arctern_sys::Pid;
use arctern_tracee::TraceeError;

use crate::options::HookError;

/// The thing of the user's that an error or a refusal is about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Subject {
    /// Process, as the user sees it (host pid at capture, inner pid at restore).
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// What of it: `fd 7 (socket:[88213])`, `mapping 7f00-8f00 (/x)`, `thread 12`, or nothing.
    pub part: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.comm)?;
        if !self.part.is_empty() {
            write!(f, ", {}", self.part)?;
        }
        Ok(())
    }
}

/// One reason for which a capture or restore is refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// Who.
    pub subject: Subject,
    /// What it has that cannot be carried.
    pub cause: String,
    /// What the user can do.
    pub remedy: Remedy,
}

impl Refusal {
    /// Whether the cause is one of a moment, so that it is worth to try again.
    pub fn is_momentary(&self) -> bool {
        matches!(self.remedy, Remedy::TryAgain(_))
    }
}

/// What the user can do about a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// This, as an imperative; empty if there is nothing to do.
    Do(String),
    /// Wait until this has happened, which the program does by itself in moments: `when it has read
    /// them`.
    TryAgain(String),
}

impl Remedy {
    /// The cause goes away by itself in moments, `when` this has happened.
    pub fn try_again(when: impl Into<String>) -> Self {
        Remedy::TryAgain(when.into())
    }

    fn is_empty(&self) -> bool {
        matches!(self, Remedy::Do(text) if text.is_empty())
    }
}

impl From<&str> for Remedy {
    fn from(text: &str) -> Self {
        Remedy::Do(text.to_owned())
    }
}

impl From<String> for Remedy {
    fn from(text: String) -> Self {
        Remedy::Do(text)
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Do(text) => f.write_str(text),
            Remedy::TryAgain(when) => write!(f, "try again {when}"),
        }
    }
}

impl serde::Serialize for Remedy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.cause)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

fn listed(refusals: &[Refusal]) -> String {
    refusals.iter().map(|r| format!("\n  {r}")).collect()
}

/// Why a capture did not happen. The tasks go on as they were.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The tree holds things that cannot be captured: all of them, found before anything changed.
    #[error("{} thing(s) cannot be captured:{}", .0.len(), listed(.0))]
    Refused(Vec<Refusal>),
    /// Not every task stopped in time.
    #[error("{subject} did not stop within {seconds} s; it may be waiting for a device")]
    NotStopping {
        /// Who did not stop.
        subject: Subject,
        /// How long we waited.
        seconds: u64,
    },
    /// Memory cannot be copied ahead here.
    #[error(
        "this kernel does not tell which memory was written (userfaultfd with asynchronous write protection, Linux 6.7, or soft-dirty marks)"
    )]
    NoTracking,
    /// There is no such process.
    #[error("there is no process {0}")]
    NoSuchProcess(Pid),
    /// The kernel refused something.
    #[error("{subject}: cannot {what}")]
    Kernel {
        /// About whom.
        subject: Subject,
        /// What we wanted.
        what: String,
        /// Its reason.
        source: io::Error,
    },
    /// A tracee misbehaved.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
    /// An image could not be written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The caller's own step failed.
    #[error(transparent)]
    Hook(HookError),
    /// A tree that is to be handed over is in no group with a freezer.
    #[error("there is no freezer that could hold the tasks while they are handed over")]
    NoFreezer,
    /// The tasks were handed over, and nobody knows whether they arrived. They stay frozen.
    #[error("it is not known whether the tasks arrived: they stay frozen here")]
    InDoubt(#[source] HookError),
    /// The hand-over did not come about; the tasks go on.
    #[error("the tasks were not taken over")]
    NotTaken,
    /// A fault that a test asked for.
    #[error("fault injected at capture step {0}")]
    Injected(String),
}

impl CaptureError {
    /// Whether it says that a task or a descriptor of it is not there any more.
    pub(crate) fn is_gone(&self) -> bool {
        let CaptureError::Kernel { source, .. } = self else { return false };
        let gone = [libc::ENOENT, libc::ESRCH, libc::EBADF];
        source.raw_os_error().is_some_and(|error| gone.contains(&error))
    }
}

impl RestoreError {
    /// Whether somebody killed what was being restored.
    #[must_use]
    pub fn is_death(&self) -> bool {
        matches!(self, RestoreError::Tracee(TraceeError::Died { .. }))
    }
}

/// Why a restore did not happen. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The images ask for things that cannot be restored here: all of them, found before anything
    /// was made.
    #[error("{} thing(s) cannot be restored here:{}", .0.len(), listed(.0))]
    Refused(Vec<Refusal>),
    /// The images contradict themselves or ask for the impossible.
    #[error("the images are damaged or foreign: {0}")]
    Inconsistent(String),
    /// The kernel refused something.
    #[error("{subject}: cannot {what}")]
    Kernel {
        /// For whom.
        subject: Subject,
        /// What we wanted.
        what: String,
        /// Its reason.
        source: io::Error,
    },
    /// A tracee misbehaved.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
    /// An image could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The caller's own step failed.
    #[error(transparent)]
    Hook(HookError),
    /// A fault that a test asked for.
    #[error("fault injected at restore step {0}")]
    Injected(String),
}
