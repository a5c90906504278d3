//! `stop`, `kill` and `wait`.

use std::time::Duration;

use rustix::process::Signal;

use super::start::{Connection, Event};
use crate::error::{Error, Result};
use crate::host::{ExitRecord, Host};
use crate::process::ProcessHandle;
use crate::state::{Record, Status};

/// What became of a `stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It did not run.
    Already,
    /// It ended by itself after the signal.
    Gracefully,
    /// It had to be killed.
    Killed,
}

/// How long a process may take to die after SIGKILL, and a shim to clean up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Host {
    /// Asks a container to end, and kills it when it has not after its time. One that does not run
    /// is no error.
    pub fn stop(&mut self, name_or_id: &str, timeout: Option<u32>) -> Result<(Record, Stopped)> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        self.mark_stopped(&record)?;
        let Some(init) = self.init(&record) else { return Ok((record, Stopped::Already)) };
        let shim = self.connect(&record, false).ok();
        let timeout = match record.status {
            // It may run on another host: here it does not go on for a moment.
            Status::Migrating => 0,
            _ => timeout.unwrap_or(record.config.stop_timeout),
        };
        let ended = timeout > 0 && {
            send(&record, &init, record.config.stop_signal)?;
            self.thaw(&record);
            init.wait(Some(Duration::from_secs(timeout.into())))
                .map_err(Error::system("wait for the container"))?
        };
        if !ended {
            self.kill_init(&record, &init)?;
        }
        self.await_end(&record, shim, (!ended).then(ExitRecord::killed))?;
        Ok((record, if ended { Stopped::Gracefully } else { Stopped::Killed }))
    }

    /// Sends a signal to a running container's init.
    pub fn kill(&mut self, name_or_id: &str, signal: i32) -> Result<Record> {
        let record = self.find(name_or_id)?;
        self.must_run(&record)?;
        let Some(init) = self.init(&record) else { return Ok(record) };
        // 1, 10, 12 and others ask for something; these end it, and it is to stay so.
        if [2, 3, 9, 15, record.config.stop_signal].contains(&signal) {
            self.mark_stopped(&record)?;
        }
        send(&record, &init, signal)?;
        if signal == 9 {
            self.thaw(&record);
        }
        Ok(record)
    }

    /// Waits for the end of a container and gives its exit code; at once if it does not run.
    pub fn wait(&mut self, name_or_id: &str) -> Result<i32> {
        let record = self.find(name_or_id)?;
        let mut told = None;
        if let Some(init) = self.init(&record) {
            let shim = self.connect(&record, false).ok();
            told = shim.and_then(hear_end);
            if told.is_none() {
                // Its shim is gone, or was going: init itself tells its end.
                init.wait(None).map_err(Error::system("wait for the container"))?;
                self.await_cleanup(&record, None)?;
            }
        }
        // A removed container has taken its code with it.
        let stored = self.store.get(record.id())?.and_then(|r| r.exit_code);
        Ok(told.or(stored).or(record.exit_code).unwrap_or(0))
    }

    /// Waits until the end of a container whose init was killed is written down and its network is
    /// free again. `shim` is a connection that was made before; `exit` is how it ended, if there is
    /// no shim that knows.
    pub(crate) fn await_end(
        &mut self,
        record: &Record,
        shim: Option<Connection>,
        exit: Option<ExitRecord>,
    ) -> Result<()> {
        match shim.and_then(hear_end) {
            Some(_) => Ok(()),
            None => self.await_cleanup(record, exit),
        }
    }

    /// Kills init, and with it every process of its pid namespace.
    pub(crate) fn kill_init(&self, record: &Record, init: &ProcessHandle) -> Result<()> {
        let fail = || Error::system(format!("kill container {}", record.name()));
        // The signal first: what is thawed with it never comes back to its program.
        init.signal(Signal::KILL).map_err(fail())?;
        self.thaw(record);
        match init.wait(Some(PATIENCE)).map_err(fail())? {
            true => Ok(()),
            false => Err(Error::Invalid(format!("container {} does not die", record.name()))),
        }
    }

    /// Waits until the shim has cleaned up, and does it itself when there is no shim. The caller
    /// holds the lock or does not care who is faster.
    pub(crate) fn await_cleanup(
        &mut self,
        record: &Record,
        exit: Option<ExitRecord>,
    ) -> Result<()> {
        if let Some(shim) = record.shim.and_then(|p| p.open()) {
            let _ = shim.wait(Some(PATIENCE));
        }
        if let Some(after) = self.store.get(record.id())?
            && (after.status == Status::Running || after.shim.is_some())
        {
            self.finish(record.id(), exit)?;
        }
        Ok(())
    }
}

/// The exit code that a shim tells at the end; None when it ends without.
fn hear_end(mut shim: Connection) -> Option<i32> {
    while let Ok(Some(event)) = shim.next_event() {
        if let Event::Exit(code) = event {
            return Some(code);
        }
    }
    None
}

fn send(record: &Record, init: &ProcessHandle, signal: i32) -> Result<()> {
    let number = signal;
    let Some(signal) = Signal::from_named_raw(signal) else {
        return Err(Error::Invalid(format!("signal {number} cannot be sent")));
    };
    let name = record.name();
    init.signal(signal).map_err(Error::system(format!("signal container {name}")))
}
