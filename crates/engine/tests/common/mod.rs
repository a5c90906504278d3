//! Control groups for tests. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arctern_sys::Pid;
use arctern_sys::proc::mountinfo;

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
