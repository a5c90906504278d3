//! Live TCP connections: both ends are in the tree, every byte and option is compared.

use crate::must;
use crate::sockets::{option, set_option};
use crate::stage::{Checks, Stage, child};
use std::io::{ErrorKind, Read, Write};
use std::mem::size_of_val;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

const TCP: i32 = libc::IPPROTO_TCP;
const SOL: i32 = libc::SOL_SOCKET;

/// States as TCP_INFO has them.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Both ends of a new connection to `address`, whose listener is gone.
fn pair(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).expect("bind");
    accepted(&listener)
}

fn accepted(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    (client, server)
}

fn info(socket: &TcpStream) -> [u8; 104] {
    let mut info = [0u8; 104];
    let mut length = info.len() as u32;
    let fd = socket.as_raw_fd();
    must!(libc::getsockopt(fd, TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length));
    info
}

fn state(socket: &TcpStream) -> u8 {
    info(socket)[0]
}

/// Waits until the socket has got to a state.
fn reach(socket: &TcpStream, wanted: u8) -> bool {
    for _ in 0..10_000 {
        if state(socket) == wanted {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("state {} and not {wanted}", state(socket));
    false
}

/// What both sides agreed upon: options, shifts of windows.
fn agreed(socket: &TcpStream) -> (u8, u8) {
    let info = info(socket);
    (info[5] & 7, info[6])
}

/// The byte at a place of a stream.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// Writes the stream until the socket takes no more; how far it got.
fn stuff(socket: &TcpStream) -> usize {
    socket.set_nonblocking(true).expect("flag");
    let mut at = 0;
    let mut full = 0;
    // The window opens a little at a time while segments arrive.
    while full < 20 {
        let bytes: Vec<u8> = (at..at + 50_000).map(byte).collect();
        match (&mut &*socket).write(&bytes) {
            Ok(n) => at += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                full += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("write: {e}"),
        }
    }
    socket.set_nonblocking(false).expect("flag");
    at
}

/// Reads the stream from `at` to its end, which is at `end`.
fn drain(checks: &mut Checks, what: &str, socket: &TcpStream, mut at: usize, end: usize) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut bytes = vec![0; 1 << 16];
    loop {
        match (&mut &*socket).read(&mut bytes) {
            Ok(0) => return checks.eq(what, end, at),
            Ok(n) => {
                if let Some(wrong) = (0..n).find(|i| bytes[*i] != byte(at + i)) {
                    return checks.fail(format!("{what}: byte {} differs", at + wrong));
                }
                at += n;
            }
            Err(e) => return checks.fail(format!("{what}: after {at} of {end} bytes: {e}")),
        }
    }
}

fn expect(checks: &mut Checks, what: &str, socket: &TcpStream, text: &[u8]) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut got = vec![0; text.len()];
    match (&mut &*socket).read_exact(&mut got) {
        Ok(()) => checks.eq(what, text, &got[..]),
        Err(e) => checks.fail(format!("{what}: {e}")),
    }
}

/// The end of the peer's direction.
fn ended(checks: &mut Checks, what: &str, socket: &TcpStream) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    checks.eq(what, Some(0), (&mut &*socket).read(&mut [0; 10]).ok());
}

/// Both directions work.
fn talk(checks: &mut Checks, what: &str, a: &TcpStream, b: &TcpStream) {
    for (from, to) in [(a, b), (b, a)] {
        checks.that(format!("{what}: write"), (&mut &*from).write_all(b"after that").is_ok());
        expect(checks, what, to, b"after that");
    }
}

/// A connection with unread data both ways.
fn conversation(stage: &Stage, checks: &mut Checks, address: &str) {
    let (client, server) = pair(address);
    (&client).write_all(b"question").expect("write");
    (&server).write_all(b"answer").expect("write");
    let look = |s: &TcpStream| (s.local_addr().ok(), s.peer_addr().ok(), state(s), agreed(s));
    let before = (look(&client), look(&server));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("ends", before, (look(&client), look(&server)));
    expect(checks, "unread by the server", &server, b"question");
    expect(checks, "unread by the client", &client, b"answer");
    talk(checks, "afterwards", &client, &server);
    drop(client);
    ended(checks, "closed", &server);
}

