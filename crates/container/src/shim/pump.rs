//! The loop of a shim: output to the log and to who is attached, input to the container, until
//! init ends.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};
use rustix::termios::Winsize;

use super::checks::Checks;
use super::log::{LogWriter, Stream};
use super::protocol::{Decoder, Kind, encode};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// Bytes that may wait for a slow client, or for a container that does not read. Above it the
/// other side is not read any more: whoever is slow is waited for, memory stays bounded.
const BACKLOG: usize = 1 << 20;

/// Where the container's standard streams end.
#[derive(Debug)]
pub enum Streams {
    /// Pipes.
    Pipes {
        /// Write end of standard input, with `-i`.
        stdin: Option<OwnedFd>,
        /// Read end of standard output.
        stdout: OwnedFd,
        /// Read end of standard error.
        stderr: OwnedFd,
    },
    /// Master of the terminal.
    Terminal(OwnedFd),
    /// The container was restored without any of them.
    Closed,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    pending: VecDeque<u8>,
    attached: bool,
    gone: bool,
}

impl Client {
    fn new(stream: UnixStream, attached: bool) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            decoder: Decoder::default(),
            pending: VecDeque::new(),
            attached,
            gone: false,
        })
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() && !self.gone {
            match self.stream.write(self.pending.as_slices().0) {
                Ok(0) => self.gone = true,
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }
}

#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    stream: Stream,
}

/// The loop and what it serves.
#[derive(Debug)]
pub struct Pump {
    init: Pid,
    init_fd: OwnedFd,
    outputs: Vec<Output>,
    input: Option<OwnedFd>,
    /// Input and output are one terminal.
    terminal: bool,
    to_container: VecDeque<u8>,
    input_ended: bool,
    log: LogWriter,
    listener: UnixListener,
    clients: Vec<Client>,
    checks: Option<Checks>,
}

#[derive(Clone, Copy)]
enum Token {
    Init,
    Listener,
    Output(usize),
    Input,
    Client(usize),
    Checks,
}

