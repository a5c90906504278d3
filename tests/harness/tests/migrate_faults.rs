//! Moves in the middle of which something goes wrong: one copy runs, nothing that was acknowledged is
//! lost, one documented command at most brings it back, nothing is left. `ARCTERN_SOAK=1`: 200 of them.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::crash;
use arctern_harness::fault::{Fault, Struck};
use arctern_harness::host::run;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::Load;
use arctern_harness::machine::{Machine, await_listener, redis_value, settled};
use arctern_harness::place::Place;
use arctern_harness::random::{Random, rounds};
use arctern_harness::skips::judge;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A redis that keeps nothing on disk.
const REDIS: [&str; 6] = ["redis", "redis-server", "--protected-mode", "no", "--save", ""];

const PORT: u16 = 6379;

/// Faults by turns, each at a random moment of a move of `db`, with clients that count. Gives how many
/// moves did not come about.
fn struck(
    machines: &[Machine; 2],
    (client, server): (&Place, SocketAddr),
    faults: &[Fault],
    each: usize,
) -> Result<usize> {
    await_listener(client, server)?;
    let load = Load::increments(client, server, "count", 4, Duration::from_millis(5))?;
    load.wait_for(50)?;
    let (mut at, mut stayed) = (0, 0);
    let mut ordinary = || -> Result<(Duration, u64)> {
        let begin = Instant::now();
        let moved = machines[at].moved(&machines[1 - at], "db")?;
        at = 1 - at;
        Ok((begin.elapsed(), moved["sent"].as_u64().context("nothing was sent")?))
    };
    // The first one sends the image too.
    ordinary()?;
    let (length, sent) = ordinary()?;
    let mut random = Random::seeded();
    for round in 0..faults.len() * each {
        let fault = faults[round % faults.len()];
        let after = match fault {
            Fault::Damage => Duration::ZERO,
            _ => length.mul_f64(random.below(1000) as f64 / 1000.0),
        };
        let byte = random.below(sent);
        let (from, to) = (&machines[at], &machines[1 - at]);
        let struck = Struck { from, to, name: "db", fault, after, byte };
        let begin = Instant::now();
        let said = struck.run()?;
        let what = || format!("round {round}: {fault:?} after {after:?}, byte {byte}: {said}");
        let end = struck.judge().with_context(what)?;
        load.wait_for(50).with_context(what)?;
        println!(
            "{fault:?} after {after:.2?}: {} in {:.1?}{}",
            if end.moved { "moved" } else { "stayed" },
            begin.elapsed(),
            end.command.map_or_else(String::new, |command| format!(", {command}"))
        );
        match end.moved {
            true => at = 1 - at,
            false => stayed += 1,
        }
    }
    let report = load.finish()?;
    println!("{} increments, longest gap {:?}", report.answers, report.longest_gap);
    report.check()?;
    let value = redis_value(client, server, "count")?;
    ensure!(value == report.answers, "{value} increments, and {} answers", report.answers);
    machines[at].host.arctern(&["rm", "-f", "-t", "0", "db"])?;
    Ok(stayed)
}

