//! Locks of containers: what is sent meanwhile arrives afterwards, and nobody is told anything else.
//! Each test's thread is the host; clients sit in the host, beside the container and outside. Skipped
//! without root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use arctern_net::{AttachSpec, Keep, Means, NetworkStatus, PortMapping, netns};

mod common;
use common::{Host, ask, echo, host, run};

const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

trait Containers {
    fn container(&mut self, name: &str) -> (OwnedFd, NetworkStatus);
    fn outside(&mut self) -> OwnedFd;
}

impl Containers for Host {
    fn container(&mut self, name: &str) -> (OwnedFd, NetworkStatus) {
        let fd = self.namespace(name);
        let status = self.net.attach(fd.as_fd(), name, &AttachSpec::default()).expect("attach");
        (fd, status)
    }

    /// A machine outside, with a route to the containers by way of this host.
    fn outside(&mut self) -> OwnedFd {
        let fd = self.namespace("outside");
        let path = self.made.last().expect("made").display().to_string();
        run("ip", &["link", "add", "wan", "type", "veth", "peer", "name", "lan"]);
        run("ip", &["addr", "add", "203.0.113.1/24", "dev", "wan"]);
        run("ip", &["link", "set", "wan", "up"]);
        run("ip", &["link", "set", "lan", "netns", &path]);
        let enter = format!("--net={path}");
        for args in [
            &["ip", "addr", "add", "203.0.113.9/24", "dev", "lan"][..],
            &["ip", "link", "set", "lan", "up"],
            &["ip", "route", "add", "default", "via", "203.0.113.1"],
        ] {
            run("nsenter", &[&[enter.as_str()], args].concat());
        }
        fd
    }
}

/// What a namespace has told others of refusals: ICMP errors and TCP resets.
fn refusals(fd: Option<&OwnedFd>) -> (u64, u64) {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("counters");
    let text = match fd {
        Some(fd) => netns::run_in(fd.as_fd(), read).expect("enter"),
        None => read(),
    };
    let value = |protocol: &str, name: &str| {
        let mut lines = text.lines().filter(|l| l.starts_with(protocol));
        let head = lines.next().expect("names").split_whitespace();
        let values = lines.next().expect("values").split_whitespace();
        let found = head.zip(values).find(|(n, _)| *n == name).expect("counter");
        found.1.parse::<u64>().expect("number")
    };
    (value("Icmp:", "OutDestUnreachs"), value("Tcp:", "OutRsts"))
}

/// Five ways to a container: its address from the host, from a neighbour and from outside; its
/// published port from the host and from outside.
fn ways(ip: Ipv4Addr) -> [(&'static str, SocketAddr); 5] {
    [
        ("host", (ip, 80).into()),
        ("neighbour", (ip, 80).into()),
        ("outside", (ip, 80).into()),
        ("host", (Ipv4Addr::LOCALHOST, 8080).into()),
        ("outside", (WAN, 8080).into()),
    ]
}

struct World {
    host: Host,
    a: OwnedFd,
    status: NetworkStatus,
    neighbour: OwnedFd,
    outside: OwnedFd,
}

impl World {
    fn new() -> Option<World> {
        let mut host = host()?;
        let outside = host.outside();
        let (a, status) = host.container("a");
        let (neighbour, _) = host.container("b");
        let ports: Vec<PortMapping> =
            ["8080:80", "8080:80/udp"].iter().map(|p| p.parse().expect("port")).collect();
        host.net.publish("a", &ports).expect("publish");
        Some(World { host, a, status, neighbour, outside })
    }

    fn at<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        match place {
            "neighbour" => netns::run_in(self.neighbour.as_fd(), work).expect("enter"),
            "outside" => netns::run_in(self.outside.as_fd(), work).expect("enter"),
            _ => work(),
        }
    }

    fn connections(&self) -> Vec<TcpStream> {
        let connect = |(place, address): (&str, SocketAddr)| {
            let stream = self.at(place, || TcpStream::connect(address)).expect("connect");
            stream.set_nodelay(true).expect("nodelay");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            stream
        };
        ways(self.status.ip).into_iter().map(connect).collect()
    }

    fn refusals(&self) -> Vec<(u64, u64)> {
        vec![refusals(None), refusals(Some(&self.neighbour)), refusals(Some(&self.outside))]
    }
}

fn keep(limit: Option<Duration>) -> Keep {
    Keep { name: "web".into(), limit, ..Keep::default() }
}

