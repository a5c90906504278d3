//! Networks in namespaces made for the test: the test's thread is the host, a client sits behind a
//! veth pair of its own, containers are persistent namespaces. Skipped without root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use arctern_net::{AttachSpec, Network, NetworkError, PortMapping, netns};

mod common;
use common::{Host, host, run};

trait Servers {
    fn server(&mut self, name: &str) -> (OwnedFd, Ipv4Addr);
}

impl Servers for Host {
    /// A container that is attached, with a server on port 80 that sends its name.
    fn server(&mut self, name: &str) -> (OwnedFd, Ipv4Addr) {
        let fd = self.namespace(name);
        let status = self.net.attach(fd.as_fd(), name, &AttachSpec::default()).expect("attach");
        serve(&fd, 80, name);
        (fd, status.ip)
    }
}

/// Serves connections in a namespace until the test's process ends.
fn serve(fd: &OwnedFd, port: u16, name: &str) {
    let bind = move || TcpListener::bind(("0.0.0.0", port));
    let listener = netns::run_in(fd.as_fd(), bind).expect("enter").expect("listen");
    let name = name.to_owned();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let peer = connection.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            let _ = write!(connection, "{name} {peer}");
        }
    });
}

/// What a server at `address` sends, asked from this thread's namespace.
fn ask(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_from(fd: &OwnedFd, address: SocketAddr) -> std::io::Result<String> {
    netns::run_in(fd.as_fd(), || ask(address))?
}

fn port(text: &str) -> PortMapping {
    text.parse().expect("port")
}

#[test]
fn containers_reach_each_other_and_the_host() {
    let Some(mut host) = host() else { return };
    let (a, a_ip) = host.server("a");
    let (b, b_ip) = host.server("b");
    assert_ne!(a_ip, b_ip);
    assert_eq!(ask((a_ip, 80)).expect("host to a").split(' ').next(), Some("a"));
    assert_eq!(ask_from(&a, (b_ip, 80).into()).expect("a to b"), format!("b {a_ip}"));
    let bridge = host.net.ensure_bridge().expect("bridge");
    let listener = TcpListener::bind((bridge.gateway, 99)).expect("listen");
    let client = std::thread::scope(|s| {
        s.spawn(|| listener.accept().map(|(_, peer)| peer.ip()));
        netns::run_in(b.as_fd(), || TcpStream::connect((bridge.gateway, 99)).map(drop))
    });
    client.expect("enter").expect("b to host");
    host.net.detach("a", None).expect("detach");
    host.net.detach("a", None).expect("absence is no error");
    host.net.detach("b", None).expect("detach");
    host.net.remove().expect("remove");
    assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");
    assert!(!run("ip", &["link"]).contains("arctern0"));
}

#[test]
fn published_ports_work_from_everywhere() {
    let Some(mut host) = host() else { return };
    let (a, a_ip) = host.server("a");
    let (b, _) = host.server("b");
    // A client on another segment.
    let client = host.namespace("client");
    let path = host.made.last().expect("client").display().to_string();
    run("ip", &["link", "add", "wan", "type", "veth", "peer", "name", "lan"]);
    let inside = |args: &[&str]| {
        let mut all = vec![format!("--net={path}")];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run("nsenter", &all);
    };
    let file = std::fs::File::open(&path).expect("namespace");
    drop(file);
    run("ip", &["addr", "add", "203.0.113.1/24", "dev", "wan"]);
    run("ip", &["link", "set", "wan", "up"]);
    run("ip", &["link", "set", "lan", "netns", &path]);
    inside(&["ip", "addr", "add", "203.0.113.9/24", "dev", "lan"]);
    inside(&["ip", "link", "set", "lan", "up"]);
    serve(&client, 81, "client");

    let ports = host.net.publish("a", &[port("8080:80"), port("127.0.0.1:9090:80")]);
    let ports = ports.expect("publish");
    assert_eq!(ports[0].to_string(), "0.0.0.0:8080->80/tcp");
    let gateway = host.net.ensure_bridge().expect("bridge").gateway;
    let local = Ipv4Addr::LOCALHOST;
    let wan = Ipv4Addr::new(203, 0, 113, 1);
    assert_eq!(ask((local, 8080)).expect("localhost"), format!("a {gateway}"));
    assert_eq!(ask((local, 9090)).expect("localhost only"), format!("a {gateway}"));
    assert_eq!(ask((wan, 8080)).expect("own address").split(' ').next(), Some("a"));
    assert_eq!(ask_from(&client, (wan, 8080).into()).expect("client"), "a 203.0.113.9");
    assert!(ask_from(&client, (wan, 9090).into()).is_err(), "published on localhost only");
    assert_eq!(
        ask_from(&b, (gateway, 8080).into()).expect("other container").split(' ').next(),
        Some("a")
    );
    assert_eq!(ask_from(&a, (gateway, 8080).into()).expect("hairpin"), format!("a {gateway}"));
    let masqueraded = ask_from(&a, (Ipv4Addr::new(203, 0, 113, 9), 81).into());
    assert_eq!(masqueraded.expect("out"), "client 203.0.113.1");

    let rules = run("nft", &["list", "table", "inet", "arctern0"]);
    assert!(rules.contains("tcp . 8080 comment \"a\" :"), "{rules}");
    assert!(rules.contains(&format!("{a_ip} . 80")), "{rules}");
    host.net.unpublish("a").expect("unpublish");
    assert!(ask((local, 8080)).is_err());
}

#[test]
fn a_container_cannot_reach_the_hosts_loopback() {
    let Some(mut host) = host() else { return };
    let (a, _) = host.server("a");
    let _secret = TcpListener::bind("127.0.0.1:7777").expect("listen");
    let gateway = host.net.ensure_bridge().expect("bridge").gateway;
    // A route through the gateway is all that a container would need.
    let path = host.made[0].display().to_string();
    run("nsenter", &[&format!("--net={path}"), "ip", "addr", "del", "127.0.0.1/8", "dev", "lo"]);
    let via = gateway.to_string();
    let route = ["ip", "route", "add", "127.0.0.0/8", "via", via.as_str(), "dev", "eth0"];
    let args: Vec<&str> = [&[format!("--net={path}").leak() as &str][..], &route].concat();
    run("nsenter", &args);
    std::fs::write("/proc/sys/net/ipv4/conf/arctern0/route_localnet", "1").expect("sysctl");
    let inside = || std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1");
    netns::run_in(a.as_fd(), inside).expect("enter").expect("sysctl");
    let reached = netns::run_in(a.as_fd(), || {
        TcpStream::connect_timeout(
            &"127.0.0.1:7777".parse().expect("address"),
            Duration::from_millis(600),
        )
    });
    assert!(reached.expect("enter").is_err());
}

#[test]
fn containers_have_the_mtu_of_the_way_out() {
    let Some(mut host) = host() else { return };
    run("ip", &["link", "add", "out", "mtu", "1380", "type", "veth", "peer", "name", "other"]);
    run("ip", &["link", "set", "other", "up"]);
    run("ip", &["addr", "add", "10.88.0.7/20", "dev", "out"]);
    run("ip", &["link", "set", "out", "up"]);
    run("ip", &["route", "add", "default", "via", "10.88.0.1"]);
    let a = host.namespace("a");
    let status = host.net.attach(a.as_fd(), "a", &AttachSpec::default()).expect("attach");
    assert_eq!(host.net.ensure_bridge().expect("bridge").mtu, 1380);
    assert_ne!(status.ip.octets()[..2], [10, 88], "that subnet is taken");
    let inside = || std::fs::read_to_string("/proc/thread-self/net/route");
    assert!(netns::run_in(a.as_fd(), inside).expect("enter").expect("routes").contains("eth0"));
    let link = netns::run_in(a.as_fd(), || run("ip", &["link", "show", "eth0"])).expect("enter");
    assert!(link.contains("mtu 1380"), "{link}");
}

#[test]
fn taken_ports_and_addresses_are_refused_by_name() {
    let Some(mut host) = host() else { return };
    let (_a, a_ip) = host.server("a");
    let (_b, _) = host.server("b");
    host.net.publish("a", &[port("8080:80")]).expect("publish");
    let error = host.net.publish("b", &[port("8079-8081:80-82")]).expect_err("taken");
    assert_eq!(error.to_string(), "port 8080/tcp of the host is published by container a");
    let _listener = TcpListener::bind("0.0.0.0:9000").expect("listen");
    let error = host.net.publish("b", &[port("7000:80"), port("9000:80")]).expect_err("taken");
    let NetworkError::PortInUse { port: 9000, holder: Some(holder), .. } = &error else {
        panic!("{error}");
    };
    assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    assert!(ask((Ipv4Addr::LOCALHOST, 7000)).is_err(), "all or none");
    let twice = host.net.publish("b", &[port("7000:80"), port("7000:81")]);
    assert!(matches!(twice, Err(NetworkError::PortTwice { port: 7000, .. })));

    let c = host.namespace("c");
    let with_ip = |ip| AttachSpec { ip: Some(ip), ..AttachSpec::default() };
    let error = host.net.attach(c.as_fd(), "c", &with_ip(a_ip)).expect_err("taken");
    assert_eq!(error.to_string(), format!("address {a_ip} is in use by container a"));
    let outside = host.net.attach(c.as_fd(), "c", &with_ip(Ipv4Addr::new(1, 2, 3, 4)));
    assert!(matches!(outside, Err(NetworkError::AddressOutside { .. })));
    assert!(host.net.status("c").expect("state").is_none());
}

#[test]
fn address_and_mac_are_kept_when_asked_for() {
    let Some(mut host) = host() else { return };
    let (_a, ip) = host.server("a");
    let before = host.net.status("a").expect("state").expect("attached");
    host.net.detach("a", None).expect("detach");
    let again = host.namespace("again");
    let spec = AttachSpec { ip: Some(ip), mac: Some(before.mac), ..AttachSpec::default() };
    let status = host.net.attach(again.as_fd(), "other", &spec).expect("attach");
    assert_eq!((status.ip, status.mac), (before.ip, before.mac));
    serve(&again, 80, "other");
    assert!(ask((ip, 80)).expect("reached at once").starts_with("other"));
    // A free address is not one that was used a moment ago.
    let next = host.namespace("next");
    let status = host.net.attach(next.as_fd(), "next", &AttachSpec::default()).expect("attach");
    assert_ne!(status.ip, ip);
}

#[test]
fn a_new_mac_at_an_old_address_is_reached_at_once() {
    let Some(mut host) = host() else { return };
    let (_a, ip) = host.server("a");
    assert!(ask((ip, 80)).expect("first").starts_with('a'));
    host.net.detach("a", None).expect("detach");
    let other = host.namespace("other");
    let spec = AttachSpec { ip: Some(ip), ..AttachSpec::default() };
    host.net.attach(other.as_fd(), "other", &spec).expect("attach");
    serve(&other, 80, "other");
    let start = Instant::now();
    assert!(ask((ip, 80)).expect("second").starts_with("other"));
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[test]
fn a_disconnected_interface_goes_with_its_namespace() {
    let Some(mut host) = host() else { return };
    // No server in it: a socket would keep the namespace.
    let a = host.namespace("a");
    host.net.attach(a.as_fd(), "a", &AttachSpec::default()).expect("attach");
    let start = Instant::now();
    host.net.disconnect("a", None).expect("disconnect");
    eprintln!("disconnect {:?}", start.elapsed());
    host.net.disconnect("a", None).expect("absence is no error");
    assert!(host.net.status("a").expect("state").is_none());
    // The name is free at once, while the old interface still exists.
    let again = host.namespace("again");
    host.net.attach(again.as_fd(), "a", &AttachSpec::default()).expect("attach");
    assert!(run("ip", &["link"]).contains("gone"));
    drop(a);
    netns::delete(&host.made[0]).expect("delete");
    let end = Instant::now() + Duration::from_secs(5);
    while run("ip", &["link"]).contains("gone") {
        assert!(Instant::now() < end, "the interface stays");
        std::thread::yield_now();
    }
}

#[test]
fn udp_and_chosen_ports() {
    let Some(mut host) = host() else { return };
    let (a, _) = host.server("a");
    let socket = netns::run_in(a.as_fd(), || UdpSocket::bind("0.0.0.0:53")).expect("enter");
    let socket = socket.expect("bind");
    let ports = host.net.publish("a", &[port("53/udp")]).expect("publish");
    assert_ne!(ports[0].host_port, 0);
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.send_to(b"hello", ("127.0.0.1", ports[0].host_port)).expect("send");
    let mut buffer = [0; 16];
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    let (len, _) = socket.recv_from(&mut buffer).expect("arrives");
    assert_eq!(&buffer[..len], b"hello");
    // A client that goes on from the same port is led to the new container.
    host.net.detach("a", None).expect("detach");
    let b = host.namespace("b");
    host.net.attach(b.as_fd(), "b", &AttachSpec::default()).expect("attach");
    let other = netns::run_in(b.as_fd(), || UdpSocket::bind("0.0.0.0:53")).expect("enter");
    let other = other.expect("bind");
    let again = PortMapping { host_port: ports[0].host_port, ..port("53/udp") };
    // A flow that begins while nothing is published is not translated.
    let _ = client.send_to(b"lost", ("127.0.0.1", again.host_port));
    host.net.publish("b", &[again]).expect("publish");
    // The refusal of the lost datagram is reported by the next call.
    let _ = client.send_to(b"again", ("127.0.0.1", ports[0].host_port));
    client.send_to(b"again", ("127.0.0.1", ports[0].host_port)).expect("send");
    other.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    let (len, _) = other.recv_from(&mut buffer).expect("arrives");
    assert_eq!(&buffer[..len], b"again");
}

#[test]
fn flushed_rules_come_back_with_the_next_command() {
    let Some(mut host) = host() else { return };
    let (_a, _) = host.server("a");
    host.net.publish("a", &[port("8080:80")]).expect("publish");
    run("nft", &["flush", "ruleset"]);
    assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_err());
    host.net.ensure_bridge().expect("bridge");
    assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_ok());
}

