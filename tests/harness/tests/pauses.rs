//! How long clients wait when a container is frozen for a while: hardly longer than it was frozen.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::host::{Host, run};
use arctern_harness::lab::{Lab, address};
use arctern_harness::machine::Machine;
use arctern_harness::place::Place;
use arctern_harness::relay::Wire;
use arctern_harness::skips::judge;
use arctern_harness::travel::{Lan, Traveller};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);

/// How long after the program was resumed a client may wait.
const GRACE: Duration = Duration::from_millis(30);

/// A server that knows how long it stood still. `ping`: an answer. `flow`: a line every 2 ms from
/// then on. `still`: the longest time between two looks at the clock since the last such question, and
/// when it ended, in microseconds.
const SERVER: &str = r#"
import socket, threading, time
still = (0, 0)
def look():
    global still
    last = time.time()
    while True:
        time.sleep(0.0005)
        now = time.time()
        still = max(still, (now - last, now))
        last = now
def flow(c):
    n = 0
    while True:
        c.sendall(b"%d\n" % n)
        n += 1
        time.sleep(0.002)
def serve(c):
    global still
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for line in c.makefile("rb"):
        if line == b"flow\n":
            threading.Thread(target=flow, args=(c,)).start()
        elif line == b"still\n":
            c.sendall(b"%d %d\n" % (still[0] * 1e6, still[1] * 1e6))
            still = (0, 0)
        else:
            c.sendall(b"pong\n")
threading.Thread(target=look).start()
s = socket.create_server(("0.0.0.0", 7), backlog=64)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],)).start()
"#;

/// A connection that is asked line by line.
struct Line(BufReader<TcpStream>);

impl Line {
    fn open(place: &Place, to: SocketAddr) -> Result<Line> {
        let stream = place.inside(|| TcpStream::connect(to).context("cannot connect"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Line(BufReader::new(stream)))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(text.as_bytes())?)
    }

    fn next(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the connection ended");
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, text: &str) -> Result<String> {
        self.send(text)?;
        self.next()
    }
}

/// The longest time without an answer, and its end.
#[derive(Clone, Copy)]
struct Gap {
    longest: Duration,
    last: Instant,
    end: SystemTime,
}

impl Gap {
    fn new() -> Gap {
        Gap { longest: Duration::ZERO, last: Instant::now(), end: SystemTime::now() }
    }

    fn answer(&mut self) {
        let gap = self.last.elapsed();
        self.last = Instant::now();
        if gap > self.longest {
            (self.longest, self.end) = (gap, SystemTime::now());
        }
    }
}

/// How long one freeze lasted, and when each client had its next answer after that.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
struct Pauses {
    /// From the last instruction of the program before to the first one after it.
    still: Duration,
    /// Asks all the time.
    steady: Duration,
    /// Asked once, while the container was frozen.
    once: Duration,
    /// Is sent something all the time, and could not confirm what came last before the freeze.
    listener: Duration,
    /// Was sent something all the time and could not confirm it, and asked once, while the container was
    /// frozen: what it sent acknowledges what the restored connection has yet to send again.
    mute: Duration,
    /// How much longer the one that asks all the time waited than the program stood still.
    longer: Duration,
}

/// Stops the clients when it is dropped.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How clients reach the container, and where it is restored.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// At its address, on the same host.
    Address,
    /// Through a published port, on the same host.
    Published,
    /// On another host of the segment.
    Moves(Lan),
}

struct World {
    _lab: Lab,
    hosts: Vec<Host>,
    client: Place,
    deaf: Place,
    mute: Place,
    to: SocketAddr,
}