/// Locks for a while, in which every client sends. How long after the unlock the last answer came.
fn pause(world: &World, means: Means, freeze: Duration) -> Duration {
    let mut clients = world.connections();
    for client in &mut clients {
        ask(client, b"before").expect("before");
    }
    let before = world.refusals();
    let mut lock = world.host.net.prepare_lock("a", means).expect("prepare");
    assert_eq!(lock.means(), means);
    let start = Instant::now();
    lock.lock().expect("lock");
    let locked = start.elapsed();
    for client in &mut clients {
        client.write_all(b"meanwhile").expect("write");
        client.set_read_timeout(Some(freeze / 8)).expect("timeout");
        client.read(&mut [0]).expect_err("nothing passes");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    }
    std::thread::sleep(freeze.saturating_sub(start.elapsed()));
    let start = Instant::now();
    lock.unlock().expect("unlock");
    let unlocked = start.elapsed();
    let mut after = Vec::new();
    for client in &mut clients {
        client.read_exact(&mut [0; 9]).expect("answer");
        after.push(start.elapsed());
    }
    lock.finish().expect("finish");
    eprintln!("{means:?}: lock {locked:?}, unlock {unlocked:?}, answers after {after:?}");
    for client in &mut clients {
        ask(client, b"after").expect("after");
    }
    assert_eq!(world.refusals(), before, "ICMP errors and resets");
    assert!(!run("ip", &["link"]).contains("hold"));
    assert!(!run("nft", &["list", "ruleset"]).contains("hold"));
    assert!(world.host.net.locks().expect("locks").is_empty());
    after.into_iter().max().expect("answers")
}

#[test]
fn held_packets_arrive_when_the_lock_opens() {
    let Some(world) = World::new() else { return };
    echo(&world.a);
    for freeze in [20, 100, 300, 1000] {
        let last = pause(&world, Means::Hold, Duration::from_millis(freeze));
        assert!(last < Duration::from_millis(100), "{last:?}");
    }
    // For comparison: what is dropped is sent again when a timer fires.
    pause(&world, Means::Drop, Duration::from_millis(300));
}

