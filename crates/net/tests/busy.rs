//! Locks under traffic: nothing is lost between the steps of locking and of opening. Skipped without
//! root.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use arctern_net::{AttachSpec, Means, netns};

mod common;
use common::{Host, host};

/// Locks and opens a container again and again, in which no program runs meanwhile.
fn rounds(host: &Host, times: usize, programs: &RwLock<()>) {
    for _ in 0..times {
        let mut lock = host.net.prepare_lock("a", Means::Hold).expect("prepare");
        assert_eq!(lock.means(), Means::Hold);
        let frozen = programs.write().expect("freeze");
        lock.lock().expect("lock");
        std::thread::sleep(Duration::from_millis(10));
        lock.unlock().expect("unlock");
        drop(frozen);
        lock.finish().expect("finish");
    }
}

/// A host with container `a`, and another one beside it.
fn pair() -> Option<(Host, OwnedFd, OwnedFd, Ipv4Addr)> {
    let mut host = host()?;
    let (a, b) = (host.namespace("a"), host.namespace("b"));
    let status = host.net.attach(a.as_fd(), "a", &AttachSpec::default()).expect("attach");
    host.net.attach(b.as_fd(), "b", &AttachSpec::default()).expect("attach");
    Some((host, a, b, status.ip))
}

#[test]
fn no_connection_waits_for_a_second_attempt() {
    let Some((host, a, b, ip)) = pair() else { return };
    let programs = Arc::new(RwLock::new(()));
    let bind = || TcpListener::bind(("0.0.0.0", 80));
    let listener = netns::run_in(a.as_fd(), bind).expect("enter").expect("listen");
    // So that the queue is not full when the program has no turn for long.
    rustix::net::listen(&listener, 4096).expect("listen");
    let accepting = Arc::clone(&programs);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _runs = accepting.read().expect("run");
            drop(connection);
        }
    });
    let stop = AtomicBool::new(false);
    let (count, longest) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            netns::run_in(b.as_fd(), || {
                let (mut count, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    TcpStream::connect((ip, 80)).expect("connect");
                    longest = longest.max(begin.elapsed());
                    count += 1;
                    // So that the program keeps up.
                    std::thread::sleep(Duration::from_micros(100));
                }
                (count, longest)
            })
        });
        rounds(&host, 40, &programs);
        stop.store(true, Ordering::Relaxed);
        client.join().expect("thread").expect("enter")
    });
    let counters = || std::fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
    let counters = netns::run_in(a.as_fd(), counters).expect("enter");
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut counted = names.split(' ').zip(values.split(' '));
    let full = counted.find(|(name, _)| *name == "ListenOverflows").expect("a counter").1;
    eprintln!("{count} connections, the longest took {longest:?}; {full} found the queue full");
    // Kernels try again after a second.
    assert!(longest < Duration::from_millis(900), "{longest:?}");
}

#[test]
fn no_datagram_is_lost_and_none_comes_twice() {
    let Some((host, a, b, ip)) = pair() else { return };
    let server = netns::run_in(a.as_fd(), || UdpSocket::bind("0.0.0.0:80"));
    let server = server.expect("enter").expect("bind");
    server.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    // So that nothing is lost because the receiver has no turn for long.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&server, 64 << 20).expect("buffer");
    let client = netns::run_in(b.as_fd(), || UdpSocket::bind("0.0.0.0:0"));
    let client = client.expect("enter").expect("bind");
    client.connect(SocketAddr::from((ip, 80))).expect("connect");
    let stop = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut number = 0u32;
            while !stop.load(Ordering::Relaxed) {
                client.send(&number.to_be_bytes()).expect("send");
                number += 1;
                std::thread::sleep(Duration::from_micros(50));
            }
            number
        });
        let receiver = scope.spawn(|| {
            let (mut received, mut number) = (Vec::new(), [0; 4]);
            while server.recv(&mut number).is_ok() {
                received.push(u32::from_be_bytes(number));
            }
            received
        });
        rounds(&host, 40, &RwLock::new(()));
        stop.store(true, Ordering::Relaxed);
        (sender.join().expect("thread"), receiver.join().expect("thread"))
    });
    let late = received.windows(2).filter(|pair| pair[1] < pair[0]).count();
    eprintln!("{sent} datagrams, {late} overtaken by later ones");
    let mut sorted = received.clone();
    sorted.sort_unstable();
    let missing = (0..sent).filter(|number| sorted.binary_search(number).is_err());
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<u32>::new(), "lost");
    assert_eq!(received.len(), usize::try_from(sent).expect("small"), "some came twice");
}