impl World {
    fn new(way: Way) -> Result<World> {
        let lab = Lab::new()?;
        let (client, deaf, mute) = (lab.client(100)?, lab.client(101)?, lab.client(102)?);
        let server = ["python", "python3", "-c", SERVER];
        let (hosts, to) = match way {
            Way::Address | Way::Published => {
                let host = lab.host(1)?;
                for place in [&client, &deaf, &mute] {
                    place.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
                }
                host.image("python", &[])?;
                let ip = CONTAINER.to_string();
                let run = ["run", "-d", "-p", "7:7", "--ip", &ip, "--name", "echo"];
                host.arctern(&[&run[..], &server].concat())?;
                host.connect("127.0.0.1:7")?;
                let to = if matches!(way, Way::Published) { address(1) } else { CONTAINER };
                (vec![host], to)
            }
            Way::Moves(lan) => {
                let hosts = vec![lan.host(&lab, 1)?, lan.host(&lab, 2)?];
                hosts[0].image("python", &[])?;
                let ip = address(20).to_string();
                let run = ["run", "-d", "--network", "lan", "--ip", &ip, "--name", "echo"];
                hosts[0].arctern(&[&run[..], &server].concat())?;
                client.await_listener(SocketAddr::new(address(20).into(), 7))?;
                (hosts, address(20))
            }
        };
        Ok(World { _lab: lab, hosts, client, deaf, mute, to: SocketAddr::new(to.into(), 7) })
    }

    /// Whether one place hears what comes from the server, and what another says gets there.
    fn pass(&self, passes: bool) -> Result<()> {
        for (place, hook, port) in [(&self.deaf, "input", "sport"), (&self.mute, "output", "dport")]
        {
            let rules = match passes {
                true => vec!["delete table inet cut".to_owned()],
                false => vec![
                    "add table inet cut".to_owned(),
                    format!("add chain inet cut packets {{ type filter hook {hook} priority 0; }}"),
                    format!("add rule inet cut packets tcp {port} 7 drop"),
                ],
            };
            for rule in rules {
                run(place.command("nft").args(rule.split_whitespace()))?;
            }
        }
        Ok(())
    }

    /// Checkpoints or restores it on its host.
    fn here(&self, command: &str) -> Result<()> {
        self.hosts[0].arctern(&["container", command, "--tcp-established", "echo"]).map(drop)
    }

    /// Freezes the container, for `more` longer than it takes anyway.
    fn freeze(&self, traveller: &mut Option<Traveller<'_>>, more: Duration) -> Result<Pauses> {
        let mut steady = Line::open(&self.client, self.to)?;
        let mut once = Line::open(&self.client, self.to)?;
        let mut listener = Line::open(&self.deaf, self.to)?;
        let mut mute = Line::open(&self.mute, self.to)?;
        listener.send("flow\n")?;
        mute.send("flow\n")?;
        for line in [&mut steady, &mut once] {
            line.ask("ping\n")?;
            line.ask("still\n")?;
        }
        let stop = AtomicBool::new(false);
        let stopped = || stop.load(Ordering::Relaxed);
        let (gaps, [once_answered, mute_answered]) = std::thread::scope(|scope| -> Result<_> {
            // Whatever fails, the clients end.
            let _stopping = Stopping(&stop);
            let steady = scope.spawn(|| -> Result<Gap> {
                let mut gap = Gap::new();
                while !stopped() {
                    steady.ask("ping\n")?;
                    gap.answer();
                }
                Ok(gap)
            });
            let listener = scope.spawn(|| -> Result<Gap> {
                let (mut gap, mut expected) = (Gap::new(), None);
                while !stopped() {
                    let number: u64 = listener.next()?.parse()?;
                    ensure!(expected.is_none_or(|n| n == number), "{expected:?} is {number}");
                    expected = Some(number + 1);
                    gap.answer();
                }
                Ok(gap)
            });
            std::thread::sleep(Duration::from_millis(50));
            self.pass(false)?;
            match traveller {
                Some(traveller) => traveller.leave()?,
                None => self.here("checkpoint")?,
            }
            self.pass(true)?;
            let answers = [&mut once, &mut mute].map(|line| {
                scope.spawn(move || -> Result<SystemTime> {
                    line.send("ping\n")?;
                    while line.next()? != "pong" {}
                    Ok(SystemTime::now())
                })
            });
            std::thread::sleep(more);
            match traveller {
                Some(traveller) => traveller.arrive()?,
                None => self.here("restore")?,
            }
            let panicked = |_| anyhow::anyhow!("a client panicked");
            let [once, mute] = answers;
            let answered = [once.join().map_err(panicked)??, mute.join().map_err(panicked)??];
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            let gaps = [steady.join().map_err(panicked)??, listener.join().map_err(panicked)??];
            Ok((gaps, answered))
        })?;
        let still = once.ask("still\n")?;
        let (still, resumed) = still.split_once(' ').context("no time")?;
        let resumed = SystemTime::UNIX_EPOCH + Duration::from_micros(resumed.parse()?);
        let after = |time: SystemTime| time.duration_since(resumed).unwrap_or_default();
        let still = Duration::from_micros(still.parse()?);
        Ok(Pauses {
            still,
            longer: gaps[0].longest.saturating_sub(still),
            steady: after(gaps[0].end),
            once: after(once_answered),
            mute: after(mute_answered),
            listener: after(gaps[1].end),
        })
    }
}

