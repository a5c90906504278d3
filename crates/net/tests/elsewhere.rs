//! A container of a segment that goes to another host: what comes for it is sent after it, and the
//! old host is the container no longer. The test's thread is the old host. Skipped without root.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use arctern_net::{
    AttachSpec, CreateNetwork, Driver, Ended, Keep, Mac, Means, Network, NetworkStore, netns,
};

mod common;
use common::{Host, ask, echo, host, run};

const CONTAINER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);

/// The host, and others on a segment with it, each with `eth0`.
struct Segment {
    host: Host,
    switch: String,
}

impl Segment {
    /// A host with the address 192.0.2.1 on its bridge `br0`, and a network `lan` on that bridge.
    fn new() -> Option<Segment> {
        let mut host = host()?;
        host.namespace("switch");
        let switch = host.made.last().expect("made").display().to_string();
        let segment = Segment { host, switch };
        segment.on_switch("ip link add lan type bridge");
        segment.on_switch("ip link set lan up");
        segment.plug("port0", None);
        for command in [
            "link add br0 type bridge",
            "link set eth0 master br0",
            "link set eth0 up",
            "link set br0 up",
            "addr add 192.0.2.1/24 dev br0",
        ] {
            run("ip", &command.split(' ').collect::<Vec<_>>());
        }
        Some(segment)
    }

    fn on_switch(&self, command: &str) {
        let enter = format!("--net={}", self.switch);
        run("nsenter", &[&[enter.as_str()][..], &command.split(' ').collect::<Vec<_>>()].concat());
    }

    /// Gives a namespace, or the host, a device on the segment.
    fn plug(&self, port: &str, namespace: Option<&str>) {
        // In its place it is called eth0.
        let end = if namespace.is_some() { "end" } else { "eth0" };
        run("ip", &["link", "add", end, "type", "veth", "peer", "name", port]);
        run("ip", &["link", "set", port, "netns", &self.switch]);
        if let Some(namespace) = namespace {
            run("ip", &["link", "set", end, "name", "eth0", "netns", namespace]);
        }
        self.on_switch(&format!("ip link set {port} master lan up"));
    }

    /// A machine with an address of the segment, and a hardware address if it matters, which echoes.
    fn machine(&mut self, name: &str, ip: Ipv4Addr, mac: Option<Mac>) -> OwnedFd {
        let fd = self.host.namespace(name);
        echo(&fd);
        let path = self.host.made.last().expect("made").display().to_string();
        self.plug(name, Some(&path));
        netns::run_in(fd.as_fd(), || {
            if let Some(mac) = mac {
                run("ip", &["link", "set", "eth0", "address", &mac.to_string()]);
            }
            run("ip", &["addr", "add", &format!("{ip}/24"), "dev", "eth0"]);
            run("ip", &["link", "set", "eth0", "up"]);
        })
        .expect("enter");
        fd
    }

    fn network(&self) -> Network {
        let dir = self.host.dir.path().join("lan");
        let store = NetworkStore::new(&dir.join("networks"));
        let create = CreateNetwork {
            name: "lan".into(),
            driver: Driver::Bridge,
            options: [("mode".to_owned(), "unmanaged".to_owned())].into(),
            interface: Some("br0".into()),
            subnets: vec!["192.0.2.0/24".parse().expect("subnet")],
            ..CreateNetwork::default()
        };
        let config = store.create(create).expect("create");
        Network::of(&dir.join("leases"), &config).expect("network")
    }
}

/// Listens on port 80 in a namespace, and does not accept.
fn listen(fd: &OwnedFd) -> TcpListener {
    netns::run_in(fd.as_fd(), || TcpListener::bind("0.0.0.0:80")).expect("enter").expect("listen")
}

