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
    ///
    /// What is a matter of moments Arctern tries again by itself; CRIU leaves that to its caller,
    /// which is us: a dump that failed so is repeated, and the tree must have gone on meanwhile.
    pub fn dump(self, pid: i32, images: &Path, leave_running: bool) -> Result<()> {
        let log = images.join("dump.log");
        let mut attempt = 0;
        loop {
            let Err(error) = finish(self.dump_command(pid, images, leave_running)?, &log) else {
                return Ok(());
            };
            attempt += 1;
            let moment = match self {
                Self::Criu if attempt < MOST_DUMPS => moment(&fs::read_to_string(&log)?),
                _ => None,
            };
            let Some(moment) = moment else {
                return Err(error);
            };
            println!("dump {attempt} of {pid} failed for a moment ({moment}): once more");
            running(pid).context("after a dump that failed for a moment")?;
            for entry in fs::read_dir(images)? {
                fs::remove_file(entry?.path())?;
            }
        }
    }

    /// The command of [`Engine::dump`].
    pub fn dump_command(self, pid: i32, images: &Path, leave_running: bool) -> Result<Command> {
        let mut command = self.command()?;
        command.args(["dump", "-v4", "-o", "dump.log", "--file-locks"]);
        command.arg("-t").arg(pid.to_string()).arg("-D").arg(images);
        if leave_running {
            command.arg("-R");
        }
        command.args(["--tcp-established", "--network-lock", "nftables", "--ghost-limit", "64M"]);
        if self == Self::Criu {
            command.arg("--link-remap");
        }
        Ok(command)
    }

    /// Asks Arctern what stands in the way of [`Engine::dump`], with the same options.
    pub fn check_command(self, pid: i32) -> Result<Command> {
        let mut command = self.command()?;
        command.args(["dump", "--check", "--file-locks", "--tcp-established"]);
        command.args(["--ghost-limit", "64M", "-t"]).arg(pid.to_string());
        Ok(command)
    }

    /// Copies the memory of the tree of `pid` ahead, on top of what is in `previous` (relative to the
    /// images). Arctern's only: CRIU cannot on kernels without soft-dirty marks.
    pub fn pre_dump(pid: i32, images: &Path, previous: Option<&str>) -> Result<()> {
        let mut command = Self::Arctern.command()?;
        command.args(["pre-dump", "-v4", "-o", "dump.log"]);
        command.arg("-t").arg(pid.to_string()).arg("-D").arg(images);
        if let Some(previous) = previous {
            command.args(["--prev-images-dir", previous]);
        }
        finish(command, &images.join("dump.log"))
    }

    /// As [`Engine::dump`] by Arctern, of what was written since the dump in `previous`.
    pub fn dump_onto(pid: i32, images: &Path, previous: &str, leave_running: bool) -> Result<()> {
        let mut command = Self::Arctern.dump_command(pid, images, leave_running)?;
        command.args(["--track-mem", "--prev-images-dir", previous]);
        finish(command, &images.join("dump.log"))
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
        command.args(["--tcp-established", "--network-lock", "nftables"]);
        command.arg("--pidfile").arg(images.join("restored.pid")).arg("-D").arg(images);
        Ok(command)
    }
}

/// How often a dump is begun that fails only because of the moment.
const MOST_DUMPS: u32 = 8;

/// Errors of CRIU's about what the program does by itself a moment later.
const MOMENTS: [(&str, &str); 2] = [
    ("Found a closed in-flight socket", "who connected has closed, and nobody accepted yet"),
    ("Non-empty write queue on an in-flight socket", "who connected has written already"),
];

/// The moment that a log of CRIU's tells of, if all its trouble comes from one.
fn moment(log: &str) -> Option<&'static str> {
    let errors = || log.lines().filter(|line| line.contains("Error ("));
    MOMENTS
        .iter()
        .find(|(error, _)| errors().next().is_some_and(|line| line.contains(error)))
        .map(|(_, moment)| *moment)
}

/// Neither stopped nor traced: a failed capture must leave a process so.
fn running(pid: i32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let field = |key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim();
    if field("State:").starts_with(['T', 't', 'Z']) || field("TracerPid:") != "0" {
        bail!("process {pid}: state {}, tracer {}", field("State:"), field("TracerPid:"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn only_a_first_error_of_a_moment_is_tried_again() {
        let closed =
            "(00.1) Error (criu/sk-unix.c:1): unix: Found a closed in-flight socket to 1f\n";
        let after = "(00.2) Error (criu/cr-dump.c:1): Dumping FAILED.\n";
        let other = "(00.1) Error (criu/files.c:1): something else\n";
        assert!(moment(&[closed, after].concat()).is_some());
        assert!(moment(&[other, closed].concat()).is_none());
        assert!(moment("(00.1) nothing at all\n").is_none());
    }
}