fn short(way: Way) -> Result<()> {
    let world = World::new(way)?;
    let mut traveller = match &world.hosts[..] {
        [a, b] => Some(Traveller::new([a, b], "echo")),
        _ => None,
    };
    if let Some(traveller) = &mut traveller {
        // With the image, which takes its time.
        traveller.go(Duration::ZERO)?;
    }
    for more in [0, 100, 300, 1000] {
        let mut tried = Vec::new();
        // On a machine that does other things too, one of three has to be quick.
        let good = loop {
            let pauses = world.freeze(&mut traveller, Duration::from_millis(more))?;
            let Pauses { steady, once, listener, mute, longer, .. } = pauses;
            let longest = steady.max(once).max(listener).max(mute).max(longer);
            tried.push(pauses);
            if longest <= GRACE || tried.len() == 3 {
                break longest <= GRACE;
            }
        };
        println!("{tried:?}");
        ensure!(good, "a client waited {GRACE:?} longer than the container: {tried:?}");
    }
    match traveller {
        Some(traveller) => traveller.end(),
        None => world.hosts[0].arctern(&["rm", "-f", "-t", "0", "echo"]).map(drop),
    }
}

/// The shortest freeze that a command makes, and how much longer clients waited.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
struct Brief {
    still: Duration,
    /// Asks all the time.
    steady: Duration,
    /// Asked once, while the container was frozen: the last of them.
    once: Duration,
    /// How many of those there were.
    asked: usize,
    /// Is sent something all the time over a long wire, so that some of it is always unacknowledged.
    far: Duration,
}

/// Clients of which some ask in any short while.
const ASKING: u64 = 20;

fn brief(near: &Place, far: &Place, to: SocketAddr, act: impl Fn() -> Result<()>) -> Result<Brief> {
    let mut steady = Line::open(near, to)?;
    let mut flow = Line::open(far, to)?;
    flow.send("flow\n")?;
    let asking = (0..ASKING).map(|_| Line::open(near, to)).collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed);
    steady.ask("still\n")?;
    let (gaps, asked) = std::thread::scope(|scope| -> Result<_> {
        let _stopping = Stopping(&stop);
        let flow = scope.spawn(|| -> Result<Gap> {
            let mut gap = Gap::new();
            while !stopped() {
                flow.next()?;
                gap.answer();
            }
            Ok(gap)
        });
        let steady = scope.spawn(|| -> Result<Gap> {
            let mut gap = Gap::new();
            while !stopped() {
                steady.ask("ping\n")?;
                gap.answer();
            }
            Ok(gap)
        });
        let ask = |(number, mut line): (usize, Line)| {
            scope.spawn(move || -> Result<Vec<[SystemTime; 2]>> {
                let mut answers = Vec::new();
                std::thread::sleep(Duration::from_millis(number as u64));
                while !stopped() {
                    let sent = SystemTime::now();
                    line.ask("ping\n")?;
                    answers.push([sent, SystemTime::now()]);
                    std::thread::sleep(Duration::from_millis(ASKING));
                }
                Ok(answers)
            })
        };
        let asking: Vec<_> = asking.into_iter().enumerate().map(ask).collect();
        std::thread::sleep(Duration::from_millis(200));
        act()?;
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a client panicked");
        let mut asked = Vec::new();
        for one in asking {
            asked.extend(one.join().map_err(panicked)??);
        }
        let gaps = [steady.join().map_err(panicked)??, flow.join().map_err(panicked)??];
        Ok((gaps, asked))
    })?;
    let still = steady.ask("still\n")?;
    let (still, resumed) = still.split_once(' ').context("no time")?;
    let still = Duration::from_micros(still.parse()?);
    let resumed = SystemTime::UNIX_EPOCH + Duration::from_micros(resumed.parse()?);
    let frozen = |[sent, _]: &&[SystemTime; 2]| *sent >= resumed - still && *sent < resumed;
    let waits = asked.iter().filter(frozen).map(|[_, answered]| answered.duration_since(resumed));
    let waits: Vec<Duration> = waits.map(Result::unwrap_or_default).collect();
    Ok(Brief {
        still,
        steady: gaps[0].longest.saturating_sub(still),
        once: waits.iter().copied().max().context("nobody asked while it was frozen")?,
        asked: waits.len(),
        far: gaps[1].longest.saturating_sub(still),
    })
}