#[test]
fn the_old_host_gives_the_container_up_when_it_is_seen_elsewhere() {
    let Some(mut segment) = Segment::new() else { return };
    let net = segment.network();
    let peer = segment.machine("peer", Ipv4Addr::new(192, 0, 2, 100), None);
    let a = segment.host.namespace("a");
    let spec = AttachSpec { ip: Some(CONTAINER), ..AttachSpec::default() };
    let status = net.attach(a.as_fd(), "a", &spec).expect("attach");
    echo(&a);
    let address = SocketAddr::from((CONTAINER, 80));
    let connect = || netns::run_in(peer.as_fd(), || TcpStream::connect(address)).expect("enter");
    ask(&mut connect().expect("connect"), b"here").expect("served");

    let mut forwarder = net.forwarder("a").expect("forwarder").expect("a segment");
    let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
    assert_eq!(lock.means(), Means::Hold);
    lock.lock().expect("lock");
    let keep = Keep { name: "web".into(), limit: Some(Duration::from_secs(60)), ..Keep::default() };
    lock.keep(keep).expect("keep");
    lock.finish().expect("stands");
    net.disconnect("a", None).expect("disconnect");

    // It appears as another machine with its addresses, which a client is waiting for already.
    let (ended, stop) = rustix::pipe::pipe().expect("pipe");
    let (mut late, elsewhere) = std::thread::scope(|scope| {
        let forwarder = scope.spawn(|| {
            let seen = forwarder.run(ended.as_fd(), true).expect("run");
            if seen == Ended::Sent {
                net.departed("a").expect("depart");
                forwarder.follow(Duration::from_millis(500)).expect("follow");
            }
            seen
        });
        let client = scope.spawn(connect);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!client.is_finished(), "held");
        let elsewhere = segment.machine("elsewhere", CONTAINER, Some(status.mac));
        // The first frame from it.
        netns::run_in(elsewhere.as_fd(), || TcpStream::connect("192.0.2.1:9"))
            .expect("enter")
            .err();
        assert_eq!(forwarder.join().expect("thread"), Ended::Sent);
        (client.join().expect("thread").expect("connected"), elsewhere)
    });
    ask(&mut late, b"there").expect("served");
    drop(stop);

    // Nothing of it is held here, and this host reaches it like everybody else.
    assert!(!run("ip", &["link"]).contains("hold"));
    assert!(!run("nft", &["list", "ruleset"]).contains("hold"));
    let neighbours = run("ip", &["neigh"]);
    assert!(!neighbours.contains("PERMANENT"), "{neighbours}");
    let entries = run("bridge", &["fdb", "show", "br", "br0"]);
    assert!(!entries.contains("sticky"), "{entries}");
    ask(&mut TcpStream::connect(address).expect("connect"), b"from the old host").expect("served");

    // Its address is nobody else's; it may come back.
    let reserved = net.locks().expect("locks").remove(&CONTAINER).expect("a reservation");
    assert!(reserved.elsewhere && reserved.remaining().is_some_and(|s| s > 50), "{reserved:?}");
    let other = segment.host.namespace("other");
    let refused = net.attach(other.as_fd(), "other", &spec).expect_err("reserved");
    assert_eq!(refused.to_string(), format!("address {CONTAINER} is in use by container web"));
    netns::run_in(elsewhere.as_fd(), || run("ip", &["link", "del", "eth0"])).expect("enter");
    let resumes =
        AttachSpec { mac: Some(status.mac), resumes: true, lock: Some(Means::Hold), ..spec };
    net.attach(other.as_fd(), "a", &resumes).expect("attach");
    let listener = listen(&other);
    let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
    std::thread::scope(|scope| {
        let client = scope.spawn(connect);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!client.is_finished(), "held");
        lock.lock().expect("stands");
        lock.unlock().expect("unlock");
        // Nothing of the first visit came out of the queue: the one that comes is the one that asks.
        let (mut accepted, from) = listener.accept().expect("accept");
        let mut stream = client.join().expect("thread").expect("connected");
        assert_eq!(stream.local_addr().expect("address"), from);
        std::io::Write::write_all(&mut stream, b"back").expect("write");
        let mut text = [0; 4];
        accepted.read_exact(&mut text).expect("read");
    });
    lock.finish().expect("finish");
    assert!(net.returned("a").expect("returned").is_some_and(|lock| lock.elsewhere));
    assert!(net.locks().expect("locks").is_empty());
    net.detach("a", None).expect("detach");
    assert!(!run("ip", &["link"]).contains("hold"));
}

