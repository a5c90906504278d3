//! UDP sockets with datagrams that nobody read.

use crate::must;
use crate::stage::{Checks, Stage};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Reads a datagram: its bytes and its sender.
fn take(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_nonblocking(true).expect("flag");
    let got = socket.recv_from(&mut buffer);
    socket.set_nonblocking(false).expect("flag");
    let (len, from) = got.ok()?;
    Some((buffer[..len].to_vec(), from))
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let fd = socket.as_raw_fd();
    must!(libc::setsockopt(fd, level, name, (&raw const value).cast(), 4));
}

fn get(socket: &UdpSocket, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0i32, 4u32);
    let fd = socket.as_raw_fd();
    must!(libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length));
    value
}

/// Datagrams of several senders (one of them closed by now) in a socket of every address, in a
/// connected one, and in an IPv6 one that gets both families; empty and large ones.
pub fn udp_queues(stage: &Stage, checks: &mut Checks) {
    let any = UdpSocket::bind("0.0.0.0:0").expect("bind");
    let connected = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let six = UdpSocket::bind("[::]:0").expect("bind");
    let open = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let closed = UdpSocket::bind("127.0.0.2:0").expect("bind");
    let from_six = UdpSocket::bind("[::1]:0").expect("bind");
    let port = |socket: &UdpSocket| socket.local_addr().expect("address").port();
    let large: Vec<u8> = (0..65_000u32).map(|i| (i % 251) as u8).collect();
    let send = |socket: &UdpSocket, data: &[u8], to: SocketAddr| {
        assert_eq!(socket.send_to(data, to).expect("send"), data.len());
    };
    let (to_any, to_connected) = (([127, 0, 0, 1], port(&any)), connected.local_addr().unwrap());
    send(&open, b"first", to_any.into());
    send(&closed, &large, ([127, 0, 0, 3], port(&any)).into());
    send(&open, b"", to_any.into());
    send(&closed, b"last", to_any.into());
    // Before the connection anybody may send.
    send(&closed, b"stranger", to_connected);
    connected.connect(open.local_addr().unwrap()).expect("connect");
    send(&open, b"peer", to_connected);
    send(&open, b"four", ([127, 0, 0, 1], port(&six)).into());
    send(&from_six, b"six", ([0, 0, 0, 0, 0, 0, 0, 1u16], port(&six)).into());
    let closed_address = closed.local_addr().unwrap();
    drop(closed);
    stage.ready();
    stage.wait_for_verify();
    let open_address = open.local_addr().unwrap();
    let took = |data: &[u8], from: SocketAddr| Some((data.to_vec(), from));
    checks.eq("first", took(b"first", open_address), take(&any));
    checks.that("the large one differs", took(&large, closed_address) == take(&any));
    checks.eq("empty", took(b"", open_address), take(&any));
    checks.eq("last", took(b"last", closed_address), take(&any));
    checks.eq("end", None, take(&any));
    checks.eq("stranger", took(b"stranger", closed_address), take(&connected));
    checks.eq("peer", took(b"peer", open_address), take(&connected));
    let mapped = format!("[::ffff:127.0.0.1]:{}", open_address.port()).parse().unwrap();
    checks.eq("four", took(b"four", mapped), take(&six));
    checks.eq("six", took(b"six", from_six.local_addr().unwrap()), take(&six));
    checks.that("answer", any.send_to(b"answer", open_address).is_ok());
    checks.eq("answered", Some(b"answer".to_vec()), take(&open).map(|(data, _)| data));
}

/// Two sockets of one address (SO_REUSEPORT), each with a datagram of its own, and options: a cork
/// without data, where to peek.
pub fn udp_shared_port(stage: &Stage, checks: &mut Checks) {
    let make = |port: u16| -> io::Result<UdpSocket> {
        // A socket that is not bound yet is not to be had from the library.
        let fd = must!(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0));
        // SAFETY: the descriptor is new and nobody else's.
        let socket: UdpSocket = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        set(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        must!(libc::bind(fd, (&raw const address).cast(), 16));
        Ok(socket)
    };
    let first = make(0).expect("bind");
    let port = first.local_addr().expect("address").port();
    let second = make(port).expect("bind");
    let (mut for_first, mut for_second) = (Vec::new(), Vec::new());
    let sockets: Vec<UdpSocket> =
        (0..12).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bind")).collect();
    for (i, socket) in sockets.iter().enumerate() {
        socket.send_to(&[i as u8], ("127.0.0.1", port)).expect("send");
    }
    // Which of both got it is the kernel's choice: look without taking.
    for (socket, list) in [(&first, &mut for_first), (&second, &mut for_second)] {
        while let Some((data, from)) = take(socket) {
            list.push((data, from));
        }
        for (data, from) in list.iter() {
            let sender = sockets.iter().find(|s| s.local_addr().ok() == Some(*from));
            sender.expect("a sender").send_to(data, ("127.0.0.1", port)).expect("send");
        }
    }
    set(&first, libc::IPPROTO_UDP, 1, 1);
    set(&second, libc::SOL_SOCKET, 42, 5);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("cork", 1, get(&first, libc::IPPROTO_UDP, 1));
    checks.eq("offset", 5, get(&second, libc::SOL_SOCKET, 42));
    for (socket, list) in [(&first, for_first), (&second, for_second)] {
        for datagram in list {
            checks.eq("datagram", Some(datagram), take(socket));
        }
        checks.eq("end", None, take(socket));
    }
}