/// Some of the shortest freezes, of which one of three has to be quick.
fn briefly(
    near: &Place,
    far: &Place,
    to: SocketAddr,
    mut act: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut tried = Vec::new();
    for number in 0..3 {
        let act = std::cell::RefCell::new(&mut act);
        tried.push(brief(near, far, to, || (act.borrow_mut())(number))?);
    }
    println!("{tried:?}");
    let good = |brief: &Brief| brief.steady.max(brief.once).max(brief.far) <= GRACE;
    ensure!(tried.iter().any(good), "a client waited {GRACE:?} longer: {tried:?}");
    Ok(())
}

const LONG_WIRE: Wire = Wire { delay: Duration::from_millis(15), loss: 0 };

/// A container that goes on stands still for some 20 ms: no restore is that short.
#[test]
fn clients_hardly_notice_a_container_that_goes_on() -> Result<(), String> {
    judge("pauses::stays", || {
        let lab = Lab::new()?;
        let (near, host) = (lab.client(100)?, lab.host(1)?);
        let (far, _wire) = lab.far_client(101, LONG_WIRE)?;
        for place in [&near, &far] {
            place.ip(&format!("route add 10.88.0.0/16 via {}", address(1)))?;
        }
        host.image("python", &[])?;
        let ip = CONTAINER.to_string();
        let run = ["run", "-d", "-p", "7:7", "--ip", &ip, "--name", "echo"];
        host.arctern(&[&run[..], &["python", "python3", "-c", SERVER]].concat())?;
        host.connect("127.0.0.1:7")?;
        let file = host.dir().join("echo.tar").to_string_lossy().into_owned();
        for to in [CONTAINER, address(1)] {
            briefly(&near, &far, SocketAddr::new(to.into(), 7), |_| {
                let stays = ["--tcp-established", "--leave-running", "--file", &file, "echo"];
                host.arctern(&[&["container", "checkpoint"][..], &stays].concat())?;
                Ok(std::fs::remove_file(host.seen(std::path::Path::new(&file)))?)
            })?;
        }
        host.arctern(&["rm", "-f", "-t", "0", "echo"]).map(drop)
    })
}

/// From host to host the shortest freeze is that of `migrate`.
#[test]
fn clients_hardly_notice_a_migration() -> Result<(), String> {
    judge("pauses::migrates", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let near = lab.client(100)?;
        let (far, wire) = lab.far_client(101, LONG_WIRE)?;
        machines[0].host.image("python", &[])?;
        let ip = address(20).to_string();
        let run = ["run", "-d", "--network", "lan", "--ip", &ip, "--name", "echo"];
        let server = ["python", "python3", "-c", SERVER];
        machines[0].host.arctern(&[&run[..], &server].concat())?;
        let to = SocketAddr::new(address(20).into(), 7);
        near.await_listener(to)?;
        briefly(&near, &far, to, |number| {
            machines[number % 2].moved(&machines[1 - number % 2], "echo").map(drop)
        })?;
        machines[1].host.arctern(&["rm", "-f", "-t", "0", "echo"])?;
        drop(wire);
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn clients_at_the_address_wait_as_long_as_the_container() -> Result<(), String> {
    judge("pauses::address", || short(Way::Address))
}

#[test]
fn clients_at_a_published_port_wait_as_long_as_the_container() -> Result<(), String> {
    judge("pauses::published", || short(Way::Published))
}

#[test]
fn clients_wait_as_long_as_a_container_that_moves() -> Result<(), String> {
    judge("pauses::plain-bridge", || short(Way::Moves(Lan::PlainBridge)))
}

#[test]
fn clients_wait_as_long_as_a_container_that_moves_on_macvlan() -> Result<(), String> {
    judge("pauses::macvlan", || short(Way::Moves(Lan::Macvlan)))
}