#[test]
fn a_fault_at_any_moment_leaves_one_copy_and_loses_nothing() -> Result<(), String> {
    judge("migrate_faults::any", || {
        let lab = Lab::new()?;
        let machines = [Machine::with_disk(&lab, 1, 1024)?, Machine::with_disk(&lab, 2, 1024)?];
        let client = lab.client(100)?;
        machines[0].host.image("redis", &[])?;
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "db"];
        machines[0].host.arctern(&[&run[..], &REDIS].concat())?;
        let faults = [
            Fault::Source,
            Fault::Destination,
            Fault::Both,
            Fault::Ssh,
            Fault::Keeper,
            Fault::Shim,
            Fault::Link,
            Fault::Disk,
            Fault::Damage,
        ];
        let server = SocketAddr::new(address(20).into(), PORT);
        let stayed = struck(&machines, (&client, server), &faults, rounds(2, 20))?;
        ensure!(stayed >= rounds(2, 20), "hardly a fault was in time");
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn a_port_that_is_taken_meanwhile_leaves_one_copy_and_loses_nothing() -> Result<(), String> {
    judge("migrate_faults::port", || {
        let lab = Lab::new()?;
        let machines = [Machine::with_ports(&lab, 1)?, Machine::with_ports(&lab, 2)?];
        let client = lab.client(100)?;
        machines[0].host.image("redis", &[])?;
        let port = format!("{PORT}:{PORT}");
        machines[0]
            .host
            .arctern(&[&["run", "-d", "-p", &port, "--name", "db"][..], &REDIS].concat())?;
        let server = SocketAddr::new(address(1).into(), PORT);
        struck(&machines, (&client, server), &[Fault::Port(PORT)], rounds(2, 20))?;
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn a_killed_dry_run_touches_nothing() -> Result<(), String> {
    judge("migrate::killed-dry-run", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&a.host)?;
        // Nothing that makes children: a parent that waits in vfork seems to stand still.
        let program = "exec sleep 100000";
        a.host.arctern(&["run", "-d", "--name", "c", "tiny", "sh", "-c", program])?;
        let dry = || a.migration(&b, &["--dry-run"], "c");
        let begin = Instant::now();
        run(&mut dry())?;
        let span = begin.elapsed().as_micros() as u64;
        let (mut random, mut killed) = (Random::seeded(), 0);
        for round in 0..rounds(5, 40) {
            let mut child = dry().stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            // The moment of the kill is the point of the test, not a wait for something.
            std::thread::sleep(Duration::from_micros(random.below(span)));
            child.kill()?;
            killed += usize::from(!child.wait()?.success());
            ensure!(crash::alive(&a.host, "c")?, "round {round}: it does not run");
            a.host.arctern(&["exec", "c", "sh", "-c", ":"])?;
            for machine in [&a, &b] {
                machine.host.arctern(&["system", "check", "--repair"])?;
                let left = machine.host.attempt(&["system", "check"])?;
                let text = String::from_utf8_lossy(&left.stdout);
                ensure!(left.status.success() && text.is_empty(), "round {round}: {text}");
            }
            ensure!(b.host.arctern(&["ps", "-a", "-q"])?.is_empty(), "round {round}: it is there");
        }
        println!("{killed} dry runs were killed");
        // It can still go.
        a.moved(&b, "c")?;
        ensure!(crash::alive(&b.host, "c")?, "it has not arrived");
        b.host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        a.end()?;
        b.end()
    })
}

/// An ssh that stops the shim at the destination before the commit gets there, and kills it when that is
/// decided and written down.
const SHIM: &str = r#"#!/usr/bin/env python3
import os, signal, subprocess, sys, time
root = "ROOT"
decided = root + "/migrations"
def shim():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open("/proc/%s/cmdline" % pid, "rb").read().split(b"\0")
        except OSError:
            continue
        if words[0] == b"arctern-shim" and root.encode() in words:
            return int(pid)
ssh = subprocess.Popen(["ssh"] + sys.argv[1:], stdin=subprocess.PIPE)
last, word = b"", b'"commit"'
while True:
    bytes = os.read(0, 1 << 20)
    if not bytes:
        break
    if word in last + bytes:
        victim = shim()
        os.kill(victim, signal.SIGSTOP)
        ssh.stdin.write(bytes)
        ssh.stdin.flush()
        while not (os.path.isdir(decided) and os.listdir(decided)):
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        last = b""
        continue
    ssh.stdin.write(bytes)
    ssh.stdin.flush()
    last = bytes[-len(word):]
ssh.stdin.close()
sys.exit(ssh.wait())
"#;

#[test]
fn what_is_not_let_go_after_the_commit_waits_at_its_destination() -> Result<(), String> {
    judge("migrate_faults::shim-at-commit", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        let client = lab.client(100)?;
        a.host.image("redis", &[])?;
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "db"];
        a.host.arctern(&[&run[..], &REDIS].concat())?;
        let server = SocketAddr::new(address(20).into(), PORT);
        await_listener(&client, server)?;
        let load = Load::increments(&client, server, "count", 4, Duration::from_millis(5))?;
        load.wait_for(50)?;

        let root = b.host.dir().join("root");
        let wrapper = a.host.dir().join("ssh-that-kills");
        fs::write(&wrapper, SHIM.replace("ROOT", &root.to_string_lossy()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let ssh = wrapper.to_string_lossy();
        let output = a.migration(&b, &["--ssh", &ssh], "db").output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(4), "{}: {said}", output.status);
        ensure!(said.contains("arctern container restore --tcp-established db"), "{said}");
        ensure!(a.host.arctern(&["ps", "-a", "-q"])?.is_empty(), "it is here: {said}");
        let left: Vec<_> = fs::read_dir(root.join("migrations"))?.collect();
        ensure!(left.is_empty(), "the move is not forgotten: {left:?}");
        ensure!(settled(&b, "db")? == "checkpointed", "{:?}: {said}", settled(&b, "db")?);

        b.host.arctern(&["container", "restore", "--tcp-established", "db"])?;
        load.wait_for(50)?;
        let report = load.finish()?;
        report.check()?;
        let value = redis_value(&client, server, "count")?;
        ensure!(value == report.answers, "{value} increments, and {} answers", report.answers);
        b.host.arctern(&["rm", "-f", "-t", "0", "db"])?;
        a.end()?;
        b.end()
    })
}
