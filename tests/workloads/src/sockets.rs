//! Sockets that need no partner outside: socket pairs, unix listeners, TCP listeners, UDP.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, child};
use std::io::{Read, Write};
use std::mem::size_of;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

fn pair(kind: i32) -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()));
    (ends[0], ends[1])
}

fn send(fd: i32, data: &[u8]) {
    must!(libc::send(fd, data.as_ptr().cast(), data.len(), 0));
}

/// An option that is an int.
pub fn option(fd: i32, level: i32, name: i32) -> i32 {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as u32;
    must!(libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length));
    value
}

/// Changes an option that is an int.
pub fn set_option(fd: i32, level: i32, name: i32, value: i32) {
    must!(libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as u32));
}

/// Socket pairs of all three kinds with queued data both ways, half closed, options, and shared
/// with a child.
pub fn socket_pairs(stage: &Stage, checks: &mut Checks) {
    let stream = pair(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    let datagram = pair(libc::SOCK_DGRAM | libc::SOCK_NONBLOCK);
    let packets = pair(libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK);
    let half = pair(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    let family = pair(libc::SOCK_STREAM);
    let data: Vec<u8> = (0..50_000u32).map(|i| (i % 253) as u8).collect();
    send(stream.0, &data);
    send(stream.1, b"the other way");
    for (a, b) in [datagram, packets] {
        for message in [&b"a"[..], b"bb", b"ccc"] {
            send(a, message);
        }
        send(b, b"back");
    }
    send(half.0, b"last");
    must!(libc::shutdown(half.0, libc::SHUT_WR));
    set_option(stream.0, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(stream.1, libc::SOL_SOCKET, libc::SO_SNDBUF, 70_000);
    let before = (option(stream.0, 1, libc::SO_KEEPALIVE), option(stream.1, 1, libc::SO_SNDBUF));
    let partner = child("partner", |stage, checks| {
        must!(libc::close(family.0));
        send(family.1, b"from the child");
        stage.ready();
        stage.wait_for_verify();
        checks.eq("from the parent", Ok(b"from the parent".to_vec()), take(family.1, 100));
        must!(libc::close(family.1));
    });
    must!(libc::close(family.1));
    stage.ready();
    stage.wait_for_verify();
    let after = (option(stream.0, 1, libc::SO_KEEPALIVE), option(stream.1, 1, libc::SO_SNDBUF));
    checks.eq("options", before, after);
    let mut got = Vec::new();
    while let Ok(bytes) = take(stream.1, 8192) {
        if bytes.is_empty() {
            break;
        }
        got.extend(bytes);
    }
    checks.that("stream data differs", got == data);
    checks.eq("the other way", Ok(b"the other way".to_vec()), take(stream.0, 100));
    for (a, b) in [datagram, packets] {
        for message in [&b"a"[..], b"bb", b"ccc"] {
            checks.eq("message", Ok(message.to_vec()), take(b, 100));
        }
        checks.eq("back", Ok(b"back".to_vec()), take(a, 100));
        send(b, b"new");
        checks.eq("new message", Ok(b"new".to_vec()), take(a, 100));
    }
    checks.eq("before the end", Ok(b"last".to_vec()), take(half.1, 100));
    checks.eq("half closed", Ok(Vec::new()), take(half.1, 100));
    send(half.1, b"still open");
    checks.eq("the open direction", Ok(b"still open".to_vec()), take(half.0, 100));
    checks.eq("from the child", Ok(b"from the child".to_vec()), take(family.0, 100));
    send(family.0, b"from the parent");
    partner.verify(checks);
    checks.eq("the child's end is closed", Ok(Vec::new()), take(family.0, 100));
}

/// A socket that receives its sender's credentials, with a message and its credentials queued.
pub fn socket_credentials(stage: &Stage, checks: &mut Checks) {
    let (a, b) = pair(libc::SOCK_DGRAM | libc::SOCK_NONBLOCK);
    set_option(b, libc::SOL_SOCKET, libc::SO_PASSCRED, 1);
    send(a, b"signed");
    stage.ready();
    stage.wait_for_verify();
    checks.eq("option", 1, option(b, libc::SOL_SOCKET, libc::SO_PASSCRED));
    let mut text = [0u8; 100];
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all buffers outlive the call.
    let got = unsafe { libc::recvmsg(b, &mut message, 0) };
    checks.eq("message", 6, got);
    // Header of 16 bytes, then struct ucred: pid, uid, gid.
    let sender = (control[2] as u32, (control[2] >> 32) as u32);
    checks.eq("sender", (std::process::id(), 0), sender);
}

/// Unix listeners by path and by abstract name, and datagram sockets with a name.
pub fn unix_listeners(stage: &Stage, checks: &mut Checks) {
    let by_path = UnixListener::bind("listener").expect("bind");
    let name = SocketAddr::from_abstract_name(format!("arctern-workload-{}", std::process::id()))
        .expect("name");
    let by_name = UnixListener::bind_addr(&name).expect("bind");
    let mailbox = UnixDatagram::bind("mailbox").expect("bind");
    let sender = UnixDatagram::unbound().expect("socket");
    sender.connect("mailbox").expect("connect");
    sender.send(b"letter").expect("send");
    let client = UnixStream::connect("listener").expect("connect");
    let (server, _) = by_path.accept().expect("accept");
    (&client).write_all(b"unread request").expect("write");
    stage.ready();
    stage.wait_for_verify();
    let mut buffer = [0u8; 100];
    let got = mailbox.recv(&mut buffer).unwrap_or(0);
    checks.eq("letter", b"letter".to_vec(), buffer[..got].to_vec());
    checks.that("send to the mailbox", sender.send(b"second").is_ok());
    let got = (&server).read(&mut buffer).unwrap_or(0);
    checks.eq("request", b"unread request".to_vec(), buffer[..got].to_vec());
    checks.that("answer", (&server).write_all(b"answer").is_ok());
    let got = (&client).read(&mut buffer).unwrap_or(0);
    checks.eq("answer", b"answer".to_vec(), buffer[..got].to_vec());
    checks.eq(
        "address",
        by_path.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.to_owned())),
        Some("listener".into()),
    );
    let again = UnixStream::connect("listener");
    checks.that("a new connection by path", again.is_ok() && by_path.accept().is_ok());
    let again = UnixStream::connect_addr(&name);
    checks.that("a new connection by name", again.is_ok() && by_name.accept().is_ok());
}

/// Unix connections that nobody accepted yet: with data, without, and of a client that has closed.
pub fn unix_pending(stage: &Stage, checks: &mut Checks) {
    let listener = UnixListener::bind("pending").expect("bind");
    let first = UnixStream::connect("pending").expect("connect");
    (&first).write_all(b"first in line").expect("write");
    (&first).write_all(b", first in line").expect("write");
    let second = UnixStream::connect("pending").expect("connect");
    let gone = UnixStream::connect("pending").expect("connect");
    (&gone).write_all(b"farewell").expect("write");
    drop(gone);
    stage.ready();
    stage.wait_for_verify();
    let mut buffer = [0u8; 100];
    listener.set_nonblocking(true).expect("flag");
    match listener.accept() {
        Ok((server, _)) => {
            let got = (&server).read(&mut buffer).unwrap_or(0);
            checks.eq("data", b"first in line, first in line".to_vec(), buffer[..got].to_vec());
            checks.that("answer", (&server).write_all(b"answer").is_ok());
            let got = (&first).read(&mut buffer).unwrap_or(0);
            checks.eq("answer", b"answer".to_vec(), buffer[..got].to_vec());
        }
        Err(error) => checks.fail(format!("the first pending connection is gone: {error}")),
    }
    match listener.accept() {
        Ok((server, _)) => {
            checks.that("write", (&second).write_all(b"second").is_ok());
            server.set_nonblocking(false).expect("flag");
            let got = (&server).read(&mut buffer).unwrap_or(0);
            checks.eq("data", b"second".to_vec(), buffer[..got].to_vec());
        }
        Err(error) => checks.fail(format!("the second pending connection is gone: {error}")),
    }
    match listener.accept() {
        Ok((server, _)) => {
            let mut text = String::new();
            server.set_nonblocking(false).expect("flag");
            checks.eq("bytes", Some(8), (&server).read_to_string(&mut text).ok());
            checks.eq("data", "farewell", text.as_str());
        }
        Err(error) => checks.fail(format!("the third pending connection is gone: {error}")),
    }
    checks.that("no more", listener.accept().is_err());
}

/// TCP listeners, IPv4 and IPv6, with options, one shared with a child that waits in accept.
pub fn tcp_listeners(stage: &Stage, checks: &mut Checks) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let fd = listener.as_raw_fd();
    let tcp = libc::IPPROTO_TCP;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(fd, tcp, libc::TCP_KEEPIDLE, 77);
    set_option(fd, tcp, libc::TCP_NODELAY, 1);
    set_option(fd, tcp, libc::TCP_DEFER_ACCEPT, 0);
    must!(libc::listen(fd, 17));
    let six = TcpListener::bind("[::1]:0").ok();
    let bound = must!(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
    let options = move || {
        [
            option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR),
            option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
            option(fd, tcp, libc::TCP_KEEPIDLE),
            option(fd, tcp, libc::TCP_NODELAY),
        ]
    };
    let address = listener.local_addr().expect("address");
    let before = (options(), address, six.as_ref().and_then(|s| s.local_addr().ok()));
    let server = child("server", |stage, checks| {
        stage.ready();
        match listener.accept() {
            Ok((mut connection, _)) => checks.that("echo", connection.write_all(b"served").is_ok()),
            Err(error) => checks.fail(format!("accept: {error}")),
        }
    });
    crate::stage::wait_until_blocked(server.pid, libc::SYS_accept4);
    stage.ready();
    stage.wait_for_verify();
    let now = (
        options(),
        listener.local_addr().expect("address"),
        six.as_ref().and_then(|s| s.local_addr().ok()),
    );
    checks.eq("listeners", before, now);
    let mut text = String::new();
    match TcpStream::connect(address) {
        Ok(mut client) => {
            checks.that("read", client.read_to_string(&mut text).is_ok());
        }
        Err(error) => {
            checks.fail(format!("connect: {error}"));
            must!(libc::kill(server.pid, libc::SIGKILL));
        }
    }
    server.wait(checks);
    checks.eq("served", "served", text.as_str());
    checks.that(
        "a socket without an address",
        bound >= 0 && option(bound, 1, libc::SO_ACCEPTCONN) == 0,
    );
}

/// UDP sockets, bound and connected to each other.
pub fn udp(stage: &Stage, checks: &mut Checks) {
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.connect(server.local_addr().expect("address")).expect("connect");
    server.set_broadcast(true).expect("option");
    let before =
        (server.local_addr().ok(), client.local_addr().ok(), client.peer_addr().ok(), true);
    stage.ready();
    stage.wait_for_verify();
    let now = (
        server.local_addr().ok(),
        client.local_addr().ok(),
        client.peer_addr().ok(),
        server.broadcast().unwrap_or(false),
    );
    checks.eq("sockets", before, now);
    let mut buffer = [0u8; 100];
    checks.that("send", client.send(b"ping").is_ok());
    checks.eq("receive", Some(4), server.recv(&mut buffer).ok());
}
