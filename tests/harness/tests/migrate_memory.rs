//! `arctern migrate` of programs with much memory: it goes ahead while they run.
//! `ARCTERN_SOAK=1`: 200 MB and ten moves.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::Load;
use arctern_harness::machine::{Machine, await_listener, redis, redis_value, settled, status};
use arctern_harness::place::Place;
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Values of 1000 bytes that no compression makes nothing of.
const FILL: &str = "for i = 1, ARGV[1] do \
    redis.call('SET', 'fill' .. i, string.rep(redis.sha1hex(i), 25)) end";

fn milliseconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN) / 1000.0
}

/// Where the time of a freeze went, as `--json` has it: phases of a millisecond and more.
fn phases(freeze: &Value) -> String {
    let mut text = String::new();
    for side in ["source", "destination", "builder", "release"] {
        text.push_str(&format!("\n  {side}:"));
        for lap in freeze[side].as_array().into_iter().flatten() {
            if lap["us"].as_u64() >= Some(1000) {
                let name = lap["phase"].as_str().unwrap_or_default();
                text.push_str(&format!(" {name} {:.1}", milliseconds(&lap["us"])));
            }
        }
    }
    text
}

#[test]
fn redis_moves_with_its_memory_while_clients_write() -> Result<(), String> {
    judge("migrate_memory::redis", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let client = lab.client(100)?;
        for machine in &machines {
            machine.host.image("redis", &[])?;
        }
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "db", "redis"];
        let command = ["redis-server", "--protected-mode", "no", "--save", ""];
        machines[0].host.arctern(&[&run[..], &command].concat())?;
        let server = SocketAddr::new(address(20).into(), 6379);
        await_listener(&client, server)?;
        let keys = rounds(20_000, 200_000);
        redis(&client, server, &["EVAL", FILL, "0", &keys.to_string()])?;

        let pause = Duration::from_millis(5);
        let counted = Load::increments(&client, server, "count", 25, pause)?;
        let set = Load::sets(&client, server, "last", 25, pause)?;
        let mut gaps = Vec::new();
        for number in 0..rounds(4, 10) {
            counted.wait_for(100)?;
            set.wait_for(100)?;
            let _ = (counted.take_longest_gap(), set.take_longest_gap());
            let (from, to) = (&machines[number % 2], &machines[(number + 1) % 2]);
            let moved = from.moved(to, "db").with_context(|| format!("move {number}"))?;
            counted.wait_for(100).with_context(|| format!("after move {number}"))?;
            set.wait_for(100).with_context(|| format!("after move {number}"))?;
            let gap = counted.take_longest_gap().max(set.take_longest_gap());
            println!(
                "move {number}: longest gap {gap:?}, down {:.1} ms (capture {:.1}, send {:.1}, \
                 build {:.1}, hand over {:.1}), {} round(s), {} kB in the freeze{}",
                milliseconds(&moved["downtime_us"]),
                milliseconds(&moved["capture_us"]),
                milliseconds(&moved["sending_us"]),
                milliseconds(&moved["building_us"]),
                milliseconds(&moved["commit_us"]),
                moved["rounds"].as_array().map_or(0, Vec::len),
                moved["rest"].as_u64().unwrap_or(0) / 1000,
                phases(&moved["freeze"]),
            );
            let ahead: u64 = (moved["rounds"].as_array().into_iter().flatten())
                .filter_map(|round| round["sent"].as_u64())
                .sum();
            ensure!(ahead > keys as u64 * 1000, "{ahead} bytes went ahead: {moved}");
            let rest = moved["rest"].as_u64().context("no rest")?;
            ensure!(rest < ahead / 2, "most of it went in the freeze: {moved}");
            gaps.push(gap);
        }
        gaps.sort();
        println!("longest gaps {gaps:?}, median {:?}", gaps[gaps.len() / 2]);
        let (counted, set) = (counted.finish()?, set.finish()?);
        counted.check()?;
        set.check()?;
        let value = redis_value(&client, server, "count")?;
        ensure!(value == counted.answers, "{value} increments, and {} answers", counted.answers);
        let values = (0..25).map(|n| redis_value(&client, server, &format!("last{n}")));
        let values = values.sum::<Result<u64>>()?;
        ensure!(values == set.answers, "values sum to {values} after {} answers", set.answers);
        let size = redis(&client, server, &["DBSIZE"])?;
        ensure!(size == format!(":{}", keys + 26), "{size} keys");
        let check = "for i = 1, ARGV[1] do if redis.call('GET', 'fill' .. i) ~= \
            string.rep(redis.sha1hex(i), 25) then return i end end return 0";
        let wrong = redis(&client, server, &["EVAL", check, "0", &keys.to_string()])?;
        ensure!(wrong == ":0", "key fill{} differs", &wrong[1..]);
        machines[rounds(4, 10) % 2].host.arctern(&["rm", "-f", "-t", "0", "db"])?;
        machines.into_iter().try_for_each(Machine::end)
    })
}

