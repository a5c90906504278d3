//! A connection to the arctern of the other side: a running ssh, whose streams are the wire.

use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::destination::Remote;
use crate::throttle::Throttle;
use crate::wire::{DataWriter, Receiver, Sender};

/// How long an ssh may take to end when the other side has ended.
const ENDING: Duration = Duration::from_secs(2);

/// What is sent goes this way.
pub type Outgoing = Throttle<PipeWriter>;

/// What went wrong on the wire.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// ssh is not there.
    #[error("run `{program}`")]
    Ssh {
        /// What was run.
        program: String,
        /// Why it could not be.
        source: io::Error,
    },
    /// The other side is gone without a word, and what ssh ended with.
    #[error("the connection to {destination} ended{}", exit(.code))]
    Ended {
        /// Where to.
        destination: String,
        /// Exit code of ssh: 255 when it could not connect, 127 when there is no arctern.
        code: Option<i32>,
    },
    /// Nothing was heard for too long.
    #[error("{destination} did not answer for {} s", .after.as_secs())]
    Silent {
        /// Where to.
        destination: String,
        /// How long was waited.
        after: Duration,
    },
    /// Reading or writing failed.
    #[error("talk to {destination}")]
    Io {
        /// Where to.
        destination: String,
        /// What the system says.
        source: io::Error,
    },
}

fn exit(code: &Option<i32>) -> String {
    match code {
        Some(255) => " (ssh could not connect, or lost the connection)".to_owned(),
        Some(127) => {
            " (there is no arctern in the other side's PATH: give --remote-program)".to_owned()
        }
        Some(code) => format!(" (exit code {code})"),
        None => String::new(),
    }
}

/// A connection. Dropped, it ends, and the other side gives up what was not committed.
#[derive(Debug)]
pub struct Transport {
    child: Child,
    receiver: Receiver<ChildStdout>,
    sender: Sender<Outgoing>,
    destination: String,
}

impl Transport {
    /// Runs `arctern internal WORD` on the other side. `ssh` is the program to run; it gets at most
    /// `bandwidth` bytes a second.
    ///
    /// # Errors
    /// ssh cannot be run; that it cannot connect is seen at the first message.
    pub fn open(
        ssh: &str,
        remote: &Remote,
        word: &str,
        bandwidth: Option<u64>,
    ) -> Result<Transport, TransportError> {
        let fail = |source| TransportError::Ssh { program: ssh.to_owned(), source };
        let (stdin, ours) = io::pipe().map_err(fail)?;
        let mut child = Command::new(ssh)
            .args(remote.ssh_arguments(word))
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        let Some(stdout) = child.stdout.take() else {
            return Err(fail(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Transport {
            child,
            receiver: Receiver::new(stdout),
            sender: Sender::new(Throttle::new(ours, bandwidth).map_err(fail)?),
            destination: remote.destination.to_string(),
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send<M: Serialize>(&mut self, message: &M) -> Result<(), TransportError> {
        let sent = self.sender.message(message);
        sent.map_err(|error| self.failed(error))
    }

    /// The next message.
    ///
    /// # Errors
    /// The other side is gone, says something else, or nothing for longer than `patience`.
    pub fn receive<M: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> Result<M, TransportError> {
        self.wait(patience)?;
        match self.receiver.message() {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.ended()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The sending half.
    #[must_use]
    pub fn sender(&self) -> Sender<Outgoing> {
        self.sender.clone()
    }

    /// A stream of bytes to the other side. While it is open no message can be sent.
    #[must_use]
    pub fn data(&self) -> DataWriter<Outgoing> {
        self.sender.data()
    }

    /// Waits for the other side's end, after the last that there is to say: what was not carried yet
    /// would be lost with ssh.
    pub fn await_end(&self) {
        self.ends_within(ENDING);
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sender.sent()
    }

    /// Waits until something is there to be read: nothing is buffered, so the pipe tells.
    fn wait(&self, patience: Duration) -> Result<(), TransportError> {
        let deadline = Instant::now() + patience;
        let stdout = self.receiver.get_ref().as_fd();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| self.silent(patience))?;
            match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(self.silent(patience)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let destination = self.destination.clone();
                    return Err(TransportError::Io { destination, source: errno.into() });
                }
            }
        }
    }

    fn silent(&self, after: Duration) -> TransportError {
        TransportError::Silent { destination: self.destination.clone(), after }
    }

    /// What ended: the other side by itself, or the link.
    fn ended(&mut self) -> TransportError {
        // Its standard output is closed: it ends now or has ended, unless it is a program that waits for
        // the end of what we say.
        if !self.ends_within(ENDING) {
            let _ = self.child.kill();
        }
        let code = self.child.wait().ok().and_then(|status| status.code());
        TransportError::Ended { destination: self.destination.clone(), code }
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        let Ok(handle) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) else {
            return false;
        };
        // Readable when it has ended (pidfd_open(2)).
        matches!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], limit.as_ref()), Ok(1..))
    }

    /// What a failed write or read means.
    pub fn failed(&mut self, error: io::Error) -> TransportError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => self.ended(),
            _ => TransportError::Io { destination: self.destination.clone(), source: error },
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // The pipe to it is still open: without this it would go on for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
