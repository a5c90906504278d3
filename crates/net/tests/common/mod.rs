//! What tests of networks share: a host in a namespace of its own, and a server.
#![allow(dead_code, reason = "each test uses some of it")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use arctern_net::{Network, netns};

/// A host in a network namespace of its own, in which the calling thread stays.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub net: Network,
    pub made: Vec<PathBuf>,
}

/// Runs a program that must succeed; what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("program runs");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A host; none without root.
pub fn host() -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("own network namespace");
    run("ip", &["link", "set", "lo", "up"]);
    let dir = tempfile::tempdir().expect("temporary directory");
    let net = Network::open(&dir.path().join("network"), "arctern0", None).expect("open");
    Some(Host { dir, net, made: Vec::new() })
}

impl Host {
    /// A network namespace that goes with the host.
    pub fn namespace(&mut self, name: &str) -> OwnedFd {
        let path = self.dir.path().join(name);
        let fd = netns::create(&path).expect("namespace");
        self.made.push(path);
        fd
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for path in &self.made {
            netns::delete(path).expect("delete");
        }
    }
}

/// Sends back what it receives.
pub fn echo(fd: &OwnedFd) {
    let bind = || TcpListener::bind(("0.0.0.0", 80));
    let listener = netns::run_in(fd.as_fd(), bind).expect("enter").expect("listen");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let _ = connection.set_nodelay(true);
                while let Ok(len @ 1..) = connection.read(&mut buffer) {
                    let _ = connection.write_all(&buffer[..len]);
                }
            });
        }
    });
}

/// Asks an echo server.
pub fn ask(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, text);
    Ok(())
}
