//! A host that is offered archives, and looks what they did to it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::mutate::Case;
use super::tar::{self, Member};
use crate::host::Host;

/// A refusal takes no longer than this.
const BOUND: Duration = Duration::from_secs(2);
/// How often one that took longer is asked again: a busy machine is no fault of the archive.
const TRIES: usize = 4;

/// What the container remembers: a variable, a place in a file, a file.
const PROGRAM: &str = "exec 3</etc/passwd; read first <&3; echo kept > /kept; rm -f /etc/motd; \
     trap 'read second <&3; echo \"$first $second\" > /told' USR1; echo ready > /ready; \
     while :; do sleep 1000 & wait $!; done";

/// A host with the checkpoint of a container.
pub struct Victim {
    /// The host.
    pub host: Host,
    /// The members of the checkpoint's archive.
    pub members: Vec<Member>,
    /// The archive itself.
    pub good: Vec<u8>,
    /// Where an archive is put to be restored.
    pub file: PathBuf,
    /// What lies around before anything is restored.
    pub before: BTreeSet<String>,
}

impl Victim {
    /// Makes both, and restores the archive once.
    ///
    /// # Errors
    /// A command fails, or the container is not what it was.
    pub fn new() -> Result<Self> {
        let host = Host::new()?;
        host.image("redis", &[])?;
        let run = ["run", "-d", "--network", "none", "--name", "one", "redis", "sh", "-c", PROGRAM];
        host.arctern(&run)?;
        wait_for(&host, "one", "/ready")?;
        let file = host.dir().join("good.tar");
        let path = file.to_string_lossy().into_owned();
        host.arctern(&["container", "checkpoint", "one", "--file", &path])?;
        host.arctern(&["rm", "one"])?;
        let good = fs::read(&file)?;
        fs::remove_file(&file)?;
        let members = tar::read(&good)?;
        let mut victim = Victim { host, members, good, file, before: BTreeSet::new() };
        // Once for real: what a host has after a restore that was removed again is its ordinary state.
        victim.write(&victim.good.clone())?;
        victim.host.arctern(&["container", "restore", "--file", &path])?;
        victim.is_identical()?;
        victim.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
        victim.before = victim.tree()?;
        Ok(victim)
    }