/// Over IPv4.
pub fn established(stage: &Stage, checks: &mut Checks) {
    conversation(stage, checks, "127.0.0.1:0");
}

/// Over IPv6.
pub fn ipv6(stage: &Stage, checks: &mut Checks) {
    if TcpListener::bind("[::1]:0").is_err() {
        stage.skip("this machine has no IPv6");
    }
    conversation(stage, checks, "[::1]:0");
}

/// IPv4 through a socket of IPv6.
pub fn v4_mapped(stage: &Stage, checks: &mut Checks) {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        stage.skip("this machine has no IPv6");
    };
    let port = listener.local_addr().expect("address").port();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    let mapped = TcpStream::connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)).expect("connect");
    let (other, _) = listener.accept().expect("accept");
    (&client).write_all(b"unread").expect("write");
    let look = |s: &TcpStream| (s.local_addr().ok(), s.peer_addr().ok(), agreed(s));
    let before = [&client, &server, &mapped, &other].map(look);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("ends", before, [&client, &server, &mapped, &other].map(look));
    expect(checks, "unread", &server, b"unread");
    talk(checks, "one end mapped", &client, &server);
    talk(checks, "both ends mapped", &mapped, &other);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    checks.that("new ones", TcpStream::connect(address).is_ok() && listener.accept().is_ok());
}

/// Megabytes in both queues and a reader that is slow; both directions.
pub fn queues(stage: &Stage, checks: &mut Checks) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    set_option(listener.as_raw_fd(), SOL, libc::SO_RCVBUF, 3 << 20);
    let (client, server) = accepted(&listener);
    drop(listener);
    set_option(client.as_raw_fd(), SOL, libc::SO_SNDBUF, 4 << 20);
    let there = stuff(&client);
    let back = stuff(&server);
    // Part is read already.
    let mut some = vec![0; 100_000];
    (&server).read_exact(&mut some).expect("read");
    let look = || {
        let sizes = [
            option(client.as_raw_fd(), SOL, libc::SO_SNDBUF),
            option(server.as_raw_fd(), SOL, libc::SO_RCVBUF),
        ];
        (agreed(&client), agreed(&server), sizes)
    };
    let before = look();
    checks.that("megabytes wait", there > 2 << 20 && back > 100_000);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("options", before, look());
    let mut rest: Vec<u8> = (there..there + 300_000).map(byte).collect();
    let writer = std::thread::spawn(move || {
        let more = (&client).write_all(&std::mem::take(&mut rest));
        let shut = client.shutdown(std::net::Shutdown::Write);
        (client, more.is_ok() && shut.is_ok())
    });
    drain(checks, "from client", &server, 100_000, there + 300_000);
    let (client, wrote) = writer.join().expect("the writer ends");
    checks.that("more was written", wrote);
    drop(server);
    drain(checks, "from server", &client, 0, back);
}

/// Two processes talk to each other, and one socket is shared by both.
pub fn both_ends(stage: &Stage, checks: &mut Checks) {
    let (client, server) = pair("127.0.0.1:0");
    let (common, far) = pair("127.0.0.1:0");
    let (mine, theirs) = (client.try_clone().expect("dup"), server.try_clone().expect("dup"));
    drop((client, server));
    (&mine).write_all(b"before").expect("write");
    let fd = mine.as_raw_fd();
    let server = child("server", |stage, checks| {
        must!(libc::close(fd));
        stage.ready();
        // Blocks in read after what is there.
        expect(checks, "queued", &theirs, b"before");
        expect(checks, "new", &theirs, b"and after");
        checks.that("answer", (&theirs).write_all(b"served").is_ok());
        checks.that("common", (&common).write_all(b"child ").is_ok());
    });
    drop(theirs);
    crate::stage::wait_until_blocked(server.pid, libc::SYS_recvfrom);
    stage.ready();
    stage.wait_for_verify();
    checks.that("write", (&mine).write_all(b"and after").is_ok());
    expect(checks, "from the child", &mine, b"served");
    server.wait(checks);
    ended(checks, "the child is gone", &mine);
    checks.that("common", (&common).write_all(b"parent").is_ok());
    expect(checks, "both wrote", &far, b"child parent");
}

