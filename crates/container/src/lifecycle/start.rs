//! `start`: handing a container to a shim, and talking with the shim.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use arctern_engine::options::RestoreReport;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::Lock;
use crate::shim::protocol::{self, Kind, Report};
use crate::shim::{Action, control};
use crate::state::{Record, Status};
use crate::transfer::Lap;

/// What a shim is told by the environment: what it logs, and where it fails in a test.
const PASSED_ON: [&str; 2] = ["ARCTERN_LOG", "ARCTERN_FAULT"];

/// A container that was started or restored.
#[derive(Debug)]
pub struct Started {
    /// Pid of its init as the host sees it.
    pub pid: i32,
    /// What the engine did, after a restore.
    pub restore: Option<RestoreReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Where the time went at the end of a restore.
    pub laps: Vec<Lap>,
    /// The connection to its shim; attached if that was asked for.
    pub connection: Connection,
}

/// What a shim tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output, or of the terminal.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The container ended with this code.
    Exit(i32),
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// The next event; None when the shim is gone without a word.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        loop {
            let frame = protocol::receive(&self.stream).map_err(Error::system("hear the shim"))?;
            return Ok(match frame {
                None => None,
                Some((Kind::Stdout, bytes)) => Some(Event::Stdout(bytes)),
                Some((Kind::Stderr, bytes)) => Some(Event::Stderr(bytes)),
                Some((Kind::Exit, bytes)) => {
                    let code = bytes.try_into().map_or(255, i32::from_le_bytes);
                    Some(Event::Exit(code))
                }
                Some(_) => continue,
            });
        }
    }

    /// Sends bytes to the container's standard input.
    pub fn send_input(&self, bytes: &[u8]) -> Result<()> {
        self.send(Kind::Stdin, bytes)
    }

    /// Says that there is no more input.
    pub fn end_input(&self) -> Result<()> {
        self.send(Kind::StdinEnd, &[])
    }

    /// Sets the size of the container's terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
        self.send(Kind::Resize, &[a, b, c, d])
    }

    /// Ends the conversation: the other side of it sees no more events.
    pub fn shutdown(&self) -> Result<()> {
        self.stream.shutdown(std::net::Shutdown::Both).map_err(Error::system("end a connection"))
    }

    /// Tells a shim that has built a container to let it go.
    pub(crate) fn let_go(&self) -> Result<()> {
        self.send(Kind::Go, &[])
    }

    /// Tells a shim that was started ahead of its container that a round of memory is there, and waits
    /// until it has it.
    pub(crate) fn load_round(&self, number: u32) -> Result<()> {
        self.send(Kind::Round, &number.to_le_bytes())?;
        self.await_done()
    }

    /// Tells such a shim that everything is there: it builds.
    pub(crate) fn build(&self) {
        // One that has ended has said why before.
        let _ = self.send(Kind::Build, &[]);
    }

    /// Tells such a shim that the container stands still where it was.
    pub(crate) fn appear(&self) -> Result<()> {
        self.send(Kind::Appear, &[])
    }

    /// Waits until a shim that was started ahead of its container has done what it was to do.
    fn await_done(&self) -> Result<()> {
        match self.report()? {
            Some(Report::Done) => Ok(()),
            Some(Report::Failed { message, hint, code }) => {
                Err(Error::Shim { message, hint, code })
            }
            _ => Err(Error::Invalid("the shim ended before its container came".to_owned())),
        }
    }

    /// The next report; None when the shim is gone without one.
    fn report(&self) -> Result<Option<Report>> {
        match protocol::receive(&self.stream).map_err(Error::system("hear the shim"))? {
            Some((Kind::Report, json)) => {
                serde_json::from_slice(&json).map(Some).map_err(Error::json("the shim's report"))
            }
            _ => Ok(None),
        }
    }

    /// The same connection for another thread.
    pub fn try_clone(&self) -> Result<Connection> {
        let stream = self.stream.try_clone().map_err(Error::system("share a connection"))?;
        Ok(Connection { stream })
    }

    fn send(&self, kind: Kind, bytes: &[u8]) -> Result<()> {
        protocol::send(&self.stream, kind, bytes).map_err(Error::system("tell the shim"))
    }
}

impl Host {
    /// Starts a created or stopped container.
    pub fn start(&mut self, name_or_id: &str, attach: bool) -> Result<Started> {
        let (record, lock) = self.find_locked(name_or_id)?;
        if matches!(record.status, Status::Running | Status::Migrating) {
            return Err(Error::WrongState {
                name: record.config.name,
                status: record.status,
                needed: "stopped",
            });
        }
        // It begins anew: a checkpoint of its past would come back with a foreign file system.
        crate::checkpoint::discard(&self.paths.container(record.id()).checkpoint())?;
        self.store.update(record.id(), |r| r.checkpointed_at = None)?;
        self.spawn_shim(&record, lock, Action::Start, attach)
    }