#[test]
fn nobody_notices_that_the_container_is_gone() {
    let Some(mut world) = World::new() else { return };
    let serve = |fd: &OwnedFd| {
        let bind = || UdpSocket::bind("0.0.0.0:80");
        let socket = netns::run_in(fd.as_fd(), bind).expect("enter").expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        socket
    };
    let server = serve(&world.a);
    let clients = ways(world.status.ip).map(|(place, address)| {
        let socket = world.at(place, || {
            let any = if address.ip().is_loopback() { "127.0.0.1:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address).map(|()| socket)
        });
        socket.expect("socket")
    });
    let mut buffer = [0; 64];
    for client in &clients {
        client.send(b"before").expect("send");
        server.recv_from(&mut buffer).expect("arrives");
    }
    let before = world.refusals();
    let mut lock = world.host.net.prepare_lock("a", Means::Hold).expect("prepare");
    lock.lock().expect("lock");
    lock.keep(keep(Some(Duration::from_secs(60)))).expect("keep");
    lock.finish().expect("stands");
    drop(server);
    world.host.net.disconnect("a", None).expect("disconnect");
    world
        .host
        .net
        .disconnect("a", None)
        .expect("whoever cleans up once more leaves the lock alone");
    let old = world.host.made.iter().position(|p| p.ends_with("a")).expect("made");
    netns::delete(&world.host.made.remove(old)).expect("delete");
    world.a = world.neighbour.try_clone().expect("duplicate");

    // The address and the ports are nobody else's meanwhile.
    let c = world.host.namespace("c");
    let spec = AttachSpec { ip: Some(world.status.ip), ..AttachSpec::default() };
    let refused = world.host.net.attach(c.as_fd(), "c", &spec).expect_err("reserved");
    assert_eq!(
        refused.to_string(),
        format!("address {} is in use by container web", world.status.ip)
    );
    world.host.net.attach(c.as_fd(), "c", &AttachSpec::default()).expect("another one");
    let taken = world.host.net.publish("c", &["8080:80".parse().expect("port")]);
    assert!(taken.expect_err("reserved").to_string().contains("container web"));
    let locks = world.host.net.locks().expect("locks");
    let kept = &locks[&world.status.ip];
    assert!(kept.kept && kept.remaining().is_some_and(|s| (50..=60).contains(&s)), "{kept:?}");

    // The neighbour forgets who it talks to, and is told by the bridge.
    netns::run_in(world.neighbour.as_fd(), || run("ip", &["neigh", "flush", "all"]))
        .expect("enter");
    std::thread::scope(|scope| {
        let late = ways(world.status.ip).map(|(place, address)| {
            let world = &world;
            scope.spawn(move || world.at(place, || TcpStream::connect(address)))
        });
        for (index, client) in clients.iter().enumerate() {
            client.send(format!("meanwhile {index}").as_bytes()).expect("send");
        }
        std::thread::sleep(Duration::from_millis(400));
        for client in &clients {
            // An ICMP error would be reported here.
            client.send(b"again").expect("send");
        }
        let again = {
            let path = world.host.dir.path().join("again");
            let fd = netns::create(&path).expect("namespace");
            let spec = AttachSpec {
                ip: Some(world.status.ip),
                mac: Some(world.status.mac),
                resumes: true,
                lock: Some(Means::Hold),
                ..AttachSpec::default()
            };
            let status = world.host.net.attach(fd.as_fd(), "again", &spec).expect("attach");
            assert_eq!((status.ip, status.mac), (world.status.ip, world.status.mac));
            let ports: Vec<PortMapping> =
                ["8080:80", "8080:80/udp"].iter().map(|p| p.parse().expect("port")).collect();
            world.host.net.publish("again", &ports).expect("publish");
            fd
        };
        let mut lock = world.host.net.prepare_lock("again", Means::Hold).expect("prepare");
        lock.lock().expect("stands already");
        let server = serve(&again);
        echo(&again);
        let start = Instant::now();
        lock.unlock().expect("unlock");
        let mut got = Vec::new();
        while got.len() < 2 * clients.len() {
            let (len, from) = server.recv_from(&mut buffer).expect("arrives");
            got.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
            server.send_to(b"answer", from).expect("answer");
        }
        eprintln!("{} datagrams after {:?}", got.len(), start.elapsed());
        for index in 0..clients.len() {
            assert!(got.contains(&format!("meanwhile {index}")), "{got:?}");
        }
        for client in &clients {
            client.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
            client.recv(&mut buffer).expect("answer from where it was sent to");
        }
        for client in late {
            let mut stream = client.join().expect("thread").expect("connected");
            ask(&mut stream, b"late").expect("served");
        }
        eprintln!("late connections after {:?}", start.elapsed());
        lock.finish().expect("finish");
        world.host.net.disconnect("again", None).expect("disconnect");
        netns::delete(&world.host.dir.path().join("again")).expect("delete");
    });
    assert_eq!(world.refusals(), before, "ICMP errors and resets");
    assert!(world.host.net.locks().expect("locks").is_empty());
    assert!(!run("nft", &["list", "ruleset"]).contains("8080"));
}

#[test]
fn locks_end_when_they_are_given_up_or_over() {
    let Some(world) = World::new() else { return };
    echo(&world.a);
    let net = &world.host.net;
    let engage = |limit| {
        let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
        lock.lock().expect("lock");
        lock.keep(keep(limit)).expect("keep");
        lock.finish().expect("stands");
    };
    let mut client = TcpStream::connect((world.status.ip, 80)).expect("connect");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    // Given up while the container is there: as if nothing had been.
    engage(None);
    client.write_all(b"a").expect("write");
    net.end_expired_locks().expect("not over");
    assert_eq!(net.locks().expect("locks").len(), 1);
    assert_eq!(net.end_lock("a").expect("end").len(), 1);
    assert!(net.end_lock("a").expect("absence is no error").is_empty());
    client.read_exact(&mut [0]).expect("answer");
    // A command that died under its lock.
    let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
    lock.lock().expect("lock");
    drop(lock);
    client.write_all(b"b").expect("write");
    assert_eq!(net.end_lock("a").expect("end").len(), 1);
    client.read_exact(&mut [0]).expect("answer");
    // The machine's rules are flushed: held all the same, and the next command makes them again.
    engage(None);
    run("nft", &["flush", "ruleset"]);
    client.write_all(b"c").expect("write");
    client.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    client.read(&mut [0]).expect_err("held");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    net.ensure_bridge().expect("bridge");
    assert!(run("nft", &["list", "ruleset"]).contains("hold"));
    assert_eq!(net.end_lock("a").expect("end").len(), 1);
    client.read_exact(&mut [0]).expect("answer");
    // Over, with the container gone: nothing of it is left, and the network can go.
    engage(Some(Duration::ZERO));
    net.disconnect("a", None).expect("disconnect");
    net.disconnect("b", None).expect("disconnect");
    assert!(net.remove().is_err(), "in use by a lock");
    net.end_expired_locks().expect("end");
    net.remove().expect("remove");
    assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");
    assert!(!run("ip", &["link"]).contains("hold"));
}

#[test]
fn a_container_is_attached_under_its_lock() {
    let Some(mut world) = World::new() else { return };
    let c = world.host.namespace("c");
    let spec = AttachSpec { resumes: true, lock: Some(Means::Hold), ..AttachSpec::default() };
    let status = world.host.net.attach(c.as_fd(), "c", &spec).expect("attach");
    echo(&c);
    let before = world.refusals();
    let mut lock = world.host.net.prepare_lock("c", Means::Hold).expect("prepare");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| TcpStream::connect((status.ip, 80)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!client.is_finished(), "locked");
        lock.unlock().expect("unlock");
        let mut stream = client.join().expect("thread").expect("connected");
        ask(&mut stream, b"hello").expect("served");
    });
    lock.finish().expect("finish");
    assert_eq!(world.refusals(), before);
    // One that is not taken any further goes with the container.
    world.host.net.detach("c", None).expect("disconnect");
    world.host.net.attach(c.as_fd(), "d", &spec).expect("attach");
    world.host.net.detach("d", None).expect("disconnect");
    assert!(world.host.net.locks().expect("locks").is_empty());
    assert!(!run("ip", &["link"]).contains("hold"));
}
