//! The engines on bare process trees, called without any wrapper, and where they write.

use anyhow::{Context, Result, bail};
use arctern_harness::engine::{built, source};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// An engine's command line, without any wrapper that would cost time.
pub struct Engine {
    command: Vec<PathBuf>,
}

impl Engine {
    /// `arctern criu`.
    pub fn arctern() -> Self {
        Self { command: vec![built("ARCTERN", "arctern"), "criu".into()] }
    }

    /// CRIU of the peer's folder, by its own loader and libraries.
    pub fn criu() -> Result<Self> {
        let setup = Command::new(source().join("scripts/peer.sh")).arg("setup").output()?;
        if !setup.status.success() {
            bail!("{}", String::from_utf8_lossy(&setup.stderr).trim());
        }
        let root = PathBuf::from(String::from_utf8_lossy(&setup.stdout).trim());
        let library = root.join("usr/lib/x86_64-linux-gnu");
        Ok(Self {
            command: vec![
                root.join("usr/lib64/ld-linux-x86-64.so.2"),
                "--library-path".into(),
                library,
                root.join("usr/sbin/criu"),
            ],
        })
    }

    /// Runs one command with the images in `images`; how long it took.
    pub fn run(&self, arguments: &[&str], images: &Path, log: &str) -> Result<Duration> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(arguments).arg("-D").arg(images).args(["-o", log]);
        let start = Instant::now();
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let time = start.elapsed();
        if !output.status.success() {
            let log = fs::read_to_string(images.join(log)).unwrap_or_default();
            let errors: Vec<&str> =
                log.lines().filter(|line| line.contains("rror")).take(5).collect();
            bail!("{command:?}: {}{}", String::from_utf8_lossy(&output.stderr), errors.join("\n"));
        }
        Ok(time)
    }
}

/// Where images are written: a new directory each time.
///
/// Many small files go to a tmpfs, the one that this program has at /run: what a disk's file system takes
/// to make thousands of them depends on what anybody has deleted there lately, and grows faster than
/// their number. Much memory goes to the disk. There no directory is removed before the end: a file system that has just deleted thousands of files is slow to make new ones (ext4 looks at
/// each inode that was deleted in the last minutes before it takes a free one: 1 to 2 ms a file
/// instead of 0.05), and that would be measured instead of the engines.
pub struct Folders {
    base: tempfile::TempDir,
    disk: bool,
    made: usize,
}

impl Folders {
    /// On the tmpfs of this program.
    pub fn in_memory() -> Result<Self> {
        let base = tempfile::Builder::new().prefix("arctern-bench-").tempdir_in("/run")?;
        Ok(Self { base, disk: false, made: 0 })
    }

    /// On the disk, far from what an earlier run has deleted.
    pub fn on_disk() -> Result<Self> {
        let base = tempfile::Builder::new().prefix("arctern-bench-").tempdir()?;
        // Without it, file systems other than ext4 do well.
        let _ = Command::new("chattr").arg("+T").arg(base.path()).output();
        Ok(Self { base, disk: true, made: 0 })
    }

    /// A new directory.
    pub fn make(&mut self) -> Result<PathBuf> {
        self.made += 1;
        let folder = self.base.path().join(self.made.to_string());
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// Takes back the space: on the disk only that of the pages, which are few files.
    pub fn forget(&self, images: &Path) -> Result<()> {
        if !self.disk {
            return Ok(fs::remove_dir_all(images)?);
        }
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            let large = entry.metadata()?.len() > 1 << 20;
            if large && entry.file_name().to_string_lossy().starts_with("pages-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}
