//! What the options of `container checkpoint` and `container restore` do about sockets to programs
//! outside of the container, and about its addresses.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, address};
use arctern_harness::place::Place;
use arctern_harness::process::readable;
use arctern_harness::skips::judge;
use arctern_harness::workload::{program, serve};
use rustix::fd::AsFd;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

/// A container whose workload is connected to sockets of this program.
struct Outside {
    host: Host,
    mailbox: UnixDatagram,
}

impl Outside {
    fn start(workload: &str) -> Result<Outside> {
        let host = Host::new()?;
        host.image("redis", &[])?;
        let directory = host.dir().join("shared");
        let work = directory.join("work");
        std::fs::create_dir_all(&work)?;
        let fifo = work.join("ready");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0)?;
        let listen = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        // A name is what its owner has bound: the same path must lead there in the container.
        let path = directory.join("arctern-outside").display().to_string();
        // As a program of the host: its sockets are not in the container's network.
        let (listener, mailbox) = host.inside(|| {
            Ok((UnixListener::bind(&path)?, UnixDatagram::bind(format!("{path}-mail"))?))
        })?;
        serve(listener);
        let shared = format!("{0}:{0}", directory.display());
        let (outside, work) = (format!("OUTSIDE={path}"), work.display().to_string());
        let programs = program();
        let programs = programs.parent().context("the workloads lie in a directory")?;
        let programs = format!("{}:/programs:ro", programs.display());
        let mut run = vec!["run", "-d", "--name", "guest"];
        run.extend(["-v", &shared, "-v", &programs, "-e", &outside, "redis"]);
        run.extend(["/programs/workload", "run", workload, &work]);
        host.arctern(&run)?;
        let mut listen = File::from(listen);
        let mut said = String::new();
        while !said.ends_with('\n') {
            ensure!(readable(&[listen.as_fd()], Duration::from_secs(40))?[0], "it is never ready");
            match listen.read_to_string(&mut said) {
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return Err(e.into()),
                _ => {}
            }
        }
        Ok(Outside { host, mailbox })
    }

    /// A checkpoint that is refused; why.
    fn refused(&self, options: &[&str]) -> Result<String> {
        let command = [&["container", "checkpoint"], options, &["guest"]].concat();
        let output = self.host.attempt(&command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "nothing was refused");
        ensure!(said.contains("arctern-outside"), "{said}");
        Ok(said)
    }

    fn moves(&self, policy: &str) -> Result<()> {
        self.host.arctern(&["container", "checkpoint", policy, "guest"])?;
        self.host.arctern(&["container", "restore", "guest"])?;
        self.host.arctern(&["kill", "--signal", "USR1", "guest"])?;
        let code = self.host.arctern(&["wait", "guest"])?;
        let logs = self.host.attempt(&["logs", "guest"])?;
        let logs = String::from_utf8_lossy(&logs.stderr).into_owned();
        ensure!(code.trim() == "0", "the workload ended with {code}: {logs}");
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.host.arctern(&["rm", "-f", "-t", "0", "guest"])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    }
}

#[test]
fn a_container_is_connected_to_sockets_outside_again() -> Result<(), String> {
    judge("policies::reconnected", || {
        let outside = Outside::start("unix-reconnected")?;
        let said = outside.refused(&[])?;
        ensure!(said.contains("--ext-unix-sk"), "no remedy: {said}");
        outside.moves("--ext-unix-sk")?;
        let mut letter = [0; 10];
        outside.mailbox.set_nonblocking(true)?;
        let length = outside.mailbox.recv(&mut letter)?;
        ensure!(&letter[..length] == b"after", "{letter:?}");
        outside.end()
    })
}

#[test]
fn connections_of_a_container_to_sockets_outside_are_closed() -> Result<(), String> {
    judge("policies::closed", || {
        let outside = Outside::start("unix-closed")?;
        let said = outside.refused(&["--ext-unix-sk"])?;
        ensure!(said.contains("unread"), "{said}");
        outside.moves("--ext-unix-sk=close")?;
        outside.end()
    })
}

