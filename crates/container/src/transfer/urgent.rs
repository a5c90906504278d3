//! Clients pay for a freeze: who works in one runs before others.

use rustix::process::{getpriority_process, setpriority_process};

/// The calling thread, before all others of its kind as long as this is there. What it starts
/// meanwhile is as urgent.
#[derive(Debug)]
pub(crate) struct Urgent {
    /// Nice value of before.
    before: i32,
}

impl Urgent {
    /// From here on. Where it is not allowed, nothing is different.
    pub fn begin() -> Urgent {
        let before = getpriority_process(None).unwrap_or(0);
        let _ = setpriority_process(None, -20);
        Urgent { before }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        let _ = setpriority_process(None, self.before);
    }
}