    /// Starts a shim and waits for its report.
    pub(crate) fn spawn_shim(
        &self,
        record: &Record,
        lock: Lock,
        action: Action,
        attach: bool,
    ) -> Result<Started> {
        let (shim, connection) = self.start_shim(record, &lock, action, attach)?;
        let frame = connection.report();
        drop(lock);
        self.heard(record, shim, connection, frame)
    }

    /// Starts a shim ahead of the container that it is to build, and waits until everything is there that
    /// does not depend on what the container does until then.
    pub(crate) fn start_ahead(&self, record: &Record, lock: &Lock) -> Result<(Child, Connection)> {
        let (mut shim, connection) = self.start_shim(record, lock, Action::Restore, false)?;
        match connection.await_done() {
            Ok(()) => Ok((shim, connection)),
            Err(error) => {
                drop(connection);
                let _ = shim.wait();
                Err(error)
            }
        }
    }

    /// Waits until a shim that was started ahead, and told to, has built its container.
    pub(crate) fn await_built(
        &self,
        record: &Record,
        (shim, connection): (Child, Connection),
    ) -> Result<(Child, Connection, Vec<Lap>)> {
        match connection.report() {
            Ok(Some(Report::Built { laps })) => Ok((shim, connection, laps)),
            other => match self.heard(record, shim, connection, other) {
                Ok(_) => Err(Error::ShimGone(record.name().to_owned())),
                Err(error) => Err(error),
            },
        }
    }

    /// What becomes of a container that was let go.
    pub(crate) fn started(
        &self,
        record: &Record,
        shim: Child,
        connection: Connection,
    ) -> Result<Started> {
        let report = connection.report();
        self.heard(record, shim, connection, report)
    }

    fn start_shim(
        &self,
        record: &Record,
        lock: &Lock,
        action: Action,
        attach: bool,
    ) -> Result<(Child, Connection)> {
        let id = record.id();
        self.unmark_stopped(id)?;
        let fail = || Error::system(format!("start the shim of container {}", record.name()));
        let (ours, theirs) = UnixStream::pair().map_err(fail())?;
        let log = self.paths.container(id).shim_log();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::io("open", &log))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("arctern-shim")
            .arg("--root")
            .arg(&self.paths.root)
            .arg("--runroot")
            .arg(&self.paths.runroot)
            .args(["internal", "shim"])
            .arg(match action {
                Action::Start => "start",
                Action::Restore => "restore",
            })
            .arg(id)
            .args(attach.then_some("--attach"))
            // The environment of whoever starts a container is not the container's business.
            .env_clear()
            .env("PATH", crate::spec::DEFAULT_PATH)
            .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(lock.share()?))
            .stderr(Stdio::from(log));
        let child = command.spawn().map_err(fail())?;
        // Our copy of the socket's other end goes with the command, or its end is never seen.
        drop(command);
        Ok((child, Connection { stream: ours }))
    }

    fn heard(
        &self,
        record: &Record,
        mut shim: Child,
        connection: Connection,
        report: Result<Option<Report>>,
    ) -> Result<Started> {
        match report {
            Ok(Some(Report::Running { pid, restore, warnings, laps })) => {
                Ok(Started { pid, restore, warnings, laps, connection })
            }
            Ok(Some(Report::Failed { message, hint, code })) => {
                let _ = shim.wait();
                Err(Error::Shim { message, hint, code })
            }
            Ok(Some(Report::Built { .. } | Report::Done) | None) => {
                drop(connection);
                let _ = shim.wait();
                self.teardown(record.id())?;
                Err(Error::ShimGone(record.name().to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Attaches to a running container.
    pub fn attach(&mut self, name_or_id: &str) -> Result<(Record, Connection)> {
        let record = self.find(name_or_id)?;
        self.must_run(&record)?;
        let connection = self.connect(&record, true)?;
        Ok((record, connection))
    }

    /// Connects to the shim of a running container, to see its output or only its end.
    pub fn connect(&self, record: &Record, attach: bool) -> Result<Connection> {
        let path = self.paths.container(record.id()).run.join("ctl");
        let stream = control::connect(&path).map_err(Error::io("connect to", &path))?;
        let connection = Connection { stream };
        connection.send(if attach { Kind::Attach } else { Kind::Wait }, &[])?;
        Ok(connection)
    }
}
