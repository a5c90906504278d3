//! What a process has besides memory and files: signals, timers, limits, credentials and the
//! registers of its threads (`core-TID.img`).

pub mod capture;
pub mod confined;
pub mod restore;
pub mod settings;

/// `task_state` values.
pub mod task_state {
    /// Running or sleeping.
    pub const ALIVE: u32 = 1;
    /// Exited, not yet waited for.
    pub const DEAD: u32 = 2;
    /// In group stop.
    pub const STOPPED: u32 = 3;
    /// Newer name of an exited task.
    pub const ZOMBIE: u32 = 6;
}

/// Signals whose disposition can be set: all but SIGKILL and SIGSTOP.
pub fn catchable_signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP)
}
