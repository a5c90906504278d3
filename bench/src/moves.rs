//! A move from host to host: `arctern migrate` beside Podman's checkpoint, copy and restore of the same
//! container.
//!
//! Arctern's hosts are network namespaces with an sshd each, and what counts is the longest time that
//! one of 50 clients waited for an answer. Podman has one host here, so its clients could not go on: what
//! counts is how long the three steps take, during which nothing answers (but for the first
//! milliseconds of the checkpoint).

use crate::containers::{Engine, Podman};
use crate::report::{self, Report, Samples};
use anyhow::{Context, Result};
use arctern_harness::host::run;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::Load;
use arctern_harness::machine::{Machine, await_listener, redis};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

const PEER: &str = "Podman 5.8 + runc + CRIU";
const CASE: &str = "redis 200 MB, a move";

/// Keys of a kilobyte.
const KEYS: &str = "200000";
const FILL: &str = "for i = 1, ARGV[1] do \
    redis.call('SET', 'fill' .. i, string.rep(redis.sha1hex(i), 25)) end";
const SERVER: [&str; 5] = ["redis-server", "--protected-mode", "no", "--save", ""];

/// Measures moves, if their name contains `only`.
pub fn measure(only: &str, rounds: usize, report: &mut Report) -> Result<()> {
    if !CASE.contains(only) {
        return Ok(());
    }
    let (mut gaps, mut steps) = (Samples::new(), Samples::new());
    let ours = arctern(rounds, &mut gaps).err().map(|e| format!("{e:#}"));
    let theirs = podman(rounds, &mut steps).err().map(|e| format!("{e:#}"));
    let missing = report::missing(ours.as_deref(), theirs.as_deref());
    report.add(CASE, "longest gap", PEER, (&gaps, &steps), Some(0.1), missing);
    Ok(())
}

/// The longest gap between answers of each move.
fn arctern(rounds: usize, gaps: &mut Samples) -> Result<()> {
    let lab = Lab::new()?;
    let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
    let client = lab.client(100)?;
    for machine in &machines {
        machine.host.image("redis", &[])?;
    }
    let start = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "db", "redis"];
    machines[0].host.arctern(&[&start[..], &SERVER].concat())?;
    let server = SocketAddr::new(address(20).into(), 6379);
    await_listener(&client, server)?;
    redis(&client, server, &["EVAL", FILL, "0", KEYS])?;
    let load = Load::increments(&client, server, "count", 50, Duration::from_millis(5))?;
    for round in 0..=rounds {
        load.wait_for(200)?;
        let _ = load.take_longest_gap();
        let (from, to) = (&machines[round % 2], &machines[(round + 1) % 2]);
        let moved = from.moved(to, "db").with_context(|| format!("move {round}"))?;
        load.wait_for(200)?;
        let gap = load.take_longest_gap();
        eprintln!("move {round}: longest gap {gap:?}; {}", summary(&moved));
        if round > 0 {
            gaps.push(gap);
        }
    }
    load.finish()?.check()?;
    machines[(rounds + 1) % 2].host.arctern(&["rm", "-f", "-t", "0", "db"])?;
    machines.into_iter().try_for_each(Machine::end)
}

fn summary(moved: &serde_json::Value) -> String {
    let ms = |name: &str| moved[name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    format!(
        "down {:.1} ms: capture {:.1}, send {:.1}, build {:.1}, hand over {:.1}",
        ms("downtime_us"),
        ms("capture_us"),
        ms("sending_us"),
        ms("building_us"),
        ms("commit_us")
    )
}

/// How long checkpoint, copy and restore take together.
fn podman(rounds: usize, steps: &mut Samples) -> Result<()> {
    let share = tempfile::Builder::new().prefix("arctern-bench-").tempdir_in("/var/tmp")?;
    let image = arctern_harness::host::rootfs("redis")?;
    let name = share.path().join("image.tar");
    std::fs::hard_link(&image, &name).or_else(|_| std::fs::copy(&image, &name).map(|_| ()))?;
    let podman = Podman::start(share.path())?;
    let call = |arguments: &[&str]| run(podman.command(arguments).stdin(Stdio::null()));
    call(&["import", "/tmp/share/image.tar", "bench-redis"])?;
    let _ = call(&["rm", "-f", "-t", "0", "bench"]);
    call(
        &[&["run", "-d", "--user", "0:0", "--name", "bench", "bench-redis"][..], &SERVER].concat(),
    )?;
    let ask = |words: &[&str]| call(&[&["exec", "bench", "redis-cli"], words].concat());
    let begin = Instant::now();
    while ask(&["PING"]).is_err() && begin.elapsed() < Duration::from_secs(20) {}
    ask(&["EVAL", FILL, "0", KEYS])?;
    let archive = "/tmp/share/bench.tar";
    let (from, to) = (share.path().join("bench.tar"), share.path().join("copy.tar"));
    for round in 0..=rounds {
        let begin = Instant::now();
        call(&["container", "checkpoint", "--compress", "none", "--export", archive, "bench"])?;
        std::fs::copy(&from, &to)?;
        let stopped = begin.elapsed();
        // What the other host would not have.
        call(&["rm", "bench"])?;
        let begin = Instant::now();
        call(&["container", "restore", "--import", "/tmp/share/copy.tar"])?;
        ask(&["PING"])?;
        let took = stopped + begin.elapsed();
        eprintln!("Podman, round {round}: {took:?}");
        if round > 0 {
            steps.push(took);
        }
    }
    call(&["rm", "-f", "-t", "0", "bench"]).map(drop)
}
