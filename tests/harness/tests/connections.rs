//! Connections of a container that is checkpointed and restored on one host: to its own address and
//! through a published port. `ARCTERN_SOAK=1` makes it ten and twenty rounds.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::capture::{Capture, Seen};
use arctern_harness::host::{Host, run};
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load, hexadecimal};
use arctern_harness::place::Place;
use arctern_harness::process::{Process, with_argument};
use arctern_harness::random::{Random, rounds};
use arctern_harness::skips::judge;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The address that the container asks for.
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);

/// A host and a client on one segment; the client can reach the container's address too.
struct World {
    lab: Lab,
    host: Host,
    client: Place,
}

impl World {
    fn new() -> Result<World> {
        let lab = Lab::new()?;
        let (host, client) = (lab.host(1)?, lab.client(100)?);
        client.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
        Ok(World { lab, host, client })
    }

    fn archive(&self) -> String {
        self.host.dir().join("connections.tar").display().to_string()
    }

    fn checkpoint(&self, name: &str) -> Result<String> {
        let file = self.archive();
        let begin = [
            "container",
            "checkpoint",
            "--tcp-established",
            "--compress",
            "none",
            "--file",
            &file,
            name,
        ];
        self.host.arctern(&begin)
    }

    fn restore(&self, name: &str) -> Result<String> {
        let file = self.archive();
        self.host.arctern(&[
            "container",
            "restore",
            "--trust",
            "--tcp-established",
            "--name",
            name,
            "--file",
            &file,
        ])
    }

    /// A redis server at the container's address and at port 6379 of the host.
    fn redis(&self, name: &str) -> Result<()> {
        self.host.image("redis", &[])?;
        let ip = CONTAINER.to_string();
        // Its queue is long enough for all connections of a test.
        let server = ["redis-server", "--tcp-backlog", "2048", "--protected-mode", "no"];
        let run = ["run", "-d", "-p", "6379:6379", "--ip", &ip, "--name", name, "redis"];
        self.host.arctern(&[&run[..], &server].concat())?;
        self.host.connect("127.0.0.1:6379").map(drop)
    }

    fn end(&self, name: &str) -> Result<()> {
        self.host.arctern(&["rm", "-f", "-t", "0", name])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    }
}

/// Nobody was refused anything.
fn quiet(seen: &Seen) -> Result<()> {
    ensure!(seen.resets.is_empty(), "resets: {:?}", &seen.resets[..seen.resets.len().min(5)]);
    ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
    Ok(())
}

/// Both ways to the container.
fn ways(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(CONTAINER.into(), port), SocketAddr::new(IpAddr::V4(address(1)), port)]
}

fn ping(stream: &TcpStream) -> Result<()> {
    let mut stream = stream;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"PING\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(line == "+PONG\r\n", "redis answers {line:?}");
    Ok(())
}

