//! The shim: the one process that lives as long as a container, the parent of its init.
//!
//! It starts or restores the container, writes its output to the log, connects those who attach,
//! and when init ends it writes down how and cleans up. It is this program, started again by the
//! command that starts the container:
//!
//! - descriptor 0 is a socket to that command, which hears a [`protocol::Report`] and may attach;
//! - descriptor 1 is the container's lock, let go of when the container runs;
//! - descriptor 2 is the shim's log file.
//!
//! A container with a restart policy keeps its shim: it starts the container again ([`again`]).

mod again;
mod checks;
pub mod control;
pub(crate) mod launch;
pub mod log;
pub mod protocol;
pub(crate) mod pump;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::host::{ExitRecord, Host};
use crate::paths::Paths;
use crate::policy::Restarts;
use crate::process::ProcessId;
use crate::time::Timestamp;
use crate::transfer::{Lap, Verdict};
use checks::Checks;
use log::LogWriter;
use protocol::{Kind, Report};
use pump::Pump;

pub use launch::{RestoreRequest, Trust};

/// What a shim is to do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the container.
    Start,
    /// Restore it from the checkpoint that is kept with it.
    Restore,
}

/// Runs the shim of container `id` to its end.
pub fn run(paths: Paths, id: &str, action: Action, attach: bool) -> Result<()> {
    rustix::process::setsid().map_err(Error::system("begin a session"))?;
    let command = take_stdin()?;
    let launched = Host::open(paths).and_then(|mut host| {
        launch::launch(&mut host, id, action, Some(&command)).map(|launched| (host, launched))
    });
    let (mut host, mut launched) = match launched {
        Ok(launched) => launched,
        Err(error) => {
            let report = Report::Failed {
                message: error.chain(),
                hint: error.hint(),
                code: error.exit_code(),
            };
            report_to(&command, &report);
            return Err(error);
        }
    };
    let report = Report::Running {
        pid: launched.pid,
        restore: launched.report.take(),
        warnings: std::mem::take(&mut launched.warnings),
        laps: launched.laps.take(),
    };
    match action {
        Action::Start => {
            release_lock()?;
            report_to(&command, &report);
        }
        Action::Restore => {
            // It runs: who waits for that need not wait for what is left. The next command does, so that
            // it finds nothing half done.
            report_to(&command, &report);
            crate::checkpoint::restore::settle_network(&host, id, launched.lock.take());
            release_lock()?;
        }
    }
    drop(launched.preloaded.take());
    if action == Action::Restore && !launched.keep {
        // It has gone on from there; going back to it would not fit its file system any more.
        crate::checkpoint::restore::used(&host, id);
    }
    let mut restarts = Restarts::default();
    let mut command = Some((command, attach));
    loop {
        let begin = std::time::Instant::now();
        let ended = serve(&host, id, launched, command.take())?;
        let code = ended.code;
        host.end(id, ended)?;
        match again::again(&mut host, id, code, begin.elapsed(), &mut restarts)? {
            Some(next) => launched = next,
            None => return Ok(()),
        }
    }
}

fn serve(
    host: &Host,
    id: &str,
    launched: launch::Launched,
    command: Option<(UnixStream, bool)>,
) -> Result<Ended> {
    let log_path = host.paths.container(id).log();
    let log = LogWriter::open(&log_path).map_err(Error::io("open", &log_path))?;
    let pump = || -> io::Result<Ended> {
        let checks = Checks::new(&host.paths, id, launched.healthcheck.as_ref())?;
        let mut pump = Pump::new(launched.pid, launched.streams, log, launched.listener, checks)?;
        if let Some((command, attach)) = command {
            pump.add_client(command, attach)?;
        }
        let code = pump.run()?;
        Ok(Ended { code, pump })
    };
    pump().map_err(Error::system("serve the container"))
}

/// Init has ended; who asked is still to be told.
struct Ended {
    code: i32,
    pump: Pump,
}

impl Host {
    /// Writes down how a container ended, cleans up, tells who waits. The record in the run
    /// directory comes first: whatever happens after it, the exit code is not lost.
    fn end(&mut self, id: &str, ended: Ended) -> Result<()> {
        let exit = ExitRecord { code: ended.code, finished: Timestamp::now() };
        let path = self.paths.container(id).exit();
        let record = serde_json::to_vec(&exit).map_err(Error::json("an exit record"))?;
        fs::write(&path, record).map_err(Error::io("write", &path))?;
        let removed = self.store.get(id)?.is_some_and(|r| r.config.auto_remove);
        let released = self.release(id);
        self.record_end(id, Some(exit))?;
        let Ended { code, pump } = ended;
        if removed {
            // Who waits for it may want its name again at once.
            let cleared = self.clear(id);
            pump.finish(code);
            cleared?;
        } else {
            pump.finish(code);
            self.clear(id)?;
        }
        released
    }

    /// The identity of this process, as the shim of a container.
    pub(crate) fn this_process() -> Result<ProcessId> {
        i32::try_from(std::process::id())
            .ok()
            .and_then(ProcessId::of)
            .ok_or_else(|| Error::Invalid("/proc does not show this process".to_owned()))
    }
}

/// Waits, with a container that is built, for the word of the command that is taking it over from
/// another host. A command that is gone leaves it to what was written down.
pub(crate) fn await_commit(
    host: &Host,
    transfer: &str,
    command: &UnixStream,
    laps: Vec<Lap>,
) -> Result<()> {
    report_to(command, &Report::Built { laps });
    loop {
        match protocol::receive(command) {
            Ok(Some((Kind::Go, _))) => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                return match Verdict::of(&host.paths, transfer)? {
                    Some(Verdict::Committed) => Ok(()),
                    _ => Err(Error::NotCommitted),
                };
            }
        }
    }
}

pub(crate) fn report_to(command: &UnixStream, report: &Report) {
    if let Ok(json) = serde_json::to_vec(report) {
        // The command may have been killed meanwhile; the container runs all the same.
        let _ = protocol::send(command, Kind::Report, &json);
    }
}

/// Takes the socket out of descriptor 0, and puts /dev/null there.
fn take_stdin() -> Result<UnixStream> {
    let fail = "take over the socket of the command";
    let fd = io::stdin().as_fd().try_clone_to_owned().map_err(Error::system(fail))?;
    rustix::stdio::dup2_stdin(null()?).map_err(Error::system(fail))?;
    Ok(UnixStream::from(fd))
}

/// Lets go of the container's lock, which is descriptor 1.
fn release_lock() -> Result<()> {
    rustix::stdio::dup2_stdout(null()?).map_err(Error::system("let go of the lock"))
}

fn null() -> Result<rustix::fd::OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", "/dev/null")(e.into()))
}
