//! The engines under test, called as a user would: by their command lines.

use crate::skips::Skip;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who captures or restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `arctern criu …`
    Arctern,
    /// CRIU as set up by `scripts/peer.sh`.
    Criu,
}

/// A built program: `variable` in the environment, else `name` in this build's directory.
pub fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let here = std::env::current_exe().unwrap_or_default();
    // target/PROFILE/deps/TEST
    let directory = here.ancestors().find(|dir| dir.join(name).is_file());
    directory.map_or_else(|| name.into(), |directory| directory.join(name))
}

/// The top of the source tree.
pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Engine {
    fn command(self) -> Result<Command> {
        match self {
            Self::Arctern => {
                let mut command = Command::new(built("ARCTERN", "arctern"));
                command.arg("criu");
                Ok(command)
            }
            Self::Criu => {
                let script = std::env::var_os("ARCTERN_PEER")
                    .map_or_else(|| source().join("scripts/peer.sh"), Into::into);
                let setup = Command::new(&script)
                    .arg("setup")
                    .output()
                    .context("cannot run scripts/peer.sh")?;
                if setup.status.code() == Some(69) {
                    return Err(
                        Skip(String::from_utf8_lossy(&setup.stderr).trim().to_owned()).into()
                    );
                }
                let mut command = Command::new(script);
                command.arg("criu");
                Ok(command)
            }
        }
    }

    /// Captures the tree of `pid`; `leave_running` lets it go on instead of killing it.
    pub fn dump(self, pid: i32, images: &Path, leave_running: bool) -> Result<()> {
        finish(self.dump_command(pid, images, leave_running)?, &images.join("dump.log"))
    }

    /// The command of [`Engine::dump`].
    pub fn dump_command(self, pid: i32, images: &Path, leave_running: bool) -> Result<Command> {
        let mut command = self.command()?;
        command.args(["dump", "-v4", "-o", "dump.log", "--file-locks"]);
        command.arg("-t").arg(pid.to_string()).arg("-D").arg(images);
        if leave_running {
            command.arg("-R");
        }
        if self == Self::Criu {
            command.args(["--link-remap", "--ghost-limit", "64M"]);
        }
        Ok(command)
    }

    /// Restores a tree; the pid of its root.
    pub fn restore(self, images: &Path) -> Result<i32> {
        let pidfile = images.join("restored.pid");
        let _ = fs::remove_file(&pidfile);
        finish(self.restore_command(images)?, &images.join("restore.log"))?;
        let pid = fs::read_to_string(&pidfile).context("no pid file was written")?;
        pid.trim().parse().context("the pid file holds no pid")
    }

    /// The command of [`Engine::restore`].
    pub fn restore_command(self, images: &Path) -> Result<Command> {
        let mut command = self.command()?;
        command.args(["restore", "-v4", "-o", "restore.log", "-d", "--file-locks"]);
        command.arg("--pidfile").arg(images.join("restored.pid")).arg("-D").arg(images);
        Ok(command)
    }
}

/// Runs a command and gives its messages and the end of its log when it fails.
fn finish(command: Command, log: &Path) -> Result<()> {
    // An engine that hangs is a failure, not a wait.
    let mut timed = Command::new("timeout");
    timed.args(["--signal=KILL", "60"]).arg(command.get_program()).args(command.get_args());
    let mut command = timed;
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("Error") || l.contains("Warn") || l.contains("rror"))
        .collect();
    bail!(
        "{command:?} failed ({}):\n{}{}\nlog: …{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        lines[lines.len().saturating_sub(12)..].join("\n")
    );
}