#[test]
fn a_thousand_connections_arrive_while_the_container_is_frozen() -> Result<(), String> {
    judge("connections::arriving", || {
        const EACH: usize = 500;
        rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: Some(8192), maximum: Some(8192) },
        )?;
        let world = World::new()?;
        world.redis("db-0")?;
        let capture = Capture::start(&world.client)?;
        world.checkpoint("db-0")?;
        let sockets = world.client.inside(|| {
            let mut sockets = Vec::new();
            for address in ways(6379) {
                for _ in 0..EACH {
                    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                    let kind = SocketType::STREAM;
                    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
                    match rustix::net::connect(&socket, &address) {
                        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => sockets.push(socket),
                        Err(error) => bail!("cannot connect to {address}: {error}"),
                    }
                }
            }
            Ok(sockets)
        })?;
        let pending = world.host.arctern(&["ps", "-a"])?;
        ensure!(pending.contains("packets held"), "ps does not show the lock:\n{pending}");
        world.restore("db-1")?;
        let restored = Instant::now();
        let made = |socket: &OwnedFd, limit: Duration| -> Result<bool> {
            let mut ready = [PollFd::new(socket, PollFlags::OUT)];
            let seconds = limit.as_secs().try_into()?;
            let limit = Timespec { tv_sec: seconds, tv_nsec: limit.subsec_nanos().into() };
            let is_ready = poll(&mut ready, Some(&limit))? == 1;
            ensure!(!ready[0].revents().contains(PollFlags::ERR), "a connection was refused");
            Ok(is_ready)
        };
        std::thread::sleep(Duration::from_millis(100));
        let mut at_once = 0;
        for socket in &sockets {
            at_once += usize::from(made(socket, Duration::ZERO)?);
        }
        for socket in sockets {
            ensure!(made(&socket, Duration::from_secs(20))?, "a connection was not made");
            let stream = TcpStream::from(socket);
            stream.set_nonblocking(false)?;
            ping(&stream)?;
        }
        println!("{at_once} connected after 100 ms, all served after {:?}", restored.elapsed());
        quiet(&capture.finish()?)?;
        world.host.arctern(&["rm", "db-0"])?;
        world.end("db-1")
    })
}

#[test]
fn the_source_is_removed_before_the_restore() -> Result<(), String> {
    judge("connections::removed", || {
        let world = World::new()?;
        world.redis("db-0")?;
        let streams = world.client.inside(|| {
            ways(6379).map(|a| TcpStream::connect(a).context("connect")).into_iter().collect()
        });
        let streams: Vec<TcpStream> = streams?;
        for stream in &streams {
            ping(stream)?;
        }
        let capture = Capture::start(&world.client)?;
        world.checkpoint("db-0")?;
        world.host.arctern(&["rm", "db-0"])?;
        let listed = world.host.arctern(&["ps", "-a"])?;
        ensure!(listed.contains("Removed (packets held"), "ps does not show the lock:\n{listed}");
        std::thread::scope(|scope| -> Result<()> {
            let pings: Vec<_> = streams.iter().map(|s| scope.spawn(|| ping(s))).collect();
            std::thread::sleep(Duration::from_millis(300));
            world.restore("db-1")?;
            for ping in pings {
                ping.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok(())
        })?;
        for stream in &streams {
            ping(stream)?;
        }
        quiet(&capture.finish()?)?;
        world.end("db-1")
    })
}

#[test]
fn a_killed_checkpoint_cuts_nobody_off() -> Result<(), String> {
    judge("connections::killed", || {
        let world = World::new()?;
        world.redis("db-0")?;
        let stream = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[0])?))?;
        let mut random = Random::seeded();
        for _ in 0..rounds(4, 20) {
            ping(&stream)?;
            let file = world.archive();
            let mut command = world.host.command(&[
                "container",
                "checkpoint",
                "--tcp-established",
                "--file",
                &file,
                "db-0",
            ]);
            let mut child = command.spawn().context("cannot run arctern")?;
            std::thread::sleep(Duration::from_millis(random.below(150)));
            let _ = child.kill();
            child.wait()?;
            if !world.host.arctern(&["ps", "-q"])?.is_empty() {
                // Also of one that was killed when it had prepared the lock and not made it.
                world.host.await_keepers()?;
                let links = world.host.place().ip("-o link")?;
                ensure!(!links.contains("hold"), "left of a killed command:\n{links}");
            }
            let running = world.host.arctern(&["ps", "-q"])?;
            if running.is_empty() {
                // It was faster.
                world.host.arctern(&["container", "restore", "--tcp-established", "db-0"])?;
            }
        }
        // Nothing but the keeper opens the lock of a command that is killed here.
        ping(&stream)?;
        world.end("db-0")
    })
}

/// A connection from the network of another container of the host.
fn connect_from(host: &Host, container: &str, to: SocketAddr) -> Result<TcpStream> {
    let json: serde_json::Value = serde_json::from_str(&host.arctern(&["inspect", container])?)?;
    let pid = json[0]["State"]["Pid"].as_u64().context("no pid")?;
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<TcpStream> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpStream::connect(to)?)
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

