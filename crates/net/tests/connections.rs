//! The lock of single connections: nothing of them passes, everything else does. Skipped without
//! root.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use arctern_net::ConnectionLock;

/// A connection to a listener at `ip`: both ends.
fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    client.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    client.set_nodelay(true).expect("nodelay");
    (client, server)
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().expect("local"), stream.peer_addr().expect("peer"))
}

#[test]
fn only_the_locked_connections_are_silent() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("own network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success());
    let lock = ConnectionLock::new(None, "arctern-test");
    lock.unlock().expect("absence is no error");
    for ip in ["127.0.0.1", "::1"] {
        let ip: IpAddr = ip.parse().expect("address");
        let listener = TcpListener::bind((ip, 0)).expect("listen");
        let (mut held, mut server) = pair(&listener);
        let (mut other, mut other_server) = pair(&listener);
        lock.lock(&[ends(&server)]).expect("lock");
        let start = Instant::now();
        lock.lock(&[ends(&server)]).expect("again");
        eprintln!("lock {:?}", start.elapsed());
        let mut byte = [0];
        server.write_all(b"a").expect("write");
        other_server.write_all(b"b").expect("write");
        other.read_exact(&mut byte).expect("passes");
        let silent = held.read(&mut byte).expect_err("locked").kind();
        assert!(matches!(silent, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silent}");
        held.write_all(b"c").expect("write");
        drop(TcpStream::connect(listener.local_addr().expect("address")).expect("new ones pass"));
        lock.unlock().expect("unlock");
        let now = lock.lock_for_now(&[ends(&server)]).expect("lock");
        server.write_all(b"z").expect("write");
        lock.lock(&[ends(&server)]).expect("beside the other");
        lock.unlock().expect("unlock");
        let silent = held.read(&mut byte).expect_err("locked").kind();
        assert!(matches!(silent, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silent}");
        drop(now);
        held.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        held.read_exact(&mut byte).expect("sent again");
        assert_eq!(byte, *b"a");
        held.read_exact(&mut byte).expect("sent again");
        assert_eq!(byte, *b"z");
        server.read_exact(&mut byte).expect("sent again");
        assert_eq!(byte, *b"c");
    }
}
