//! TCP listeners that share a port, and what is set on listeners.

use crate::must;
use crate::sockets::{option, set_option};
use crate::stage::{Checks, Stage, child};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

const TCP: i32 = libc::IPPROTO_TCP;
const LIMIT: Duration = Duration::from_secs(20);
/// A place in TCP_INFO: of a listener it is the backlog (tcpi_sacked).
const BACKLOG_AT: usize = 28;

/// A socket of one group (SO_REUSEPORT) on a port of 127.0.0.1.
fn of_group(kind: i32, port: u16) -> i32 {
    let fd = must!(libc::socket(libc::AF_INET, kind, 0));
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    must!(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32));
    fd
}

fn listener_of_group(port: u16) -> TcpListener {
    let fd = of_group(libc::SOCK_STREAM, port);
    must!(libc::listen(fd, 64));
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { TcpListener::from_raw_fd(fd) }
}

/// The first of two descriptors that can be read; None if neither could in time.
fn first_readable(fds: [i32; 2]) -> Option<usize> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let limit = LIMIT.as_millis() as i32;
    // SAFETY: the list outlives the call.
    unsafe { libc::poll(polled.as_mut_ptr(), 2, limit) };
    polled.iter().position(|one| one.revents != 0)
}

fn hears(checks: &mut Checks, what: &str, mut socket: &TcpStream, text: &[u8]) {
    socket.set_read_timeout(Some(LIMIT)).expect("timeout");
    let mut got = vec![0; text.len()];
    match socket.read_exact(&mut got) {
        Ok(()) => checks.eq(what, text, &got[..]),
        Err(error) => checks.fail(format!("{what}: {error}")),
    }
}

/// Two processes listen on one port. Each keeps its connections, and both get new ones. Two UDP
/// sockets share a port, too.
pub fn shared_port(stage: &Stage, checks: &mut Checks) {
    let mine = listener_of_group(0);
    let address = mine.local_addr().expect("address");
    let theirs = listener_of_group(address.port());
    let (mut kept, mut given) = (Vec::new(), Vec::new());
    while kept.is_empty() || given.is_empty() {
        let mut client = TcpStream::connect(address).expect("connect");
        client.write_all(b"before").expect("write");
        let Some(side) = first_readable([mine.as_raw_fd(), theirs.as_raw_fd()]) else {
            return checks.fail("nobody got a connection");
        };
        let listener = if side == 0 { &mine } else { &theirs };
        let (server, _) = listener.accept().expect("accept");
        if side == 0 { &mut kept } else { &mut given }.push((client, server));
    }
    let (their_clients, their_servers): (Vec<_>, Vec<_>) = given.into_iter().unzip();
    let not_theirs: Vec<i32> = std::iter::once(mine.as_raw_fd())
        .chain(kept.iter().flat_map(|(a, b)| [a.as_raw_fd(), b.as_raw_fd()]))
        .chain(their_clients.iter().map(AsRawFd::as_raw_fd))
        .collect();
    let server = child("server", move |stage, checks| {
        for fd in not_theirs {
            must!(libc::close(fd));
        }
        stage.ready();
        for mut server in &their_servers {
            hears(checks, "unread by the child", server, b"before");
            // Blocks until it is verified.
            hears(checks, "then by the child", server, b"after");
            checks.that("answer", server.write_all(b"theirs").is_ok());
        }
        loop {
            let (mut server, _) = theirs.accept().expect("accept");
            checks.that("greeting", server.write_all(b"child").is_ok());
            let mut last = [0];
            if server.read_exact(&mut last).is_err() || last == *b"q" {
                return;
            }
        }
    });
    let bound = |port| {
        // SAFETY: the descriptor is new and nobody else's.
        unsafe { UdpSocket::from_raw_fd(of_group(libc::SOCK_DGRAM, port)) }
    };
    let first = bound(0);
    let udp_port = first.local_addr().expect("address").port();
    let second = bound(udp_port);
    stage.ready();
    stage.wait_for_verify();

    for (mut client, mut server) in kept.iter().map(|pair| (&pair.0, &pair.1)) {
        hears(checks, "unread by the parent", server, b"before");
        checks.that("answer", server.write_all(b"mine").is_ok());
        hears(checks, "from the parent", client, b"mine");
        checks.that("more", client.write_all(b"more").is_ok());
        hears(checks, "to the parent", server, b"more");
    }
    for mut client in &their_clients {
        checks.that("write", client.write_all(b"after").is_ok());
        hears(checks, "from the child", client, b"theirs");
    }
    checks.eq("option", 1, option(mine.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT));
    let (mut at_mine, mut at_theirs, mut ended) = (0, 0, false);
    for _ in 0..200 {
        let mut client = TcpStream::connect(address).expect("connect");
        match first_readable([mine.as_raw_fd(), client.as_raw_fd()]) {
            Some(0) => {
                at_mine += 1;
                drop(mine.accept().expect("accept"));
            }
            Some(_) => {
                at_theirs += 1;
                hears(checks, "greeting", &client, b"child");
                ended = at_mine > 0;
                checks.that("answer", client.write_all(if ended { b"q" } else { b"n" }).is_ok());
            }
            None => checks.fail("a new connection was not accepted"),
        }
        if ended {
            break;
        }
    }
    checks.that(format!("{at_mine} new ones here, {at_theirs} there"), ended);
    if !ended {
        must!(libc::kill(server.pid, libc::SIGKILL));
    }
    server.wait(checks);

    let senders: Vec<_> = (0..40).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bind")).collect();
    for sender in &senders {
        sender.send_to(b"datagram", ("127.0.0.1", udp_port)).expect("send");
    }
    let got = [&first, &second].map(|socket| {
        socket.set_nonblocking(true).expect("flag");
        let mut count = 0;
        while socket.recv(&mut [0; 20]).is_ok() {
            count += 1;
        }
        count
    });
    checks.eq("datagrams", senders.len(), got[0] + got[1]);
    checks.that(format!("{got:?} datagrams"), got[0] > 0 && got[1] > 0);
}