/// FIN_WAIT2 and CLOSE_WAIT, with and without unread data.
pub fn half_closed(stage: &Stage, checks: &mut Checks) {
    let (closer, other) = pair("127.0.0.1:0");
    let (empty, waits) = pair("127.0.0.1:0");
    (&closer).write_all(b"last words").expect("write");
    (&other).write_all(b"unread").expect("write");
    for end in [&closer, &empty] {
        end.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }
    let all = [&closer, &other, &empty, &waits];
    for end in [&closer, &empty] {
        checks.that("setup", reach(end, FIN_WAIT2));
    }
    let before = all.map(state);
    checks.eq("setup", [FIN_WAIT2, CLOSE_WAIT, FIN_WAIT2, CLOSE_WAIT], before);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("states", before, all.map(state));
    let error = (&closer).write(b"x").map_err(|e| e.kind());
    checks.eq("no more is sent", Err(ErrorKind::BrokenPipe), error);
    expect(checks, "unread", &closer, b"unread");
    expect(checks, "last words", &other, b"last words");
    ended(checks, "the end", &other);
    ended(checks, "the end without data", &waits);
    for (from, to) in [(&other, &closer), (&waits, &empty)] {
        checks.that("write", (&mut &*from).write_all(b"still open").is_ok());
        expect(checks, "open direction", to, b"still open");
        checks.that("close", from.shutdown(std::net::Shutdown::Write).is_ok());
        ended(checks, "both closed", to);
        checks.that("gone", reach(from, CLOSE));
    }
}

/// FIN_WAIT1, LAST_ACK and CLOSING, behind full queues.
pub fn closing(stage: &Stage, checks: &mut Checks) {
    let shut = |s: &TcpStream| s.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let (one, reader) = pair("127.0.0.1:0");
    let sent = stuff(&one);
    shut(&one);
    // The other end closes first, then this one behind what waits.
    let (last, first) = pair("127.0.0.1:0");
    shut(&first);
    checks.that("setup", reach(&last, CLOSE_WAIT));
    let sent_last = stuff(&last);
    shut(&last);
    // Both close, this one behind what waits.
    let (both, at_once) = pair("127.0.0.1:0");
    let sent_both = stuff(&both);
    shut(&both);
    shut(&at_once);
    checks.that("setup", reach(&both, CLOSING));
    let all = [&one, &reader, &last, &first, &both, &at_once];
    let before = all.map(state);
    let wanted = [FIN_WAIT1, ESTABLISHED, LAST_ACK, FIN_WAIT2, CLOSING, FIN_WAIT2];
    checks.eq("setup", wanted, before);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("states", before, all.map(state));
    drain(checks, "FIN_WAIT1", &reader, 0, sent);
    checks.that("acknowledged", reach(&one, FIN_WAIT2));
    checks.that("the other way", (&reader).write_all(b"answer").is_ok());
    expect(checks, "the other way", &one, b"answer");
    drain(checks, "LAST_ACK", &first, 0, sent_last);
    checks.that("gone", reach(&last, CLOSE));
    drain(checks, "CLOSING", &at_once, 0, sent_both);
    checks.that("gone", reach(&both, CLOSE));
}