/// redis with a client on the segment.
struct Redis {
    _lab: Lab,
    host: Host,
    client: Place,
    archive: PathBuf,
}

impl Redis {
    fn start() -> Result<Redis> {
        let lab = Lab::new()?;
        let (host, client) = (lab.host(1)?, lab.client(100)?);
        client.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
        host.image("redis", &[])?;
        let run = ["run", "-d", "--ip", "10.88.0.5", "--mac-address", "02:00:00:00:00:05"];
        let server = ["--name", "db", "redis", "redis-server", "--protected-mode", "no"];
        host.arctern(&[&run[..], &server].concat())?;
        let archive = host.dir().join("db.tar");
        let redis = Redis { _lab: lab, host, client, archive };
        redis.client.await_listener("10.88.0.5:6379".parse()?)?;
        Ok(redis)
    }

    fn connect(&self, ip: &str) -> Result<TcpStream> {
        let address = (ip.to_owned(), 6379);
        let stream = self.client.inside(|| Ok(TcpStream::connect(address)?))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(stream)
    }

    /// Checkpoints into the archive and removes the container, which gives its address back.
    fn leave(&self) -> Result<()> {
        let file = self.archive.display().to_string();
        let checkpoint = ["container", "checkpoint", "--tcp-established", "--file", &file, "db"];
        self.host.arctern(&checkpoint)?;
        self.host.arctern(&["rm", "db"]).map(drop)
    }

    fn restore(&self, options: &[&str]) -> Result<std::process::Output> {
        let file = self.archive.display().to_string();
        self.host.attempt(&[&["container", "restore", "--file", &file][..], options].concat())
    }

    /// Address and hardware address, as `inspect` says.
    fn addresses(&self) -> Result<(String, String)> {
        let inspected: serde_json::Value =
            serde_json::from_str(&self.host.arctern(&["inspect", "db"])?)?;
        let network = &inspected[0]["NetworkSettings"]["Networks"];
        let text = |key: &str| network[key].as_str().map(str::to_owned).context(key.to_owned());
        Ok((text("ip")?, text("mac")?))
    }

    fn end(&self) -> Result<()> {
        self.host.arctern(&["rm", "-f", "-t", "0", "db"])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    }
}

fn ping(mut stream: &TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "redis answers {answer:?}");
    Ok(())
}

#[test]
fn a_new_address_is_given_to_a_container_without_connections_only() -> Result<(), String> {
    judge("policies::address", || {
        let redis = Redis::start()?;
        let stream = redis.connect("10.88.0.5")?;
        ping(&stream)?;
        let peer = stream.local_addr()?.to_string();
        redis.leave()?;
        let output = redis.restore(&["--tcp-established", "--ignore-static-ip"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(&peer), "it was not refused: {said}");
        ensure!(said.contains("--tcp-close"), "no remedy: {said}");
        ensure!(redis.host.arctern(&["ps", "-aq"])?.is_empty(), "something is left");
        let output = redis.restore(&["--tcp-close", "--ignore-static-ip"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (ip, _) = redis.addresses()?;
        ensure!(ip != "10.88.0.5", "it has its old address");
        ping(&redis.connect(&ip)?)?;
        redis.end()
    })
}

#[test]
fn connections_go_on_with_a_new_hardware_address() -> Result<(), String> {
    judge("policies::mac", || {
        let redis = Redis::start()?;
        ensure!(redis.addresses()?.1 == "02:00:00:00:00:05", "the address was not taken");
        let stream = redis.connect("10.88.0.5")?;
        ping(&stream)?;
        redis.leave()?;
        let output = redis.restore(&["--tcp-established", "--ignore-static-mac"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (ip, mac) = redis.addresses()?;
        ensure!(ip == "10.88.0.5" && mac != "02:00:00:00:00:05", "{ip} {mac}");
        ping(&stream)?;
        redis.end()
    })
}
