//! Unix sockets: descriptors on their way, and names of senders.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, child};
use std::mem::{size_of, size_of_val};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub fn pair(kind: i32) -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0, ends.as_mut_ptr()));
    (ends[0], ends[1])
}

fn close(fd: i32) {
    must!(libc::close(fd));
}

pub fn send(fd: i32, data: &[u8], descriptors: &[i32]) {
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: data.len() };
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = 16 + size_of_val(descriptors);
        control[0] = length as u64;
        control[1] = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        for (at, fd) in descriptors.iter().enumerate() {
            control[2 + at / 2] |= (*fd as u32 as u64) << (at % 2 * 32);
        }
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = length;
    }
    must!(libc::sendmsg(fd, &message, 0));
}

/// Reads at most `room` bytes and what comes with them.
pub fn receive(fd: i32, room: usize) -> (Vec<u8>, Vec<i32>) {
    let mut data = vec![0u8; room];
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: msghdr is plain data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all buffers outlive the call.
    let got = unsafe { libc::recvmsg(fd, &mut message, 0) };
    data.truncate(got.max(0) as usize);
    let mut descriptors = Vec::new();
    if got >= 0 && message.msg_controllen >= 16 {
        let count = (control[0] as usize - 16) / size_of::<i32>();
        descriptors.extend((0..count).map(|at| (control[2 + at / 2] >> (at % 2 * 32)) as i32));
    }
    (data, descriptors)
}

fn open(name: &str, content: &[u8]) -> i32 {
    std::fs::write(name, content).expect("write");
    let name = std::ffi::CString::new(name).expect("name");
    must!(libc::open(name.as_ptr(), libc::O_RDWR | libc::O_APPEND))
}

fn at(fd: i32) -> i64 {
    // SAFETY: plain call.
    unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }
}

/// Files and pipe ends that were sent and not received, open elsewhere or nowhere else, in a stream
/// with bytes before and after, in datagrams, and to a socket that a child shares.
pub fn passed_descriptors(stage: &Stage, checks: &mut Checks) {
    let stream = pair(libc::SOCK_STREAM);
    let datagram = pair(libc::SOCK_DGRAM);
    let packets = pair(libc::SOCK_SEQPACKET);
    let (held, alone) = (open("held", b"held file"), open("alone", b"file on its way"));
    must!(libc::lseek(held, 2, libc::SEEK_SET));
    must!(libc::lseek(alone, 8, libc::SEEK_SET));
    let mut pipe = [0; 2];
    must!(libc::pipe2(pipe.as_mut_ptr(), libc::O_NONBLOCK));
    must!(libc::write(pipe[1], b"in the pipe".as_ptr().cast(), 11));
    send(stream.0, b"before", &[]);
    send(stream.0, b"with", &[held, alone]);
    send(stream.0, b"after", &[]);
    send(datagram.0, b"plain", &[]);
    send(datagram.0, b"end of a pipe", &[pipe[1]]);
    let event = must!(libc::eventfd(7, libc::EFD_NONBLOCK));
    send(packets.0, b"event", &[event]);
    must!(libc::shutdown(packets.0, libc::SHUT_WR));
    for fd in [alone, pipe[1], event] {
        close(fd);
    }
    let reader = child("reader", |stage, checks| {
        stage.ready();
        stage.wait_for_verify();
        let (data, descriptors) = receive(packets.1, 100);
        checks.eq("packet", b"event".to_vec(), data);
        let value = take(descriptors.first().copied().unwrap_or(-1), 8);
        checks.eq("event", Ok(7u64.to_ne_bytes().to_vec()), value);
        checks.eq("shut down", Ok(Vec::new()), take(packets.1, 100));
    });
    stage.ready();
    stage.wait_for_verify();
    // A reader with room for both gets them at once.
    let (data, descriptors) = receive(stream.1, 100);
    checks.eq("with", b"beforewith".to_vec(), data);
    match descriptors[..] {
        [first, second] => {
            must!(libc::lseek(held, 5, libc::SEEK_SET));
            checks.eq("position of the shared one", 5, at(first));
            checks.eq("position", 8, at(second));
            checks.eq("file", Ok(b"its way".to_vec()), take(second, 100));
            // SAFETY: plain call.
            let flags = unsafe { libc::fcntl(second, libc::F_GETFL) };
            checks.that("flags", flags & libc::O_APPEND != 0);
        }
        _ => checks.fail(format!("{} descriptors instead of 2", descriptors.len())),
    }
    checks.eq("after", (b"after".to_vec(), vec![]), receive(stream.1, 100));
    checks.eq("plain", (b"plain".to_vec(), vec![]), receive(datagram.1, 100));
    checks.eq("in the pipe", Ok(b"in the pipe".to_vec()), take(pipe[0], 100));
    let (data, descriptors) = receive(datagram.1, 100);
    checks.eq("datagram", b"end of a pipe".to_vec(), data);
    if let [end] = descriptors[..] {
        must!(libc::write(end, b"more".as_ptr().cast(), 4));
        checks.eq("through the pipe", Ok(b"more".to_vec()), take(pipe[0], 100));
        close(end);
        checks.eq("end of the pipe", Ok(Vec::new()), take(pipe[0], 100));
    } else {
        checks.fail("no descriptor came with the datagram");
    }
    reader.verify(checks);
}

