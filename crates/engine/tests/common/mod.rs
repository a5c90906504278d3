//! Processes and control groups for tests. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use arctern_sys::Pid;
use arctern_sys::proc::{self, mountinfo};

/// A process that does nothing but spin.
pub struct Spinner(pub Child);

impl Spinner {
    /// Starts one.
    pub fn start() -> Self {
        let spin = ["-c", "while :; do :; done"];
        Spinner(Command::new("sh").args(spin).stdin(Stdio::null()).spawn().unwrap())
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        Pid(self.0.id() as i32)
    }

    /// Ticks of processor time so far.
    pub fn ticks(&self) -> u64 {
        let stat = proc::read(self.pid(), "stat").unwrap();
        let after = stat.rsplit_once(')').unwrap().1;
        after.split_whitespace().nth(11).unwrap().parse().unwrap()
    }

    /// Waits until it has used the processor.
    pub fn wait_for_progress(&self) {
        let before = self.ticks();
        let start = std::time::Instant::now();
        while self.ticks() == before {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not run");
            std::thread::yield_now();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A group of the test's own, removed at the end.
pub struct Group(pub PathBuf);

impl Group {
    /// In the mounted hierarchy of this type whose options have `option`; None if there is none.
    pub fn make(fstype: &str, option: &str, name: &str) -> Option<Self> {
        let mounts = mountinfo::read(Pid(std::process::id() as i32)).unwrap();
        let found = mounts.iter().find(|m| {
            m.fstype == fstype && (option.is_empty() || m.super_options.iter().any(|o| o == option))
        })?;
        let dir = Path::new(&found.mountpoint)
            .join(format!("arctern-test-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Some(Group(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The dead leave their groups a moment after they were reaped.
        let start = std::time::Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
    }
}