/// What setsockopt(2) changes, on both ends.
pub fn options(stage: &Stage, checks: &mut Checks) {
    let (client, server) = pair("127.0.0.1:0");
    let fd = client.as_raw_fd();
    const PEEK_OFF: i32 = libc::SO_PEEK_OFF;
    for (level, name, value) in [
        (TCP, libc::TCP_NODELAY, 1),
        (TCP, libc::TCP_KEEPIDLE, 77),
        (TCP, libc::TCP_KEEPINTVL, 7),
        (TCP, libc::TCP_KEEPCNT, 4),
        (SOL, libc::SO_KEEPALIVE, 1),
        (SOL, libc::SO_SNDBUF, 70_000),
        (SOL, libc::SO_RCVBUF, 90_000),
        (SOL, libc::SO_RCVLOWAT, 3),
        (SOL, libc::SO_OOBINLINE, 1),
        (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
        (libc::IPPROTO_IP, libc::IP_TTL, 33),
    ] {
        set_option(fd, level, name, value);
    }
    set_option(server.as_raw_fd(), TCP, libc::TCP_CORK, 1);
    set_option(server.as_raw_fd(), SOL, libc::SO_REUSEADDR, 1);
    let linger = libc::linger { l_onoff: 1, l_linger: 5 };
    let size = size_of_val(&linger) as u32;
    must!(libc::setsockopt(fd, SOL, libc::SO_LINGER, (&raw const linger).cast(), size));
    client.set_write_timeout(Some(Duration::from_secs(9))).expect("timeout");
    // Everything passes.
    let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX }];
    let filter = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    let size = size_of_val(&filter) as u32;
    must!(libc::setsockopt(fd, SOL, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size));
    // Held back by the cork.
    (&server).write_all(b"corked").expect("write");
    let look = || {
        let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
        let mut size = size_of_val(&linger) as u32;
        must!(libc::getsockopt(fd, SOL, libc::SO_LINGER, (&raw mut linger).cast(), &mut size));
        let names = [
            (TCP, libc::TCP_NODELAY),
            (TCP, libc::TCP_KEEPIDLE),
            (TCP, libc::TCP_KEEPINTVL),
            (TCP, libc::TCP_KEEPCNT),
            (SOL, libc::SO_KEEPALIVE),
            (SOL, libc::SO_SNDBUF),
            (SOL, libc::SO_RCVBUF),
            (SOL, libc::SO_RCVLOWAT),
            (SOL, libc::SO_OOBINLINE),
            (libc::IPPROTO_IP, libc::IP_TOS),
            (libc::IPPROTO_IP, libc::IP_TTL),
            (SOL, PEEK_OFF),
        ];
        let server = server.as_raw_fd();
        (
            names.map(|(level, name)| option(fd, level, name)),
            (linger.l_onoff, linger.l_linger),
            client.write_timeout().ok(),
            [option(server, TCP, libc::TCP_CORK), option(server, SOL, libc::SO_REUSEADDR)],
        )
    };
    let before = look();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("options", before, look());
    set_option(server.as_raw_fd(), TCP, libc::TCP_CORK, 0);
    expect(checks, "corked", &client, b"corked");
    talk(checks, "afterwards", &client, &server);
}