#[test]
fn two_networks_with_the_same_container_do_not_touch_each_other() {
    let Some(mut host) = host() else { return };
    let (_a, _) = host.server("a");
    host.net.publish("a", &[port("8080:80")]).expect("publish");
    let other = Network::open(&host.dir.path().join("other"), "arctern1", None).expect("open");
    let fd = host.namespace("a2");
    let status = other.attach(fd.as_fd(), "a", &AttachSpec::default()).expect("attach");
    assert_ne!(status.gateway, Some(host.net.ensure_bridge().expect("bridge").gateway));
    let error = other.publish("a", &[port("8080:80")]).expect_err("taken in the other network");
    assert!(matches!(error, NetworkError::PortPublished { port: 8080, .. }), "{error}");
    other.detach("a", None).expect("detach");
    other.remove().expect("remove");
    assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_ok());
}

#[test]
fn attach_and_publish_are_fast() {
    let Some(mut host) = host() else { return };
    host.net.ensure_bridge().expect("bridge");
    let mut times = Vec::new();
    for i in 0..10u16 {
        let name = format!("c{i}");
        let start = Instant::now();
        let fd = host.namespace(&name);
        let made = start.elapsed();
        let start = Instant::now();
        host.net.attach(fd.as_fd(), &name, &AttachSpec::default()).expect("attach");
        let attached = start.elapsed();
        let start = Instant::now();
        let mapping = PortMapping { host_port: 8000 + i, ..port("8000:80") };
        host.net.publish(&name, &[mapping]).expect("publish");
        let published = start.elapsed();
        let start = Instant::now();
        host.net.detach(&name, None).expect("detach");
        eprintln!(
            "namespace {made:?}, attach {attached:?}, publish {published:?}, detach {:?}",
            start.elapsed()
        );
        times.push(attached + published);
    }
    times.sort();
    // The promise is 15 ms; a loaded machine gets some grace.
    assert!(times[times.len() / 2] < Duration::from_millis(60), "{times:?}");
}