#[test]
fn a_reservation_ends_with_its_limit() {
    let Some(mut segment) = Segment::new() else { return };
    let net = segment.network();
    let a = segment.host.namespace("a");
    let spec = AttachSpec { ip: Some(CONTAINER), ..AttachSpec::default() };
    net.attach(a.as_fd(), "a", &spec).expect("attach");
    let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
    lock.lock().expect("lock");
    lock.keep(Keep { limit: Some(Duration::ZERO), ..Keep::default() }).expect("keep");
    lock.finish().expect("stands");
    net.departed("a").expect("nothing: it is still here");
    assert!(!net.locks().expect("locks")[&CONTAINER].elsewhere);
    net.disconnect("a", None).expect("disconnect");
    net.departed("a").expect("depart");
    assert!(net.locks().expect("locks")[&CONTAINER].elsewhere);
    assert!(net.remove().is_err(), "in use by a reservation");
    net.end_expired_locks().expect("end");
    assert!(net.locks().expect("locks").is_empty());
}

#[test]
fn what_a_killed_command_prepared_is_swept() {
    let Some(mut segment) = Segment::new() else { return };
    let net = segment.network();
    let a = segment.host.namespace("a");
    net.attach(a.as_fd(), "a", &AttachSpec::default()).expect("attach");
    drop(net.prepare_lock("a", Means::Hold).expect("prepare"));
    assert!(run("ip", &["link"]).contains("hold"));
    net.sweep("a").expect("sweep");
    assert!(!run("ip", &["link"]).contains("hold"));
    assert!(!run("nft", &["list", "ruleset"]).contains("hold"));
    // A lock that stands is none of that.
    let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
    lock.lock().expect("lock");
    net.sweep("a").expect("sweep");
    assert!(run("ip", &["link"]).contains("hold"));
    assert_eq!(net.end_lock("a").expect("end").len(), 1);
    assert!(!run("ip", &["link"]).contains("hold"));
}

#[test]
fn what_was_sent_once_arrives_when_the_container_appears() {
    let Some(mut segment) = Segment::new() else { return };
    let net = segment.network();
    let peer = segment.machine("peer", Ipv4Addr::new(192, 0, 2, 100), None);
    let address = SocketAddr::from((CONTAINER, 80));
    let spec = AttachSpec { ip: Some(CONTAINER), resumes: true, ..AttachSpec::default() };
    let mut elsewhere = None;
    for freeze in [20, 100, 300, 1000].map(Duration::from_millis) {
        // It is here, and known to the peer.
        let a = segment.host.namespace(&format!("a{}", freeze.as_millis()));
        let status = net.attach(a.as_fd(), "a", &spec).expect("attach");
        echo(&a);
        let connect = || {
            let connected = netns::run_in(peer.as_fd(), || TcpStream::connect(address));
            (connected.expect("enter").expect("connected"), Instant::now())
        };
        connect();
        // It stops, and is another machine with the same addresses some time later.
        let there = elsewhere
            .get_or_insert_with(|| segment.machine("elsewhere", CONTAINER, Some(status.mac)));
        let link = |state: &str| {
            let set = ["link", "set", "eth0", state];
            netns::run_in(there.as_fd(), || run("ip", &set)).expect("enter");
        };
        link("down");
        connect();
        let mut forwarder = net.forwarder("a").expect("forwarder").expect("a segment");
        let mut lock = net.prepare_lock("a", Means::Hold).expect("prepare");
        let begin = Instant::now();
        lock.lock().expect("lock");
        lock.keep(Keep::default()).expect("keep");
        let (ended, _stop) = rustix::pipe::pipe().expect("pipe");
        let (answered, appeared) = std::thread::scope(|scope| {
            let forwarding = scope.spawn(|| (forwarder.run(ended.as_fd(), true), Instant::now()));
            let client = scope.spawn(connect);
            std::thread::sleep(freeze.saturating_sub(begin.elapsed()));
            link("up");
            let (seen, appeared) = forwarding.join().expect("thread");
            assert_eq!(seen.expect("run"), Ended::Sent);
            (client.join().expect("thread").1, appeared)
        });
        lock.finish().expect("stands");
        let after = answered.saturating_duration_since(appeared);
        eprintln!("away for {:?}, connected {after:?} after it was seen", appeared - begin);
        // Else the client tries again when a second is over.
        assert!(after < Duration::from_millis(500), "{after:?}");
        net.disconnect("a", None).expect("disconnect");
        net.departed("a").expect("depart");
    }
}