/// Options that only Arctern's images have a place for, and the size of segments.
pub fn more_options(stage: &Stage, checks: &mut Checks) {
    let (client, server) = pair("127.0.0.1:0");
    let fd = client.as_raw_fd();
    let congestion = |name: Option<&[u8]>| {
        let mut text = [0u8; 16];
        let mut size = 16;
        if let Some(name) = name {
            let len = name.len() as u32;
            must!(libc::setsockopt(fd, TCP, libc::TCP_CONGESTION, name.as_ptr().cast(), len));
        }
        let to = text.as_mut_ptr().cast();
        must!(libc::getsockopt(fd, TCP, libc::TCP_CONGESTION, to, &mut size));
        String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
    };
    congestion(Some(b"reno"));
    let options = [
        (TCP, libc::TCP_USER_TIMEOUT, 54_321),
        (TCP, libc::TCP_SYNCNT, 3),
        (TCP, libc::TCP_LINGER2, 11),
        (TCP, libc::TCP_WINDOW_CLAMP, 40_000),
        (TCP, libc::TCP_NOTSENT_LOWAT, 100_000),
        (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
    ];
    for (level, name, value) in options {
        set_option(fd, level, name, value);
    }
    let look = || (options.map(|(level, name, _)| option(fd, level, name)), congestion(None));
    let before = look();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("options", before, look());
    talk(checks, "afterwards", &client, &server);
    let size = option(fd, TCP, libc::TCP_MAXSEG);
    checks.that(format!("segments of {size} bytes"), size > 10_000);
}

/// A connection that is not there yet: nobody answers before it is verified.
pub fn syn_sent(stage: &Stage, checks: &mut Checks) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    // Nothing passes.
    let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    let (fd, size) = (listener.as_raw_fd(), size_of_val(&filter) as u32);
    must!(libc::setsockopt(fd, SOL, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size));
    let raw = must!(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0));
    // SAFETY: the descriptor was made above and belongs to nobody else.
    let client = unsafe { TcpStream::from_raw_fd(raw) };
    let port = listener.local_addr().expect("address").port();
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: the address outlives the call.
    let result =
        unsafe { libc::connect(raw, (&raw const address).cast(), size_of_val(&address) as u32) };
    checks.eq("setup", (-1, SYN_SENT), (result, state(&client)));
    let local = client.local_addr().ok();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("connecting", (SYN_SENT, local), (state(&client), client.local_addr().ok()));
    set_option(fd, SOL, libc::SO_DETACH_FILTER, 0);
    let (server, from) = listener.accept().expect("accept");
    checks.eq("from", local, Some(from));
    checks.that("connected", reach(&client, ESTABLISHED));
    client.set_nonblocking(false).expect("flag");
    talk(checks, "afterwards", &client, &server);
}

/// A listener without SO_REUSEADDR beside the connections that it accepted.
pub fn listen_accepted(stage: &Stage, checks: &mut Checks) {
    let raw = must!(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
    must!(libc::listen(raw, 5));
    // SAFETY: the descriptor was made above and belongs to nobody else.
    let listener = unsafe { TcpListener::from_raw_fd(raw) };
    let port = listener.local_addr().expect("address").port();
    let mut connections = Vec::new();
    for _ in 0..5 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        connections.push((client, server));
    }
    stage.ready();
    stage.wait_for_verify();
    for (client, server) in &connections {
        talk(checks, "accepted before", client, server);
    }
    checks.eq("port", Some(port), listener.local_addr().ok().map(|a| a.port()));
    checks.eq("option", 0, option(raw, SOL, libc::SO_REUSEADDR));
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    match listener.accept() {
        Ok((server, _)) => talk(checks, "accepted afterwards", &client, &server),
        Err(e) => checks.fail(format!("accept: {e}")),
    }
}

/// Connections that wait to be accepted, in order, with data and with an end, IPv4 and IPv6.
pub fn accept_queue(stage: &Stage, checks: &mut Checks) {
    let four = TcpListener::bind("127.0.0.1:0").expect("bind");
    let six = TcpListener::bind("[::1]:0").ok();
    let mut waiting = Vec::new();
    for listener in [Some(&four), six.as_ref()].into_iter().flatten() {
        for text in [&b""[..], b"question", b"last words"] {
            let client = TcpStream::connect(listener.local_addr().expect("address"));
            let client = client.expect("connect");
            (&client).write_all(text).expect("write");
            if text == b"last words" {
                client.shutdown(std::net::Shutdown::Write).expect("shutdown");
            }
            waiting.push((listener, client, text));
        }
    }
    stage.ready();
    stage.wait_for_verify();
    for (listener, client, text) in waiting {
        listener.set_nonblocking(true).expect("flag");
        let server = match listener.accept() {
            Ok((server, from)) => {
                checks.eq("in order", client.local_addr().ok(), Some(from));
                server
            }
            Err(e) => return checks.fail(format!("accept: {e}")),
        };
        server.set_nonblocking(false).expect("flag");
        checks.eq("agreed", agreed(&client).0, agreed(&server).0);
        expect(checks, "sent before", &server, text);
        if text == b"last words" {
            ended(checks, "the end", &server);
            checks.that("answer", (&server).write_all(b"answer").is_ok());
            expect(checks, "answer", &client, b"answer");
        } else {
            talk(checks, "afterwards", &client, &server);
        }
    }
}
