//! Connections that a container's program has closed and that still send, at a checkpoint that stops
//! it: the ends of answers arrive, or the checkpoint is refused. `ARCTERN_SOAK=1` makes it twenty rounds.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, address};
use arctern_harness::place::Place;
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 5)), 80);
const SIZE: usize = 60_000;

/// nginx in a container, and a client of it.
struct World {
    _lab: Lab,
    host: Host,
    client: Place,
}

impl World {
    fn new() -> Result<World> {
        let lab = Lab::new()?;
        let (host, client) = (lab.host(1)?, lab.client(100)?);
        client.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        let directory = host.dir().join("files");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("part"), body())?;
        let volume = format!("{}:/var/www/html/files:ro", directory.display());
        let ip = SERVER.ip().to_string();
        host.arctern(&["run", "-d", "--ip", &ip, "-v", &volume, "--name", "web", "nginx"])?;
        client.await_listener(SERVER)?;
        Ok(World { _lab: lab, host, client })
    }

    fn end(&self) -> Result<()> {
        self.host.arctern(&["rm", "-f", "-t", "0", "web"])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    }
}

fn body() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8).collect()
}

/// Asks for the file; the server closes after its answer.
fn ask(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream.write_all(b"GET /files/part HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?)
}

/// Reads the answer to its end.
fn take(mut stream: &TcpStream) -> Result<()> {
    let mut answer = Vec::new();
    let done = stream.read_to_end(&mut answer);
    done.with_context(|| format!("after {} bytes", answer.len()))?;
    ensure!(answer.ends_with(&body()), "{} bytes of the answer arrived", answer.len());
    Ok(())
}

#[test]
fn clients_get_the_ends_of_their_answers() -> Result<(), String> {
    judge("draining::ends", || {
        let world = World::new()?;
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for _ in 0..4 {
            let (stop, answers) = (stop.clone(), answers.clone());
            clients.push(world.client.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect(SERVER)?;
                    ask(&stream)?;
                    take(&stream)?;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })?);
        }
        for round in 0..rounds(4, 20) {
            // Load between the checkpoints, not a wait for something.
            std::thread::sleep(Duration::from_millis(100));
            for what in ["checkpoint", "restore"] {
                world
                    .host
                    .arctern(&["container", what, "--tcp-established", "web"])
                    .with_context(|| format!("round {round}"))?;
            }
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("the client ends")?;
        }
        println!("{} answers", answers.load(Ordering::Relaxed));
        world.end()
    })
}

#[test]
fn an_answer_that_nobody_takes_is_refused_or_dropped() -> Result<(), String> {
    judge("draining::refused", || {
        let world = World::new()?;
        let stream = world.client.inside(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_recv_buffer_size(&socket, 4096)?;
            rustix::net::connect(&socket, &SERVER)?;
            Ok(TcpStream::from(socket))
        })?;
        ask(&stream)?;
        let pid = world.host.arctern(&["inspect", "--format", "{{.State.Pid}}", "web"])?;
        let list = format!("/proc/{}/net/tcp", pid.trim());
        let begin = Instant::now();
        // State 4 (FIN_WAIT1): the program has closed it.
        while !std::fs::read_to_string(&list)?.lines().any(|l| l.split(' ').any(|w| w == "04")) {
            ensure!(begin.elapsed() < Duration::from_secs(20), "nginx does not close");
            std::thread::sleep(Duration::from_millis(5));
        }
        let checkpoint = ["container", "checkpoint", "--tcp-established", "web"];
        let output = world.host.attempt(&checkpoint)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was not refused");
        let name = format!("TCP {SERVER} -> {} was closed by the program", stream.local_addr()?);
        for part in [&name, "bytes to send", "--skip-in-flight"] {
            ensure!(text.contains(part), "no {part:?}: {text}");
        }
        take(&stream).context("the refused one goes on")?;
        let other = world.client.inside(|| Ok(TcpStream::connect(SERVER)?))?;
        ask(&other)?;
        take(&other)?;
        world.host.arctern(&[&checkpoint[..3], &["--skip-in-flight", "web"]].concat())?;
        world.host.arctern(&["container", "restore", "--tcp-established", "web"])?;
        world.end()
    })
}
