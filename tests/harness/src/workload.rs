//! One run of a workload: its directory, its processes, its outcome.

use crate::process::{End, Process, kill_below, processes_below, readable};
use crate::skips::Skip;
use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a workload may take to set up or to verify.
const LIMIT: Duration = Duration::from_secs(40);

/// The program with the workloads; `ARCTERN_WORKLOAD` overrides the build directory's.
pub fn program() -> PathBuf {
    crate::engine::built("ARCTERN_WORKLOAD", "workload")
}

/// Listens as workloads with somebody outside expect it: answers each byte with the number of the
/// connection.
pub fn serve(listener: UnixListener) {
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    if stream.write_all(&[count as u8]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A running (or captured, or restored) workload.
pub struct Run {
    base: tempfile::TempDir,
    outer: Process,
    root: Process,
}

impl Run {
    /// Starts the workload and waits until it is ready.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(&["run", name])
    }

    /// Starts `workload ARGUMENTS DIR` and waits until it is ready.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        crate::process::become_reaper()?;
        let base = tempfile::Builder::new().prefix("arctern-test-").tempdir()?;
        let work = base.path().join("work");
        fs::create_dir(&work)?;
        let fifo = work.join("ready");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0)?;
        // Opened before the start: the reader must be there when the workload opens its end.
        let listen = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        let output = File::options().append(true).create(true).open(work.join("output"))?;
        let child = Command::new(program())
            .args(arguments)
            .arg(&work)
            .current_dir(&work)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| {
                format!("cannot start {} (cargo build -p arctern-workloads)", program().display())
            })?;
        let outer = Process::open(child.id() as i32)?;
        let mut said = String::new();
        let mut listen = File::from(listen);
        // Until the end of file: then the workload has closed its end.
        loop {
            let ready = readable(&[listen.as_fd(), outer.as_fd()], LIMIT)?;
            if ready[0] {
                match listen.read_to_string(&mut said) {
                    Ok(_) if said.ends_with('\n') => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("cannot listen to the workload"),
                }
            } else {
                kill_below(&work);
                bail!(
                    "the workload ended or hung before it was ready:\n{}",
                    read(&work.join("output"))
                );
            }
        }
        let root = match fs::read_to_string(work.join("pid")) {
            Ok(pid) => Process::open(pid.trim().parse()?)?,
            Err(_) => Process::open(outer.pid())?,
        };
        let run = Self { base, outer, root };
        if let Some(reason) = said.strip_prefix("skip ") {
            run.outer.wait(LIMIT)?;
            return Err(Skip(reason.trim().to_owned()).into());
        }
        Ok(run)
    }

    /// Pid of the root of the tree.
    pub fn pid(&self) -> i32 {
        self.root.pid()
    }

    /// The workload's own directory.
    pub fn work(&self) -> PathBuf {
        self.base.path().join("work")
    }

    /// A new directory beside it, for images.
    pub fn images(&self, name: &str) -> Result<PathBuf> {
        let images = self.base.path().join(name);
        fs::create_dir_all(&images)?;
        Ok(images)
    }

    /// What the workload wrote to its standard output and error.
    pub fn output(&self) -> String {
        read(&self.work().join("output"))
    }

    /// Every process of the tree, the root first. Taken before a capture that kills it: orphans of
    /// killed parents become this process's to reap, and until then hold their pids.
    pub fn tree(&self) -> Result<Vec<Process>> {
        let mut pids = vec![self.outer.pid()];
        let mut at = 0;
        while at < pids.len() {
            let tasks = fs::read_dir(format!("/proc/{}/task", pids[at]));
            at += 1;
            // A child that has ended since is no part of the tree.
            let Ok(tasks) = tasks else { continue };
            for task in tasks.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
        // Short-lived children may be gone already.
        Ok(pids.into_iter().filter_map(|pid| Process::open(pid).ok()).collect())
    }

    /// Waits for the end of a tree that was killed by its capture.
    pub fn wait_for_kill(&self, tree: Vec<Process>) -> Result<()> {
        let end = self.outer.wait(Duration::from_secs(20)).context("after the capture")?;
        for process in &tree {
            process.gone(Duration::from_secs(20))?;
        }
        // Children that were born between the list and the capture: same session, now this process's.
        for process in orphans_of_session(self.outer.pid()) {
            process.gone(Duration::from_secs(20))?;
        }
        match end {
            End::Killed(9) | End::Exited(137) => Ok(()),
            end => {
                bail!("the captured tree should have been killed, but: {end:?}\n{}", self.output())
            }
        }
    }

    /// Takes the restored root task over.
    pub fn restored(&mut self, pid: i32) -> Result<()> {
        self.root = Process::open(pid)?;
        self.outer = Process::open(pid)?;
        Ok(())
    }

    /// Kills the tree and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let tree = self.tree()?;
        for process in &tree {
            let _ = process.signal(Signal::KILL);
        }
        for process in tree {
            process.gone(Duration::from_secs(20))?;
        }
        Ok(())
    }

    /// Tells the workload to compare, and takes its outcome.
    pub fn verify(&self) -> Result<()> {
        self.root.signal(Signal::USR1)?;
        let end = self.outer.wait(LIMIT);
        let output = self.output();
        match end {
            Ok(End::Exited(0)) => {}
            Ok(end) => bail!("the workload ended with {end:?}:\n{output}"),
            Err(error) => bail!("{error}:\n{output}{}", self.where_they_are()),
        }
        let left = processes_below(&self.work());
        if !left.is_empty() {
            bail!("processes were left: {left:?}");
        }
        Ok(())
    }

    /// Where the tasks of a hanging workload are.
    fn where_they_are(&self) -> String {
        let mut text = String::new();
        for pid in processes_below(&self.work()) {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let read = |name: &str| {
                    fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().to_owned()
                };
                text += &format!(
                    "\ntask {:?} {} state {} in {} {}",
                    task.file_name(),
                    read("comm"),
                    read("status").lines().find(|l| l.starts_with("State")).unwrap_or_default(),
                    read("wchan"),
                    read("syscall")
                );
            }
        }
        text
    }

    /// What the workload `busy` counted: its errors first.
    pub fn progress(&self) -> Result<Vec<u64>> {
        let bytes =
            fs::read(self.work().join("progress")).context("the workload has no progress")?;
        Ok(bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
            .collect())
    }

    /// Nothing stops or traces the tree: fails with the first task that is held.
    pub fn unharmed(&self) -> Result<()> {
        for process in self.tree()? {
            let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", process.pid())) else {
                continue;
            };
            for task in tasks.flatten() {
                let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
                let field = |key: &str| {
                    status
                        .lines()
                        .find_map(|l| l.strip_prefix(key))
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                if field("State:").starts_with(['T', 't']) || field("TracerPid:") != "0" {
                    bail!(
                        "task {:?} is held: state {}, tracer {}",
                        task.file_name(),
                        field("State:"),
                        field("TracerPid:")
                    );
                }
            }
        }
        Ok(())
    }

    /// The mappings of the root task, to see that a capture leaves none of its own.
    pub fn maps(&self) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/maps", self.pid())).context("cannot read the mappings")
    }

    /// Keeps the directory for a look at it.
    pub fn keep(&mut self) -> PathBuf {
        self.base.disable_cleanup(true);
        self.base.path().to_owned()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        kill_below(&self.work());
    }
}

/// Children of this process that belong to the session.
fn orphans_of_session(session: i32) -> Vec<Process> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .flat_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit(')').next().unwrap_or_default();
            fields.split_whitespace().nth(3) == Some(&session.to_string())
        })
        .filter_map(|pid| Process::open(pid).ok())
        .collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