/// Descriptors in a stream whose reader takes exactly what came before them.
pub fn passed_in_stream(stage: &Stage, checks: &mut Checks) {
    let (to, from) = pair(libc::SOCK_STREAM);
    let file = open("file", b"content");
    send(to, b"length", &[]);
    send(to, b"body", &[file]);
    send(to, b"next", &[]);
    send(to, b"more", &[file, file]);
    close(file);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("without", (b"length".to_vec(), vec![]), receive(from, 6));
    let (data, descriptors) = receive(from, 1);
    checks.eq("first byte", (b"b".to_vec(), 1), (data, descriptors.len()));
    checks.eq("rest", (b"ody".to_vec(), vec![]), receive(from, 3));
    checks.eq("between", (b"next".to_vec(), vec![]), receive(from, 4));
    let (data, descriptors) = receive(from, 100);
    checks.eq("two", (b"more".to_vec(), 2), (data, descriptors.len()));
}

/// Sockets on their way: one whose peer stays, with unread data and a descriptor in its own queue,
/// and one that was sent to itself's peer.
pub fn passed_sockets(stage: &Stage, checks: &mut Checks) {
    let carrier = pair(libc::SOCK_STREAM);
    let (stays, goes) = pair(libc::SOCK_STREAM);
    let event = must!(libc::eventfd(9, libc::EFD_NONBLOCK));
    send(stays, b"inner", &[event]);
    close(event);
    send(carrier.0, b"socket", &[goes]);
    close(goes);
    let (left, right) = pair(libc::SOCK_DGRAM);
    send(left, b"your other end", &[left]);
    stage.ready();
    stage.wait_for_verify();
    let (data, descriptors) = receive(carrier.1, 100);
    checks.eq("socket", b"socket".to_vec(), data);
    if let [goes] = descriptors[..] {
        send(goes, b"hello", &[]);
        checks.eq("through the socket", Ok(b"hello".to_vec()), take(stays, 100));
        let (data, descriptors) = receive(goes, 100);
        checks.eq("inner", b"inner".to_vec(), data);
        let value = take(descriptors.first().copied().unwrap_or(-1), 8);
        checks.eq("event", Ok(9u64.to_ne_bytes().to_vec()), value);
    } else {
        checks.fail("no socket came");
    }
    let (data, descriptors) = receive(right, 100);
    checks.eq("datagram", b"your other end".to_vec(), data);
    if let [end] = descriptors[..] {
        send(end, b"again", &[]);
        checks.eq("through the other end", Ok(b"again".to_vec()), take(right, 100));
    } else {
        checks.fail("no other end came");
    }
}

/// Unread datagrams of several senders with names, by path and abstract, and of one without.
pub fn unix_senders(stage: &Stage, checks: &mut Checks) {
    let by_path = UnixDatagram::bind("by-path").expect("bind");
    let name = format!("arctern-sender-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(name).expect("name");
    let abstractly = UnixDatagram::bind_addr(&name).expect("bind");
    let first = UnixDatagram::bind("first").expect("bind");
    let second = UnixDatagram::bind("second").expect("bind");
    let nameless = UnixDatagram::unbound().expect("socket");
    first.connect("by-path").expect("connect");
    second.connect("by-path").expect("connect");
    second.send(b"2").expect("send");
    first.send(b"1").expect("send");
    nameless.send_to(b"?", "by-path").expect("send");
    // It is connected elsewhere.
    first.send_to_addr(b"1", &name).expect("send");
    abstractly.send_to(b"@", "by-path").expect("send");
    let writer = child("writer", |stage, checks| {
        let own = UnixDatagram::bind("own").expect("bind");
        own.send_to(b"c", "by-path").expect("send");
        stage.ready();
        stage.wait_for_verify();
        let mut buffer = [0];
        checks.eq("answer", Some(1), own.recv(&mut buffer).ok());
    });
    stage.ready();
    stage.wait_for_verify();
    let take = |socket: &UnixDatagram| {
        let mut buffer = [0];
        socket.set_nonblocking(true).expect("flag");
        let (_, from) = socket.recv_from(&mut buffer).ok()?;
        let path = from.as_pathname().map(|path| path.display().to_string());
        Some((buffer[0], path.or_else(|| from.as_abstract_name().map(|_| "@".to_owned()))))
    };
    let from = |byte: u8, name: &str| Some((byte, Some(name.to_owned())));
    checks.eq("of the second", from(b'2', "second"), take(&by_path));
    checks.eq("of the first", from(b'1', "first"), take(&by_path));
    checks.eq("without a name", Some((b'?', None)), take(&by_path));
    checks.eq("of an abstract name", from(b'@', "@"), take(&by_path));
    checks.eq("of the child", from(b'c', "own"), take(&by_path));
    checks.eq("to an abstract name", from(b'1', "first"), take(&abstractly));
    checks.that("answer", by_path.send_to(b"a", "own").is_ok());
    checks.that("still connected", first.send(b"!").is_ok());
    checks.eq("through it", from(b'!', "first"), take(&by_path));
    writer.verify(checks);
}
