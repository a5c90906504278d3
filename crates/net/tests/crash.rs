//! Commands that are killed at any moment leave a network that the next command cleans up.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use arctern_net::{AttachSpec, Network, PortMapping, netns};

/// Set in the child processes: the directory to work in.
const WORKER: &str = "ARCTERN_NET_CRASH_TEST";

fn network(dir: &Path) -> Network {
    Network::open(&dir.join("network"), "arctern0", None).expect("open")
}

/// What the children do until they are killed.
#[test]
fn worker() {
    let Some(dir) = std::env::var_os(WORKER) else { return };
    let dir = Path::new(&dir);
    let name = std::env::var("NAME").expect("name");
    let net = network(dir);
    let port: PortMapping = std::env::var("PORT").expect("port").parse().expect("port");
    loop {
        let path = dir.join(&name);
        netns::delete(&path).expect("delete");
        let fd = netns::create(&path).expect("create");
        net.attach(fd.as_fd(), &name, &AttachSpec::default()).expect("attach");
        net.publish(&name, std::slice::from_ref(&port)).expect("publish");
        net.disconnect(&name, None).expect("disconnect");
    }
}

#[test]
fn killed_commands_leave_nothing_that_stays() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    // The children inherit this thread's namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("own network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success());
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("directory");
    let child = |name: &str, port: &str| {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["worker", "--exact", "--nocapture"])
            .env(WORKER, dir.path())
            .env("NAME", name)
            .env("PORT", port)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("child")
    };
    for round in 0..15u64 {
        let mut children = [child("a", "8080:80"), child("b", "127.0.0.1:9000-9009:80-89/udp")];
        std::thread::sleep(Duration::from_millis(40 + 7 * round));
        for child in &mut children {
            child.kill().expect("kill");
        }
        for child in children {
            let output = child.wait_with_output().expect("wait");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    let net = network(dir.path());
    for name in ["a", "b"] {
        net.detach(name, None).expect("detach");
        netns::delete(&dir.path().join(name)).expect("delete");
    }
    net.remove().expect("remove");
    assert!(net.leases().expect("leases").is_empty());
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().expect("program runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");
    let links = run("ip", &["-o", "link"]);
    assert!(!links.contains("arctern0") && !links.contains("veth"), "{links}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(dir.path().to_str().expect("text")), "{mounts}");
}