/// The backlog of a listener.
fn backlog(fd: i32) -> u32 {
    let mut info = [0u8; 104];
    let mut length = info.len() as u32;
    must!(libc::getsockopt(fd, TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length));
    let place = info[BACKLOG_AT..].first_chunk().expect("four bytes");
    u32::from_ne_bytes(*place)
}

/// Backlogs of listeners, over IPv4 and IPv6.
pub fn backlogs(stage: &Stage, checks: &mut Checks) {
    listeners(stage, checks, false);
}

/// Fast open, deferred accepting and the backlog, over IPv4 and IPv6.
pub fn listener_options(stage: &Stage, checks: &mut Checks) {
    listeners(stage, checks, true);
}

fn listeners(stage: &Stage, checks: &mut Checks, options: bool) {
    let mut all = Vec::new();
    for (number, address) in ["127.0.0.1:0", "[::1]:0"].into_iter().enumerate() {
        let Ok(plain) = TcpListener::bind(address) else { continue };
        let deferred = TcpListener::bind(address).expect("bind");
        let fast = TcpListener::bind(address).expect("bind");
        if options {
            set_option(deferred.as_raw_fd(), TCP, libc::TCP_DEFER_ACCEPT, 9);
            set_option(fast.as_raw_fd(), TCP, libc::TCP_FASTOPEN, 23 + number as i32);
        }
        must!(libc::listen(plain.as_raw_fd(), 17 + number as i32));
        must!(libc::listen(deferred.as_raw_fd(), 300));
        must!(libc::listen(fast.as_raw_fd(), 1));
        all.extend([plain, deferred, fast]);
    }
    let look = || -> Vec<_> {
        let look = |listener: &TcpListener| {
            let fd = listener.as_raw_fd();
            let options = [libc::TCP_DEFER_ACCEPT, libc::TCP_FASTOPEN];
            let accepts = option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
            (listener.local_addr().ok(), backlog(fd), accepts, options.map(|o| option(fd, TCP, o)))
        };
        all.iter().map(look).collect()
    };
    let before = look();
    let set: Vec<_> = before.iter().map(|(_, backlog, _, [_, fast])| (*backlog, *fast)).collect();
    checks.eq("setup", &[(17, 0), (300, 0), (1, if options { 23 } else { 0 })][..], &set[..3]);
    checks.eq("setup", options, before[1].3[0] >= 9);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("listeners", before, look());
    for (number, listener) in all.iter().enumerate() {
        let address: SocketAddr = listener.local_addr().expect("address");
        let mut client = TcpStream::connect(address).expect("connect");
        if options && number % 3 == 1 {
            // Nobody is there before it has said something.
            listener.set_nonblocking(true).expect("flag");
            let early = listener.accept().map(drop).map_err(|e| e.kind());
            checks.eq("deferred", Err(ErrorKind::WouldBlock), early);
        }
        checks.that("write", client.write_all(b"question").is_ok());
        checks.eq("arrival", Some(0), first_readable([listener.as_raw_fd(), -1]));
        match listener.accept() {
            Ok((server, _)) => {
                server.set_nonblocking(false).expect("flag");
                hears(checks, "question", &server, b"question");
            }
            Err(error) => checks.fail(format!("accept: {error}")),
        }
    }
}