    /// Puts an archive where [`Victim::restore`] finds it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        Ok(fs::write(&self.file, bytes)?)
    }

    /// Everything on the host that a restore could leave or touch: names with size and time, without
    /// the database and the store's own lists.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn tree(&self) -> Result<BTreeSet<String>> {
        fn visit(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
            for entry in fs::read_dir(dir)?.flatten() {
                let path = entry.path();
                let metadata = fs::symlink_metadata(&path)?;
                let volatile = path.extension().is_some_and(|e| e == "tar")
                    || path.to_string_lossy().contains("db");
                if volatile || path.ends_with("layers") || path.ends_with("blobs") {
                    continue;
                }
                match metadata.is_dir() {
                    true => {
                        found.insert(path.display().to_string());
                        visit(&path, found)?;
                    }
                    false => {
                        found.insert(format!("{} {}", path.display(), metadata.size()));
                    }
                }
            }
            Ok(())
        }
        let mut found = BTreeSet::new();
        visit(self.host.dir(), &mut found)?;
        // Where the evil names lead.
        for entry in fs::read_dir("/var/tmp")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("escape") {
                found.insert(format!("/var/tmp/{name}"));
            }
        }
        let passwd = fs::metadata("/etc/passwd")?;
        found.insert(format!("passwd {} {} {}", passwd.mode(), passwd.nlink(), passwd.mtime()));
        Ok(found)
    }

    /// Nothing was left, and nothing is gone.
    ///
    /// # Errors
    /// What is new and what is gone.
    pub fn unchanged(&self) -> Result<()> {
        let after = self.tree()?;
        let more: Vec<_> = after.difference(&self.before).collect();
        let less: Vec<_> = self.before.difference(&after).collect();
        ensure!(more.is_empty() && less.is_empty(), "new: {more:?}, gone: {less:?}");
        Ok(())
    }

    /// Restores the file with options; how it ended, and how long it took.
    ///
    /// # Errors
    /// It was killed, or panicked.
    pub fn restore(&self, options: &[&str]) -> Result<(bool, String, Duration)> {
        let path = self.file.to_string_lossy().into_owned();
        let mut arguments = vec!["container", "restore", "--file", &path];
        arguments.extend(options);
        let begin = Instant::now();
        let output = self.host.attempt(&arguments)?;
        let took = begin.elapsed();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().context("it was killed")?;
        ensure!(!text.contains("panicked"), "it panicked: {text}");
        ensure!(code == 0 || code == 125, "it ended with {code}: {text}");
        Ok((code == 0, text, took))
    }

    /// The restored container goes on where it was.
    ///
    /// # Errors
    /// What it says is something else.
    pub fn is_identical(&self) -> Result<()> {
        self.host.arctern(&["kill", "--signal", "USR1", "one"])?;
        wait_for(&self.host, "one", "/told")?;
        let told = self.host.arctern(&["exec", "one", "cat", "/told", "/kept"])?;
        let lines: Vec<&str> = told.lines().collect();
        ensure!(
            lines.len() == 2 && lines[0].starts_with("root:x:0:0:") && lines[0].contains("daemon:"),
            "it says {told:?}"
        );
        ensure!(lines[1] == "kept", "its file says {told:?}");
        Ok(())
    }

    /// Restores a mutated archive and looks whether it was treated as it deserves.
    ///
    /// # Errors
    /// It was not.
    pub fn judge(&self, case: &Case) -> Result<bool> {
        self.write(&case.bytes)?;
        for attempt in 1.. {
            let (restored, text, took) = self.restore(&[])?;
            if restored {
                ensure!(case.may_restore, "it was restored");
                if case.identical {
                    self.is_identical()?;
                }
                self.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
                self.unchanged()?;
                return Ok(true);
            }
            self.unchanged()?;
            ensure!(is_clear(&text), "its error is not clear: {text}");
            if took <= BOUND {
                return Ok(false);
            }
            ensure!(attempt < TRIES, "it was refused after {took:?}");
        }
        bail!("never judged")
    }

    /// Writes the members with a change; digests are made again.
    ///
    /// # Errors
    /// `change` fails.
    pub fn change(&self, change: impl FnOnce(&mut Vec<Member>) -> Result<()>) -> Result<()> {
        let mut members = self.members.clone();
        change(&mut members)?;
        tar::remake(&mut members)?;
        self.write(&tar::write(&members))
    }

    /// It is refused with all of these words, and leaves nothing.
    ///
    /// # Errors
    /// It is restored, or the error says something else.
    pub fn refuses(&self, options: &[&str], words: &[&str]) -> Result<()> {
        let (restored, text, _) = self.restore(options)?;
        if restored {
            self.host.arctern(&["rm", "-f", "-t", "0", "one"])?;
            bail!("it was restored");
        }
        for word in words {
            ensure!(text.contains(word), "its error does not say {word:?}: {text}");
        }
        self.unchanged()
    }
}

/// An error says what could not be done, to what, and that nothing is left.
pub fn is_clear(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.starts_with("warning:"));
    lines.next().is_some_and(|line| line.starts_with("error: cannot restore from "))
        && lines.next().is_some_and(|line| line.starts_with("  ") && line.trim().len() > 8)
        && text.contains("Nothing of it was left behind.")
}

/// Waits until a file of the container is there: its program gives no other sign.
///
/// # Errors
/// It does not come.
pub fn wait_for(host: &Host, name: &str, path: &str) -> Result<()> {
    let script = format!("while ! [ -s {path} ]; do sleep 0.05; done");
    host.arctern(&["exec", name, "timeout", "20", "sh", "-c", &script]).map(drop)
}

/// The member with this name.
///
/// # Errors
/// There is none.
pub fn find<'a>(members: &'a mut [Member], name: &str) -> Result<&'a mut Member> {
    members.iter_mut().find(|m| m.text() == name).with_context(|| format!("no member {name}"))
}

/// Changes a document.
///
/// # Errors
/// It is none.
pub fn edit_json(member: &mut Member, edit: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
    let mut json = serde_json::from_slice(&member.content)?;
    edit(&mut json);
    member.content = serde_json::to_vec(&json)?;
    Ok(())
}