#[test]
fn neighbours_and_servers_of_the_container_notice_nothing() -> Result<(), String> {
    // Answers whoever it has connected to.
    const PROGRAM: &str = r#"
import socket
s = socket.create_connection(("192.0.2.100", 4000))
for line in s.makefile("rb"):
    s.sendall(line)
"#;
    judge("connections::around", || {
        let world = World::new()?;
        let listener = world.client.inside(|| Ok(TcpListener::bind("192.0.2.100:4000")?))?;
        world.host.image("python", &[])?;
        let run = ["run", "-d", "--name", "caller", "python", "python3", "-c", PROGRAM];
        world.host.arctern(&run)?;
        let (called, _) = listener.accept()?;
        world.redis("db")?;
        world.host.arctern(&["run", "-d", "--name", "beside", "python", "sleep", "1000"])?;
        let neighbour = connect_from(&world.host, "beside", ways(6379)[0])?;
        let hairpin = connect_from(&world.host, "beside", ways(6379)[1])?;
        let own = world.host.connect("127.0.0.1:6379")?;
        let streams = [neighbour, hairpin, own];
        let capture = Capture::start(&world.client)?;
        let echo = |text: &str| -> Result<()> {
            let mut stream = &called;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(text.as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            ensure!(line == text, "{line:?} came back for {text:?}");
            Ok(())
        };
        for round in 0..rounds(2, 10) {
            for stream in &streams {
                ping(stream)?;
            }
            echo(&format!("before {round}\n"))?;
            for name in ["caller", "db"] {
                world.host.arctern(&["container", "checkpoint", "--tcp-established", name])?;
            }
            std::thread::scope(|scope| -> Result<()> {
                let echo = scope.spawn(|| echo("meanwhile\n"));
                let own = scope.spawn(|| ping(&streams[2]));
                std::thread::sleep(Duration::from_millis(200));
                ensure!(!echo.is_finished() && !own.is_finished(), "somebody answered");
                for name in ["db", "caller"] {
                    world.host.arctern(&["container", "restore", "--tcp-established", name])?;
                }
                let panicked = |_| anyhow::anyhow!("a client panicked");
                echo.join().map_err(panicked)??;
                own.join().map_err(panicked)?
            })?;
        }
        quiet(&capture.finish()?)?;
        drop(streams);
        world.host.arctern(&["rm", "-f", "-t", "0", "caller", "beside"])?;
        world.end("db")
    })
}

#[test]
fn a_killed_restore_is_made_again() -> Result<(), String> {
    judge("connections::killed-restore", || {
        let world = World::new()?;
        world.redis("db-0")?;
        let stream = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[0])?))?;
        ping(&stream)?;
        let capture = Capture::start(&world.client)?;
        let mut again = 0;
        for round in 0..rounds(3, 10) as u64 {
            let options = ["container", "checkpoint", "--tcp-established", "db-0"];
            world.host.arctern(&options)?;
            let restore = ["container", "restore", "--tcp-established", "db-0"];
            let mut child = world.host.command(&restore).spawn().context("cannot run arctern")?;
            std::thread::sleep(Duration::from_millis(10 + 10 * round));
            let _ = child.kill();
            let base = world.host.dir().to_string_lossy().into_owned();
            for pid in with_argument("arctern-shim", &base) {
                let _ = Process::open(pid).and_then(|shim| shim.signal(Signal::KILL));
            }
            child.wait()?;
            // One whose shim was just being started goes on by itself.
            let output = world.host.attempt(&restore)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() || said.contains("is running"), "{said}");
            again += usize::from(output.status.success());
            ping(&stream)?;
        }
        println!("{again} restores were made again");
        quiet(&capture.finish()?)?;
        world.end("db-0")
    })
}

