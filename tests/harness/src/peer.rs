//! A world of its own with Podman, runc and CRIU (see `scripts/peer.sh`).

use crate::engine::source;
use crate::skips::Skip;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the world sees the directory that it shares with the test.
const SHARE: &str = "/tmp/share";

/// A world with a Podman that has no images and containers.
pub struct Peer {
    run: tempfile::TempDir,
    share: PathBuf,
}

impl Peer {
    /// Starts a world that shares this directory with the test.
    pub fn start(share: &Path) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("arctern-peer-").tempdir_in("/run")?;
        let peer = Self { run, share: share.to_owned() };
        let started = peer.script(&["start"]).output()?;
        if started.status.code() == Some(69) {
            return Err(Skip(String::from_utf8_lossy(&started.stderr).trim().to_owned()).into());
        }
        checked(&["start"], &started)?;
        // The folder belongs to all worlds; Podman's store is this one's.
        std::fs::create_dir_all(share.join("containers"))?;
        let store = "/var/lib/containers";
        peer.run(&["mkdir", "-p", store])?;
        peer.run(&["mount", "--bind", &format!("{SHARE}/containers"), store])?;
        Ok(peer)
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg(source().join("scripts/peer.sh")).args(arguments);
        command.env("ARCTERN_PEER_RUN", self.run.path().join("world"));
        command.env("ARCTERN_PEER_SHARE", &self.share);
        command
    }

    /// Runs a command in the world, which must succeed; what it printed.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let arguments = [&["in"], command].concat();
        let output = self.script(&arguments).output().context("cannot run peer.sh")?;
        checked(command, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// A command that will run a program of this machine in the network of the world.
    pub fn beside(&self, program: &str) -> Result<Command> {
        let pid = std::fs::read_to_string(self.run.path().join("world/pid"))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", pid.trim())).arg(program);
        Ok(command)
    }

    /// Runs Podman, which must succeed; what it printed.
    pub fn podman(&self, arguments: &[&str]) -> Result<String> {
        self.run(&[&["podman"], arguments].concat())
    }

    /// The path in the world of a file of the shared directory.
    pub fn path(name: &str) -> String {
        format!("{SHARE}/{name}")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        let _ = self.script(&["stop"]).output();
    }
}

fn checked(command: &[&str], output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            command.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
