//! IPv6 on a bridge of ours. Skipped without root.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use arctern_net::{AttachSpec, CreateNetwork, Network, NetworkStore, netns};

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split(' ')).output().expect("program runs");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{program} {args}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Serves connections in a namespace: each gets the address it comes from.
fn serve(fd: &OwnedFd, port: u16) {
    let bind = move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    let listener = netns::run_in(fd.as_fd(), bind).expect("enter").expect("listen");
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let peer = connection.peer_addr().map(|a| a.ip().to_canonical().to_string());
            let _ = connection.write_all(peer.unwrap_or_default().as_bytes());
        }
    });
}

fn ask(address: SocketAddr) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(|_| std::io::Error::other(text))
}

#[test]
fn containers_have_ipv6_with_masquerade_and_published_ports() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("own network namespace");
    run("ip", "link set lo up");
    let dir = tempfile::tempdir().expect("temporary directory");
    let namespace = |name: &str| netns::create(&dir.path().join(name)).expect("namespace");
    let (container, client) = (namespace("container"), namespace("client"));
    let store = NetworkStore::new(&dir.path().join("config"));
    let config = store
        .create(CreateNetwork {
            name: "six".into(),
            subnets: vec![
                "10.77.0.0/24".parse().expect("net"),
                "fd00:77::/64".parse().expect("net"),
            ],
            ..CreateNetwork::default()
        })
        .expect("create");
    let network = Network::of(&dir.path().join("leases"), &config).expect("open");
    let status = network.attach(container.as_fd(), "c", &AttachSpec::default()).expect("attach");
    let own = status.ip6.expect("an IPv6 address").addr();
    assert_eq!(own, "fd00:77::2".parse::<Ipv6Addr>().expect("ip"));
    let gateway = IpAddr::from(status.gateway6.expect("a gateway"));
    serve(&container, 80);
    serve(&client, 81);

    let client_path = dir.path().join("client");
    run("ip", "link add wan type veth peer name lan");
    run("ip", "address add fd00:99::1/64 dev wan nodad");
    run("ip", "link set wan up");
    run("ip", &format!("link set lan netns {}", client_path.display()));
    let inside = |args: &str| {
        run("nsenter", &format!("--net={} ip {args}", client_path.display()));
    };
    inside("address add fd00:99::9/64 dev lan nodad");
    inside("link set lan up");
    let at = |ip: &str, port| SocketAddr::new(ip.parse().expect("ip"), port);
    let from = |fd: &OwnedFd, to: SocketAddr| netns::run_in(fd.as_fd(), || ask(to)).expect("enter");

    assert_eq!(ask(SocketAddr::new(own.into(), 80)).expect("the host"), gateway);
    network.publish("c", &["8080:80".parse().expect("port")]).expect("publish");
    let wan = at("fd00:99::1", 8080);
    assert_eq!(from(&client, wan).expect("client"), at("fd00:99::9", 0).ip());
    assert!(ask(at("::1", 8080)).is_err(), "refused at once, so that 127.0.0.1 is tried");
    assert_eq!(ask(at("127.0.0.1", 8080)).expect("IPv4"), IpAddr::from([10, 77, 0, 1]));
    assert_eq!(from(&container, wan).expect("hairpin"), gateway);
    assert_eq!(from(&container, at("fd00:99::9", 81)).expect("out"), at("fd00:99::1", 0).ip());
    network.unpublish("c").expect("unpublish");
    assert!(from(&client, wan).is_err());

    network.detach("c", Some(container.as_fd())).expect("detach");
    assert!(store.remove("six", &dir.path().join("leases")).expect("remove"));
    assert_eq!(run("nft", "list ruleset").trim(), "");
    for name in ["container", "client"] {
        netns::delete(&dir.path().join(name)).expect("delete");
    }
}