#[test]
fn connections_that_cannot_go_on_are_refused_by_name() -> Result<(), String> {
    judge("connections::refused", || {
        let world = World::new()?;
        world.redis("db-0")?;
        let stream = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[0])?))?;
        ping(&stream)?;
        let peer = stream.local_addr()?.to_string();
        let refused = |options: &[&str]| -> Result<String> {
            let output = world.host.attempt(options)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains(&peer), "{options:?}: {said}");
            Ok(said)
        };
        // Nobody asked for connections.
        refused(&["container", "checkpoint", "db-0"])?;
        ping(&stream)?;
        world.checkpoint("db-0")?;
        world.host.arctern(&["rm", "--force", "db-0"])?;
        let all = world.host.arctern(&["ps", "-a"])?;
        ensure!(!all.contains("packets held"), "the lock stays:\n{all}");
        // Somebody else has the address now.
        let ip = CONTAINER.to_string();
        let other = ["run", "-d", "--ip", &ip, "--name", "other", "redis", "sleep", "1000"];
        world.host.arctern(&other)?;
        let file = world.archive();
        let restore = ["container", "restore", "--name", "db-1", "--file", &file];
        let said = refused(&[&restore[..], &["--tcp-established"]].concat())?;
        ensure!(said.contains("--tcp-close"), "no hint: {said}");
        ensure!(world.host.arctern(&["ps", "-aq"])?.lines().count() == 1, "something is left");
        // Without its connections it comes back.
        world.host.arctern(&[&restore[..], &["--tcp-close"]].concat())?;
        ping(&world.client.inside(|| Ok(TcpStream::connect(ways(6379)[1])?))?)?;
        world.host.arctern(&["rm", "-f", "-t", "0", "other"])?;
        world.end("db-1")
    })
}

#[test]
fn rules_are_flushed_before_the_restore() -> Result<(), String> {
    judge("connections::flushed", || {
        let world = World::new()?;
        world.redis("db-0")?;
        let stream = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[0])?))?;
        ping(&stream)?;
        let capture = Capture::start(&world.client)?;
        world.checkpoint("db-0")?;
        run(world.host.place().command("nft").args(["flush", "ruleset"]))?;
        std::thread::scope(|scope| -> Result<()> {
            let client = scope.spawn(|| ping(&stream));
            std::thread::sleep(Duration::from_millis(300));
            ensure!(!client.is_finished(), "somebody answered");
            world.restore("db-1")?;
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
        })?;
        quiet(&capture.finish()?)?;
        // The rules are there again, those of the port too.
        let again = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[1])?))?;
        ping(&again)?;
        world.host.arctern(&["rm", "db-0"])?;
        world.end("db-1")
    })
}

#[test]
fn a_lock_ends_with_its_limit() -> Result<(), String> {
    judge("connections::limit", || {
        let world = World::new()?;
        world.redis("db")?;
        world.host.arctern(&[
            "container",
            "checkpoint",
            "--tcp-established",
            "--lock-timeout",
            "2",
            "db",
        ])?;
        ensure!(world.host.arctern(&["ps", "-a"])?.contains("packets held for"), "no lock");
        let begin = Instant::now();
        // Held, and refused when the time is over: by the host, which has no such port then.
        let refused = world.client.inside(|| Ok(TcpStream::connect(ways(6379)[1]).is_err()))?;
        ensure!(refused && begin.elapsed() > Duration::from_secs(1), "{:?}", begin.elapsed());
        ensure!(!world.host.arctern(&["ps", "-a"])?.contains("packets held"), "the lock stays");
        world.host.arctern(&["container", "restore", "--tcp-established", "db"])?;
        ping(&world.client.inside(|| Ok(TcpStream::connect(ways(6379)[1])?))?)?;
        world.end("db")
    })
}