/// Writes 48 MiB over and over, a number of the round into each page, and answers with the number of
/// rounds and of pages that do not have it. One file that it does not write, one that it writes in each
/// round, and one that it makes in each round and removes in the next, are as wrong as pages.
const WRITER: &str = r#"
import mmap, os, socket, threading
size = 48 << 20
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
lock = threading.Lock()
done = 0
still = bytes(range(256)) * 8192
for name in ("still", "written", "made0"):
    with open("/var/tmp/" + name, "wb") as file:
        file.write(still)
def files():
    at = done % 4096
    with open("/var/tmp/still", "rb") as a, open("/var/tmp/written", "rb") as b:
        wrong = (a.read() != still) + (b.read() != still[:at] + b"x" + still[at + 1:] if done else 0)
    return wrong + (sorted(os.listdir("/var/tmp")) != sorted(["made%d" % done, "still", "written"]))
def write():
    global done
    while True:
        with lock:
            for at in range(0, size, 4096):
                memory[at:at + 8] = (done + 1).to_bytes(8, "little")
            done += 1
            with open("/var/tmp/written", "r+b") as file:
                file.write(still[:4097])
                file.seek(done % 4096)
                file.write(b"x")
            os.rename("/var/tmp/made%d" % (done - 1), "/var/tmp/made%d" % done)
threading.Thread(target=write, daemon=True).start()
server = socket.create_server(("0.0.0.0", 7), backlog=64)
while True:
    client = server.accept()[0]
    with client, lock:
        wrong = sum(memory[at:at + 8] != done.to_bytes(8, "little") for at in range(0, size, 4096))
        client.sendall(b"%d %d\n" % (done, wrong + files()))
"#;

fn writer_says(client: &Place, server: SocketAddr) -> Result<u64> {
    let line = client.inside(|| {
        let stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    })?;
    let (done, wrong) = line.trim().split_once(' ').context("no answer")?;
    ensure!(wrong == "0", "{wrong} pages are not as they were written");
    Ok(done.parse()?)
}

#[test]
fn what_writes_faster_than_the_link_carries_stays_unless_its_freeze_is_accepted()
-> Result<(), String> {
    judge("migrate_memory::writer", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        let client = lab.client(100)?;
        for machine in [&a, &b] {
            machine.host.image("python", &[])?;
            lab.shape(machine.host.place(), "eth0", "100mbit")?;
        }
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "writer"];
        a.host.arctern(&[&run[..], &["python", "python3", "-c", WRITER]].concat())?;
        let server = SocketAddr::new(address(20).into(), 7);
        await_listener(&client, server)?;
        let before = writer_says(&client, server)?;

        let output = a.migrate(&b, &["--max-downtime", "1s", "--rounds", "3"], "writer")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{text}");
        ensure!(output.status.code() == Some(125), "it moved: {text}");
        ensure!(text.contains("it would stand still for about"), "{text}");
        ensure!(text.contains("runs on here"), "{text}");
        ensure!(status(&a, "writer")? == "running", "it does not run any more");
        ensure!(settled(&b, "writer")?.is_empty(), "something of it is left there");
        let between = writer_says(&client, server)?;
        ensure!(between > before, "it did not go on");

        let moved = a.moved_with(&b, &["--max-downtime", "60s", "--rounds", "2"], "writer")?;
        println!("{moved:#}");
        ensure!(moved["downtime_us"].as_u64().context("no downtime")? < 60_000_000, "{moved}");
        ensure!(
            moved["files"].as_u64().context("no files")? > 2 << 20,
            "no files went ahead: {moved}"
        );
        ensure!(moved["rounds"].as_array().context("no rounds")?.len() <= 2, "{moved}");
        ensure!(writer_says(&client, server)? >= between, "it went back");
        b.host.arctern(&["rm", "-f", "-t", "0", "writer"])?;
        a.end()?;
        b.end()
    })
}
