//! What goes wrong in the middle of a move, and what must be true afterwards.

use crate::crash::alive;
use crate::disk::fill;
use crate::host::Host;
use crate::machine::{Machine, settled};
use crate::process::with_argument;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the command.
    Source,
    /// Of the arctern that it talks to.
    Destination,
    /// Of both.
    Both,
    /// Of ssh.
    Ssh,
    /// Of the command and of the keeper of its network lock.
    Keeper,
    /// Of the destination's shim.
    Shim,
    /// The link is down for five seconds.
    Link,
    /// The destination's disk is full.
    Disk,
    /// A byte is another one when it arrives.
    Damage,
    /// Somebody listens at this port of the destination.
    Port(u16),
}

/// One move with a fault.
pub struct Struck<'a> {
    /// Where the container is.
    pub from: &'a Machine,
    /// Where it is to go.
    pub to: &'a Machine,
    /// Its name.
    pub name: &'a str,
    /// What goes wrong.
    pub fault: Fault,
    /// How long after the beginning of the command.
    pub after: Duration,
    /// Which byte that is sent is damaged.
    pub byte: u64,
}

/// How a move with a fault ended.
pub struct End {
    /// It runs where it was to go.
    pub moved: bool,
    /// The command that it took to bring it back or to tidy up.
    pub command: Option<&'static str>,
}

impl Struck<'_> {
    /// Runs the command, and lets the fault come; what it said.
    pub fn run(&self) -> Result<String> {
        let wrapper = self.damaging_ssh()?;
        let wrapper = wrapper.to_string_lossy();
        let options: &[&str] = match self.fault {
            Fault::Damage => &["--ssh", &wrapper],
            _ => &[],
        };
        let mut command = self.from.migration(self.to, options, self.name);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // The fault comes by the clock, wherever the move is then.
        std::thread::sleep(self.after);
        let since = self.strike(i32::try_from(child.id())?)?;
        let output = child.wait_with_output()?;
        drop(since);
        if self.fault == Fault::Disk {
            fs::remove_file(self.filler()).context("free the disk")?;
        }
        let Output { status, stderr, .. } = output;
        Ok(format!("{status}: {}", String::from_utf8_lossy(&stderr)))
    }

    fn filler(&self) -> PathBuf {
        self.to.host.seen(&self.to.host.dir().join("root/filler"))
    }

    /// What is given back lasts as long as it is kept.
    fn strike(&self, source: i32) -> Result<Option<TcpListener>> {
        let base = |host: &Host| host.dir().to_string_lossy().into_owned();
        let there = format!("{}/root", base(&self.to.host));
        let ssh: Vec<i32> = with_argument("ssh\0", &there);
        let receivers = processes(&[&there, "internal receive"]);
        let receivers = receivers.into_iter().filter(|pid| !ssh.contains(pid) && *pid != source);
        match self.fault {
            Fault::Source => kill([source]),
            Fault::Destination => kill(receivers),
            Fault::Both => kill(receivers.chain([source])),
            Fault::Ssh => kill(ssh),
            Fault::Keeper => {
                let keepers = with_argument("arctern-keeper", &base(&self.from.host));
                kill(keepers.into_iter().chain([source]));
            }
            Fault::Shim => kill(with_argument("arctern-shim", &there)),
            Fault::Link => {
                let place = self.to.host.place();
                place.ip("link set eth0 down")?;
                std::thread::sleep(Duration::from_secs(5));
                place.ip("link set eth0 up")?;
            }
            Fault::Disk => fill(&File::create(self.filler())?)?,
            Fault::Damage => {}
            Fault::Port(port) => {
                // Where the container is already nobody else listens.
                return self.to.host.inside(|| Ok(TcpListener::bind(("0.0.0.0", port)).ok()));
            }
        }
        Ok(None)
    }

    /// An ssh that damages one byte of what it sends.
    fn damaging_ssh(&self) -> Result<PathBuf> {
        let path = self.from.host.dir().join("damaging-ssh");
        let byte = self.byte;
        let damage = format!(
            r"stdbuf -o0 head -c {byte}; head -c 1 | tr '\000-\377' '\001-\377\000'; exec cat"
        );
        let script = format!("#!/bin/bash\nexec ssh \"$@\" < <({damage})\n");
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Exactly one copy runs, after one documented command at most; nothing else is left.
    pub fn judge(&self) -> Result<End> {
        let Struck { from, to, name, .. } = *self;
        let state = || -> Result<_> { Ok((settled(from, name)?, settled(to, name)?)) };
        let (here, there) = state()?;
        let needed = match (here.as_str(), there.as_str()) {
            ("migrating", _) => Some((&from.host, &["migrate", "--resolve", name][..])),
            ("", "checkpointed") => {
                Some((&to.host, &["container", "restore", "--tcp-established", name][..]))
            }
            ("exited", "running") => Some((&from.host, &["rm", name][..])),
            _ => None,
        };
        if let Some((host, command)) = needed {
            host.arctern(command).with_context(|| format!("it was {here:?} and {there:?}"))?;
        }
        let after = state()?;
        let moved = match (after.0.as_str(), after.1.as_str()) {
            ("running", "") => false,
            ("", "running") => true,
            _ => anyhow::bail!("here and there it was {here:?} and {there:?}, it is {after:?}"),
        };
        let (with, without) = if moved { (to, from) } else { (from, to) };
        ensure!(alive(&with.host, name)?, "it stands still");
        if !matches!(self.fault, Fault::Port(_)) {
            // There they keep a lease.
            without.host.await_keepers()?;
        }
        let files = without.host.files_of_containers();
        ensure!(files.is_empty(), "left where it does not run: {files:?}");
        for machine in [from, to] {
            let found = machine.host.attempt(&["system", "check"])?;
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            // One that was killed when the container ran already is no part of the move any more.
            let late = |line: &str| {
                self.fault == Fault::Shim
                    && moved
                    && line.contains("its shim was killed: it runs on")
            };
            ensure!(found.lines().all(late), "{found}");
        }
        Ok(End { moved, command: needed.map(|(_, command)| word(command)) })
    }
}

fn word(command: &[&str]) -> &'static str {
    match command.first() {
        Some(&"migrate") => "migrate --resolve",
        Some(&"container") => "container restore",
        _ => "rm",
    }
}

/// Pids of processes whose command line has all these words.
fn processes(words: &[&str]) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        words.iter().all(|word| line.contains(word)).then_some(pid)
    };
    entries.filter_map(pid).collect()
}

fn kill(pids: impl IntoIterator<Item = i32>) {
    for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
        // One that has ended meanwhile is none to kill.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