impl Pump {
    /// A loop for a container whose init is the child `pid`.
    pub fn new(
        pid: i32,
        streams: Streams,
        log: LogWriter,
        listener: UnixListener,
        checks: Option<Checks>,
    ) -> io::Result<Pump> {
        let init = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let init_fd = pidfd_open(init, PidfdFlags::empty())?;
        listener.set_nonblocking(true)?;
        let (outputs, input, terminal) = match streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                let outputs = vec![
                    Output { fd: stdout, stream: Stream::Stdout },
                    Output { fd: stderr, stream: Stream::Stderr },
                ];
                (outputs, stdin, false)
            }
            Streams::Terminal(master) => {
                let input = master.try_clone()?;
                (vec![Output { fd: master, stream: Stream::Stdout }], Some(input), true)
            }
            Streams::Closed => (Vec::new(), None, false),
        };
        for fd in outputs.iter().map(|o| &o.fd).chain(&input) {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Pump {
            init,
            init_fd,
            outputs,
            input,
            terminal,
            to_container: VecDeque::new(),
            input_ended: false,
            log,
            listener,
            clients: Vec::new(),
            checks,
        })
    }

    /// Adds a client that was there from the beginning.
    pub fn add_client(&mut self, stream: UnixStream, attached: bool) -> io::Result<()> {
        self.clients.push(Client::new(stream, attached)?);
        Ok(())
    }

    /// Serves until init has ended and all its output is written. Gives init's exit code, 128 and
    /// the signal's number when a signal ended it.
    pub fn run(&mut self) -> io::Result<i32> {
        loop {
            for token in self.wait()? {
                match token {
                    Token::Init => {
                        if let Some(code) = self.reap()? {
                            self.checks = None;
                            self.drain()?;
                            return Ok(code);
                        }
                    }
                    Token::Listener => self.accept(),
                    Token::Output(index) => {
                        self.read_output(index)?;
                    }
                    Token::Input => self.write_input(),
                    Token::Client(index) => self.serve(index),
                    Token::Checks => {
                        if let Some(checks) = &mut self.checks {
                            checks.go_on()?;
                        }
                    }
                }
            }
            self.clients.retain(|c| !c.gone);
        }
    }

    /// Tells every client how it ended, and waits until they have it or are gone.
    pub fn finish(mut self, code: i32) {
        for client in &mut self.clients {
            client.pending.extend(encode(Kind::Exit, &code.to_le_bytes()));
            // From here on there is nothing else to do: wait for each in turn, but not for one
            // that does not read.
            let wait = Some(std::time::Duration::from_secs(10));
            if client.stream.set_nonblocking(false).is_ok()
                && client.stream.set_write_timeout(wait).is_ok()
            {
                client.flush();
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Token>> {
        let mut tokens = vec![Token::Init, Token::Listener];
        let mut fds = vec![
            PollFd::new(&self.init_fd, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if let Some(checks) = &self.checks {
            tokens.push(Token::Checks);
            fds.push(PollFd::from_borrowed_fd(checks.descriptor(), PollFlags::IN));
        }
        let crowded = self.clients.iter().any(|c| c.attached && c.pending.len() > BACKLOG);
        if !crowded {
            for (index, output) in self.outputs.iter().enumerate() {
                tokens.push(Token::Output(index));
                fds.push(PollFd::new(&output.fd, PollFlags::IN));
            }
        }
        if let Some(input) = self.input.as_ref().filter(|_| !self.to_container.is_empty()) {
            tokens.push(Token::Input);
            fds.push(PollFd::new(input, PollFlags::OUT));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if self.to_container.len() < BACKLOG {
                flags |= PollFlags::IN;
            }
            if !client.pending.is_empty() {
                flags |= PollFlags::OUT;
            }
            tokens.push(Token::Client(index));
            fds.push(PollFd::new(&client.stream, flags));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        // Clients and outputs first: what was said before the end is heard before the end.
        let mut ready: Vec<Token> =
            tokens.into_iter().zip(ready).filter(|r| r.1).map(|r| r.0).collect();
        ready.reverse();
        Ok(ready)
    }

    fn reap(&self) -> io::Result<Option<i32>> {
        match waitpid(Some(self.init), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Ok(exit_code(status)),
            Ok(None) => Ok(None),
            // Somebody else reaped it: there is no code to be had.
            Err(Errno::CHILD) => Ok(Some(255)),
            Err(e) => Err(e.into()),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(client) = Client::new(stream, false) {
                self.clients.push(client);
            }
        }
    }

    /// Reads once; says whether there may be more.
    fn read_output(&mut self, index: usize) -> io::Result<bool> {
        let mut buffer = [0u8; CHUNK];
        let Some(output) = self.outputs.get(index) else { return Ok(false) };
        let stream = output.stream;
        match rustix::io::read(&output.fd, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // A terminal whose last program is gone answers EIO.
            Ok(0) | Err(Errno::IO) => {
                self.outputs.remove(index);
                Ok(false)
            }
            Err(e) => Err(e.into()),
            Ok(n) => {
                // A full disk must not stop the container: its log has a gap then.
                let _ = self.log.write(stream, &buffer[..n]);
                let kind = match stream {
                    Stream::Stdout => Kind::Stdout,
                    Stream::Stderr => Kind::Stderr,
                };
                let frame = encode(kind, &buffer[..n]);
                for client in self.clients.iter_mut().filter(|c| c.attached) {
                    client.pending.extend(&frame);
                    client.flush();
                }
                Ok(true)
            }
        }
    }

    /// What init and its descendants wrote before they ended is still in the pipes.
    fn drain(&mut self) -> io::Result<()> {
        let mut index = 0;
        while index < self.outputs.len() {
            let before = self.outputs.len();
            while self.read_output(index)? {}
            if self.outputs.len() == before {
                index += 1;
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        client.flush();
        let mut buffer = [0u8; CHUNK];
        match client.stream.read(&mut buffer) {
            Ok(0) => client.gone = true,
            Ok(n) => client.decoder.push(&buffer[..n]),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => client.gone = true,
        }
        loop {
            let Some(client) = self.clients.get_mut(index) else { return };
            match client.decoder.next_frame() {
                Ok(Some((kind, payload))) => self.obey(index, kind, &payload),
                Ok(None) => return,
                Err(_) => {
                    client.gone = true;
                    return;
                }
            }
        }
    }

    fn obey(&mut self, index: usize, kind: Kind, payload: &[u8]) {
        match kind {
            Kind::Attach => {
                if let Some(client) = self.clients.get_mut(index) {
                    client.attached = true;
                }
            }
            Kind::Stdin if self.input.is_some() => {
                self.to_container.extend(payload);
                self.write_input();
            }
            Kind::StdinEnd if !self.terminal => {
                self.input_ended = true;
                self.write_input();
            }
            Kind::Resize => {
                if let ([a, b, c, d], Some(input), true) = (payload, &self.input, self.terminal) {
                    let size = Winsize {
                        ws_row: u16::from_le_bytes([*a, *b]),
                        ws_col: u16::from_le_bytes([*c, *d]),
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _ = rustix::termios::tcsetwinsize(input, size);
                }
            }
            _ => {}
        }
    }

    fn write_input(&mut self) {
        while let Some(input) = self.input.as_ref().filter(|_| !self.to_container.is_empty()) {
            match rustix::io::write(input.as_fd(), self.to_container.as_slices().0) {
                Ok(n) => drop(self.to_container.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The container closed its input.
                Err(_) => {
                    self.input = None;
                    self.to_container.clear();
                }
            }
        }
        if self.input_ended && self.to_container.is_empty() {
            self.input = None;
        }
    }
}

fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|s| 128 + s))
}