#[test]
fn redis_loses_no_increment() -> Result<(), String> {
    judge("connections::redis", || {
        const CLIENTS: usize = 50;
        let world = World::new()?;
        world.redis("db-0")?;
        let capture = Capture::start(&world.client)?;
        let [direct, published] = ways(6379);
        let pause = Duration::from_millis(5);
        let one = Load::increments(&world.client, direct, "n", CLIENTS / 2, pause)?;
        let two = Load::increments(&world.client, published, "n", CLIENTS / 2, pause)?;
        let moves = rounds(3, 20);
        for round in 0..moves {
            one.wait_for(100)?;
            two.wait_for(100)?;
            world.checkpoint(&format!("db-{round}"))?;
            world.restore(&format!("db-{}", round + 1))?;
            world.host.arctern(&["rm", &format!("db-{round}")])?;
        }
        one.wait_for(100)?;
        two.wait_for(100)?;
        let (one, two) = (one.finish()?, two.finish()?);
        one.check()?;
        two.check()?;
        quiet(&capture.finish()?)?;
        let mut stream = world.host.connect("127.0.0.1:6379")?;
        stream.write_all(b"GET n\r\n")?;
        let mut lines = BufReader::new(&mut stream).lines();
        let value: u64 = lines.nth(1).context("no value")??.parse()?;
        ensure!(value == one.answers + two.answers, "{value}: {one:?} {two:?}");
        ensure!(one.connections + two.connections == CLIENTS as u64, "connections were made anew");
        println!(
            "{value} increments, {moves} moves, gaps {:?} {:?}",
            one.longest_gap, two.longest_gap
        );
        drop(lines);
        world.end(&format!("db-{moves}"))
    })
}

#[test]
fn nginx_serves_on_and_a_download_goes_on() -> Result<(), String> {
    judge("connections::nginx", || {
        const MEGABYTES: u64 = 50;
        let world = World::new()?;
        let slow = world.lab.slow_client(101, "60mbit")?;
        slow.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
        world.host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        let directory = world.host.dir().join("files");
        std::fs::create_dir_all(&directory)?;
        let contents: Vec<u8> = (0..MEGABYTES << 17)
            .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        std::fs::write(directory.join("large"), &contents)?;
        let digest = hexadecimal(&Sha256::digest(&contents));
        let volume = format!("{}:/var/www/html/files:ro", directory.display());
        let ip = CONTAINER.to_string();
        world.host.arctern(&[
            "run", "-d", "-p", "80:80", "--ip", &ip, "-v", &volume, "--name", "web-0", "nginx",
        ])?;
        world.host.http("127.0.0.1:80")?;
        let captures = [Capture::start(&world.client)?, Capture::start(&slow)?];
        let pause = Duration::from_millis(3);
        let loads = ways(80).map(|way| Load::http(&world.client, way, "/", 8, pause));
        let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
        let begin = || Download::start(&slow, ways(80)[1], "/files/large");
        let mut download = begin()?;
        let moves = rounds(3, 10);
        for round in 0..moves {
            for load in &loads {
                load.wait_for(50)?;
            }
            if download.received() > (MEGABYTES - 10) << 20 {
                // The moves take longer than it: another one is in flight then.
                let done = std::mem::replace(&mut download, begin()?);
                ensure!(done.finish()?.sha256 == digest, "the download differs");
                download.wait_for(1)?;
            }
            world.checkpoint(&format!("web-{round}"))?;
            world.restore(&format!("web-{}", round + 1))?;
            world.host.arctern(&["rm", &format!("web-{round}")])?;
        }
        let downloaded = download.finish()?;
        for load in loads {
            load.wait_for(50)?;
            let report = load.finish()?;
            report.check()?;
            println!("{} answers, longest gap {:?}", report.answers, report.longest_gap);
        }
        ensure!(downloaded.sha256 == digest, "the download differs");
        for capture in captures {
            quiet(&capture.finish()?)?;
        }
        world.end(&format!("web-{moves}"))
    })
}
