//! Sockets that are connected to the program that started this one, which is outside of the tree.

use crate::stage::{Checks, Stage};
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

/// Says where the outer program listens, if it cannot be reached by abstract names.
const OUTSIDE: &str = "OUTSIDE";

/// The name under which the outer program listens: as the environment says, or by its pid.
fn path() -> String {
    // SAFETY: plain call.
    let by_pid = || format!("/tmp/arctern-outside-{}", unsafe { libc::getppid() });
    std::env::var(OUTSIDE).unwrap_or_else(|_| by_pid())
}

/// The name at which it takes datagrams.
fn mailbox_of(path: &str) -> SocketAddr {
    let name = match std::env::var(OUTSIDE) {
        Ok(path) => SocketAddr::from_pathname(format!("{path}-mail")),
        Err(_) => SocketAddr::from_abstract_name(path),
    };
    name.expect("name")
}

/// What the outer program answers: how often somebody has connected.
fn ask(stream: &mut UnixStream) -> Option<u8> {
    stream.write_all(b"?").ok()?;
    let mut answer = [0];
    stream.read_exact(&mut answer).ok().map(|()| answer[0])
}

/// A stream by path and datagrams by abstract name or path, which are connected to again.
pub fn reconnected(stage: &Stage, checks: &mut Checks) {
    let path = path();
    let mut stream = UnixStream::connect(&path).expect("connect");
    let mailbox = UnixDatagram::unbound().expect("socket");
    mailbox.connect_addr(&mailbox_of(&path)).expect("connect");
    let before = ask(&mut stream);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("connections", before.map(|count| count + 1), ask(&mut stream));
    checks.that("a datagram", mailbox.send(b"after").is_ok());
}

/// A stream with unread data and datagrams, whose other ends are gone afterwards.
pub fn closed(stage: &Stage, checks: &mut Checks) {
    let path = path();
    let mut stream = UnixStream::connect(&path).expect("connect");
    stream.write_all(b"?").expect("write");
    let mailbox = UnixDatagram::unbound().expect("socket");
    mailbox.connect_addr(&mailbox_of(&path)).expect("connect");
    // The answer is there, and unread.
    let mut peeked = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(&stream),
        events: libc::POLLIN,
        revents: 0,
    };
    crate::must!(libc::poll(&mut peeked, 1, 10_000));
    stage.ready();
    stage.wait_for_verify();
    let mut rest = Vec::new();
    checks.eq("the end", Some(1), stream.read_to_end(&mut rest).ok());
    let error = stream.write(b"?").map_err(|error| error.kind());
    checks.eq("write", Err(ErrorKind::BrokenPipe), error);
    let error = mailbox.send(b"after").map_err(|error| error.kind());
    checks.eq("a datagram", Err(ErrorKind::ConnectionRefused), error);
}

/// A log that somebody else writes to as well, while this program is in its images.
pub fn grown_log(stage: &Stage, checks: &mut Checks) {
    let log = std::fs::File::options().append(true).create(true).open("log");
    let mut log = log.expect("the log can be made");
    log.write_all(b"before\n").expect("write");
    stage.ready();
    stage.wait_for_verify();
    log.write_all(b"after\n").expect("write");
    let text = std::fs::read_to_string("log").ok();
    checks.eq("the log", Some("before\nmeanwhile\nafter\n".to_owned()), text);
}

/// A file that the program reads and writes where it likes: nobody else may have changed it.
pub fn grown_file(stage: &Stage, checks: &mut Checks) {
    let file = std::fs::File::options().read(true).write(true).create_new(true).open("file");
    let mut file = file.expect("the file can be made");
    file.write_all(b"before\n").expect("write");
    stage.ready();
    stage.wait_for_verify();
    checks.that("never restored", false);
}
