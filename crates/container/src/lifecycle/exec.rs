//! `exec`: another process in a running container, as a child of the command that asks.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Capabilities, Process, Spec, UserBuilder};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::cgroup::Hierarchies;
use crate::console::ConsoleSocket;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::process::ProcessId;
use crate::runtime::Confinement;
use crate::spec::{self, caps, user};

/// What to execute and how.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Command and arguments.
    pub command: Vec<String>,
    /// `user[:group]`; the container's own by default.
    pub user: Option<String>,
    /// Added to the container's environment, `NAME=VALUE` or `NAME`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Give it a terminal.
    pub terminal: bool,
    /// Give it this process's standard input; else it has none.
    pub stdin: bool,
    /// Give it no output either.
    pub detach: bool,
    /// With all capabilities.
    pub privileged: bool,
}

/// A process that was started in a container.
#[derive(Debug)]
pub struct ExecSession {
    pid: i32,
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl ExecSession {
    /// Waits for its end and gives its exit code.
    pub fn wait(&self) -> Result<i32> {
        let pid = Pid::from_raw(self.pid);
        loop {
            match waitpid(pid, WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    let signal = status.terminating_signal().map(|s| 128 + s);
                    if let Some(code) = status.exit_status().or(signal) {
                        return Ok(code);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::system("wait for the command")(e)),
            }
        }
    }

    /// Waits for its end at most `timeout` (None: for ever); None when it still runs.
    pub fn wait_for(&self, timeout: Option<std::time::Duration>) -> Result<Option<i32>> {
        // A child that was not waited for keeps its pid.
        let process = ProcessId::of(self.pid).and_then(|process| process.open());
        let ended = match process {
            Some(process) => {
                process.wait(timeout).map_err(Error::system("wait for the command"))?
            }
            None => true,
        };
        if ended { self.wait().map(Some) } else { Ok(None) }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// The children of this process.
fn children() -> Vec<arctern_sys::Pid> {
    let own = arctern_sys::Pid(std::process::id().cast_signed());
    arctern_sys::proc::children(own).unwrap_or_default()
}

/// Kills and reaps the children of this process but for those that are `known`: what an attempt has
/// started, and what becomes this process's child when its parent ends.
fn end_children(known: &[arctern_sys::Pid]) {
    loop {
        let new = children().into_iter().filter(|child| !known.contains(child));
        let reaped = new.filter_map(|child| Pid::from_raw(child.0)).filter(|pid| {
            // It keeps its pid until it is waited for.
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
            matches!(waitpid(Some(*pid), WaitOptions::empty()), Ok(Some(_)))
        });
        if reaped.count() == 0 {
            return;
        }
    }
}

impl Host {
    /// Starts a process in a running container. It has this process's standard streams, or a
    /// terminal of its own.
    pub fn exec(&mut self, name_or_id: &str, options: ExecOptions) -> Result<ExecSession> {
        let record = self.find(name_or_id)?;
        let id = record.id();
        self.must_run(&record)?;
        self.must_not_be_paused(&record)?;
        let Some(init) = record.init else { return Err(Error::ShimGone(id.to_owned())) };
        if !crate::runtime::has_started(&self.paths.oci(), id) {
            // Told to run a moment ago. The command that starts it has the lock until the library's
            // state is written.
            drop(self.find_locked(id)?);
        }
        let paths = self.paths.container(id);
        let spec = spec::load(&paths.spec())?;
        let broken = || Error::Invalid(format!("the runtime spec of container {id} is incomplete"));
        let mut process = spec.process().clone().ok_or_else(broken)?;
        process.set_args(Some(options.command));
        process.set_terminal(Some(options.terminal));
        if let Some(workdir) = options.workdir {
            process.set_cwd(workdir.into());
        }
        let mut env = process.env().clone().unwrap_or_default();
        if let Some(who) = options.user {
            // Its root as it sees it itself: the mount may not be visible from here.
            let root = std::path::PathBuf::from(format!("/proc/{}/root", init.pid));
            let user = user::resolve(&root, &who)?;
            env.retain(|e| !e.starts_with("HOME="));
            env.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
            if user.uid != 0
                && let Some(mut caps) = process.capabilities().clone()
            {
                caps.set_effective(Some(Capabilities::new()));
                caps.set_permitted(Some(Capabilities::new()));
                process.set_capabilities(Some(caps));
            }
            process.set_user(
                UserBuilder::default()
                    .uid(user.uid)
                    .gid(user.gid)
                    .additional_gids(user.groups)
                    .build()?,
            );
        }
        if options.privileged
            && let Some(mut own) = process.capabilities().clone()
        {
            let all = caps::to_spec(caps::bounding(&[], &[], true)?)?;
            own.set_bounding(Some(all.clone()));
            own.set_permitted(Some(all.clone()));
            own.set_effective(Some(all));
            process.set_capabilities(Some(own));
        }
        for option in options.env {
            let Some(entry) = with_value(option) else { continue };
            let name = entry.split('=').next().unwrap_or_default().to_owned();
            env.retain(|e| e.split('=').next() != Some(&name));
            env.push(entry);
        }
        if options.terminal && !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));

        let confinement = confine(&spec, &mut process)?;

        let own = std::process::id();
        let document = paths.run.join(format!("exec-{own}.json"));
        let json = serde_json::to_vec(&process).map_err(Error::json("the process"))?;
        fs::write(&document, json).map_err(Error::io("write", &document))?;
        let streams = (options.stdin, options.detach);
        let console = options.terminal.then(|| format!("exec-{own}"));
        let before = children();
        let started = self.start_exec(id, &document, &console, streams, confinement);
        // Whatever the library stumbled over, that is the cause.
        let started = started.map_err(|error| {
            // What is left of the attempt is this process's to reap: init ends after it, and it would make
            // control groups again that have been removed.
            end_children(&before);
            if !self.has_ended(&record) {
                return error;
            }
            self.remove_groups_of_ended(record.id());
            Error::EndedMeanwhile(record.config.name.clone())
        });
        // As long as it is there, others know that somebody is at work.
        let _ = fs::remove_file(&document);
        started
    }

    /// Removes control groups that the library has made again for a process that was about to join a
    /// container while that one was being cleaned up.
    fn remove_groups_of_ended(&mut self, id: &str) {
        let held = self.find_locked(id);
        let runs = matches!(&held, Ok((now, _)) if self.init(now).is_some());
        let removed = match runs {
            true => Ok(()),
            false => Hierarchies::of(&self.paths).and_then(|groups| groups.remove(id)),
        };
        if let Err(error) = removed {
            tracing::warn!("{}", error.chain());
        }
    }

    fn start_exec(
        &self,
        id: &str,
        document: &std::path::Path,
        console: &Option<String>,
        (stdin, detach): (bool, bool),
        confinement: Option<Confinement>,
    ) -> Result<ExecSession> {
        let run = self.paths.container(id).run;
        let oci = self.paths.oci();
        if let Some(name) = console {
            let socket = ConsoleSocket::bind(&run, name).map_err(Error::io("listen at", &run))?;
            let pid = crate::runtime::exec(&oci, id, document, Some(socket.path()), confinement)?;
            let terminal = socket.receive().map_err(Error::system("receive the terminal"))?;
            return Ok(ExecSession { pid, terminal: Some(terminal) });
        }
        let null = || {
            let open = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
            open.map_err(Error::io("open", "/dev/null"))
        };
        if !stdin {
            rustix::stdio::dup2_stdin(null()?).map_err(Error::system("close standard input"))?;
        }
        let _diverted = if detach { Some(Diverted::to(&null()?)?) } else { None };
        let pid = crate::runtime::exec(&oci, id, document, None, confinement)?;
        Ok(ExecSession { pid, terminal: None })
    }
}

/// This process's output streams, which the processes that it starts get, lead to a file until the
/// value is dropped.
pub(crate) struct Diverted {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Diverted {
    pub(crate) fn to(file: &fs::File) -> Result<Diverted> {
        const FAIL: &str = "divert the output streams";
        let own = Diverted {
            stdout: io::stdout().as_fd().try_clone_to_owned().map_err(Error::system(FAIL))?,
            stderr: io::stderr().as_fd().try_clone_to_owned().map_err(Error::system(FAIL))?,
        };
        rustix::stdio::dup2_stdout(file).map_err(Error::system(FAIL))?;
        rustix::stdio::dup2_stderr(file).map_err(Error::system(FAIL))?;
        Ok(own)
    }
}

impl Drop for Diverted {
    fn drop(&mut self) {
        let _ = rustix::stdio::dup2_stdout(&self.stdout);
        let _ = rustix::stdio::dup2_stderr(&self.stderr);
    }
}

/// Takes the filter out of the container's spec for a process that joins it, and lets the process
/// begin with every capability that it takes to load the filter.
fn confine(spec: &Spec, process: &mut Process) -> Result<Option<Confinement>> {
    let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().clone());
    let (Some(seccomp), Some(capabilities)) = (seccomp, process.capabilities().clone()) else {
        return Ok(None);
    };
    let all = caps::to_spec(caps::bounding(&[], &[], true)?)?;
    let mut first = capabilities.clone();
    first.set_bounding(Some(all.clone()));
    first.set_permitted(Some(all.clone()));
    first.set_effective(Some(all));
    process.set_capabilities(Some(first));
    Ok(Some(Confinement { seccomp, capabilities }))
}

/// `NAME=VALUE` as it is, `NAME` with the value that this process has.
fn with_value(option: String) -> Option<String> {
    if option.contains('=') {
        return Some(option);
    }
    std::env::var(&option).ok().map(|value| format!("{option}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_an_attempt_goes_on() {
        let sleeper = || {
            let mut command = std::process::Command::new("sleep");
            command.arg("100").spawn().expect("sleep")
        };
        let mut before = sleeper();
        let known = children();
        let mut after = sleeper();
        end_children(&known);
        assert!(before.try_wait().expect("wait").is_none(), "the first child goes on");
        assert!(after.try_wait().is_err(), "the second one was reaped");
        before.kill().expect("kill");
        before.wait().expect("wait");
    }
}
