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
    pub remedy: String,
}

impl Refusal {
    /// Whether the cause is one of a moment: its remedy is to try again.
    pub fn is_momentary(&self) -> bool {
        self.remedy.starts_with("try again")
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
    #[error(
        "{subject} did not stop within {seconds} s; it may be waiting for a child made by vfork or for a device"
    )]
    NotStopping {
        /// Who did not stop.
        subject: Subject,
        /// How long we waited.
        seconds: u64,
    },
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
    /// A fault that a test asked for.
    #[error("fault injected at capture step {0}")]
    Injected(String),
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
