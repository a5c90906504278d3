//! Containers that talk to each other and move in one command. `ARCTERN_SOAK=1` makes it ten moves.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::{Capture, Packet};
use arctern_harness::crash::{self, alive};
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load};
use arctern_harness::machine::{
    Machine, NGINX, Website, await_listener, redis_value, settled, status,
};
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use serde_json::Value;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

/// Hands everything on to the other one and keeps its connection open; says so when that fails, and
/// asks nobody again.
const FRONT: &str = r#"
user www-data;
events {}
http {
    access_log /var/log/nginx/front.log;
    upstream back { server 192.0.2.21:80; keepalive 16; }
    server {
        listen 80;
        keepalive_requests 1000000;
        location / {
            proxy_pass http://back;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
            proxy_max_temp_file_size 0;
        }
    }
}
"#;

const BACK: &str = r#"
user www-data;
events {}
http {
    access_log /var/log/nginx/back.log;
    server {
        listen 80;
        root /var/www/html;
        keepalive_requests 1000000;
    }
}
"#;

/// A redis that keeps nothing on disk.
const REDIS: [&str; 6] = ["redis", "redis-server", "--protected-mode", "no", "--save", ""];

const PAIR: [&str; 2] = ["front", "back"];

fn together(from: &Machine, to: &Machine, options: &[&str], containers: &[&str]) -> Result<Output> {
    from.migration_of(to, options, containers).output().context("cannot run arctern")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What each container of a pair is at on a machine.
fn states(machine: &Machine, names: [&str; 2]) -> Result<[String; 2]> {
    Ok([settled(machine, names[0])?, settled(machine, names[1])?])
}

/// Two servers of which one asks the other, with a volume of both.
fn start_pair(machine: &Machine, volume: &str) -> Result<()> {
    for (name, config, ip) in [("front", FRONT, "192.0.2.20"), ("back", BACK, "192.0.2.21")] {
        let file = machine.host.dir().join(format!("{name}.conf"));
        std::fs::write(&file, config)?;
        let config = format!("{}:/etc/nginx/nginx.conf:ro", file.display());
        let run = ["run", "-d", "--network", "lan", "--ip", ip, "--name", name, "-v", &config];
        let volumes = ["-v", volume, "-v", "logs:/var/log/nginx", "nginx"];
        machine.host.arctern(&[&run[..], &volumes].concat())?;
    }
    Ok(())
}

#[test]
fn two_that_talk_to_each_other_go_to_and_fro_under_load() -> Result<(), String> {
    judge("migrate_together::pair", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let client = lab.client(100)?;
        let slow = lab.slow_client(101, "40mbit")?;
        let Website { digest, volume } = Website::new(&machines[0].host)?;
        start_pair(&machines[0], &volume)?;
        let [front, back] = [20, 21].map(|number| SocketAddr::new(address(number).into(), 80));
        await_listener(&client, back)?;
        await_listener(&client, front)?;

        let capture = Capture::start(&client)?;
        // What the two say to each other passes the hosts.
        let between =
            [Capture::start(machines[0].host.place())?, Capture::start(machines[1].host.place())?];
        let pause = Duration::from_millis(5);
        let load = Load::http(&client, front, "/", 8, pause)?;
        let direct = Load::http(&client, back, "/", 4, pause)?;
        // Through both of them.
        let mut download = Download::start(&slow, front, "/files/large")?;
        load.wait_for(100)?;
        let mut downtimes = Vec::new();
        for round in 0..rounds(2, 10) {
            if download.is_finished() {
                let next = Download::start(&slow, front, "/files/large")?;
                let done = std::mem::replace(&mut download, next);
                ensure!(done.finish()?.sha256 == digest, "the download differs");
            }
            let more = download.received() + (1 << 20);
            download.wait_for(more.min(40 << 20))?;
            let (from, to) = (&machines[round % 2], &machines[(round + 1) % 2]);
            let output = together(from, to, &["--json"], &PAIR)?;
            ensure!(output.status.success(), "move {round}: {}", text(&output.stderr));
            let moved: Value = serde_json::from_slice(&output.stdout)?;
            for (place, name) in PAIR.iter().enumerate() {
                let one = &moved[place];
                ensure!(one["plan"]["container"] == *name, "move {round}: {moved}");
                downtimes.push(one["downtime_us"].as_u64().context("no downtime")? / 1000);
                ensure!(status(from, name)?.is_empty() && status(to, name)? == "running");
            }
            load.wait_for(100).with_context(|| format!("after move {round}"))?;
            direct.wait_for(100).with_context(|| format!("after move {round}"))?;
            // Volumes stay where they were, too.
            from.host.arctern(&["volume", "rm", "logs"])?;
        }
        let downloaded = download.finish().context("the download")?;
        let (report, direct) = (load.finish()?, direct.finish()?);
        let seen = capture.finish()?;
        println!(
            "downtimes {downtimes:?} ms; {} answers by both, longest gap {:?}; {} by one, {:?}; of the \
             download {:?}",
            report.answers,
            report.longest_gap,
            direct.answers,
            direct.longest_gap,
            downloaded.longest_gap
        );
        report.check()?;
        direct.check()?;
        ensure!(downloaded.sha256 == digest, "the download differs");
        ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
        ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
        let both = [front.ip(), back.ip()];
        for capture in between {
            let seen = capture.finish()?;
            let own = |p: &&Packet| both.contains(&p.from.ip()) && both.contains(&p.to.ip());
            let resets: Vec<&Packet> = seen.resets.iter().filter(own).collect();
            ensure!(resets.is_empty(), "resets between them: {resets:?}");
        }
        let last = &machines[rounds(2, 10) % 2].host;
        // Each wrote into the volume all the time, and what it wrote is there once.
        let written = |name, log: &str| -> Result<u64> {
            let count = ["exec", name, "grep", "-c", "GET / ", log];
            Ok(last.arctern(&count)?.trim().parse()?)
        };
        let by_front = written("back", "/var/log/nginx/front.log")?;
        ensure!(by_front == report.answers, "{by_front} lines, {} answers", report.answers);
        let (by_back, asked) = (written("front", "/var/log/nginx/back.log")?, report.answers);
        ensure!(by_back == asked + direct.answers, "{by_back} lines of {asked} and {direct:?}");
        last.arctern(&["rm", "-f", "-t", "0", "front", "back"])?;
        last.arctern(&["volume", "rm", "logs"])?;
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn what_is_in_the_way_of_one_keeps_all() -> Result<(), String> {
    judge("migrate_together::blocked", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        crash::tiny_image(&a.host)?;
        let program = "exec sleep 1000000";
        for name in ["one", "two", "three"] {
            let run = ["run", "-d", "--name", name, "-v", "shared:/mnt", "tiny", "sh", "-c"];
            a.host.arctern(&[&run[..], &[program]].concat())?;
        }
        let refused = |containers: &[&str], parts: &[&str]| -> Result<()> {
            let output = together(&a, &b, &[], containers)?;
            let said = text(&output.stderr);
            ensure!(output.status.code() == Some(125), "{said}");
            parts.iter().try_for_each(|part| {
                ensure!(said.contains(part), "{part} is not in {said}");
                Ok(())
            })
        };
        refused(&["one", "two", "one"], &["container `one` is named twice"])?;
        refused(&["one", "two", "none"], &["none"])?;
        let stays = "volume `shared` of `one` is used by container `three`, which stays";
        refused(&["one", "two"], &[stays, "The containers run on here"])?;
        crash::tiny_image(&b.host)?;
        b.host.arctern(&["create", "--name", "two", "tiny", "true"])?;
        let taken = "`two`: the name `two` is used by container";
        refused(&["one", "two", "three"], &["1 thing(s) in the way", taken])?;
        b.host.arctern(&["rm", "two"])?;

        let output = together(&a, &b, &["--dry-run"], &["one", "two", "three"])?;
        let said = text(&output.stdout);
        ensure!(output.status.success(), "{}", text(&output.stderr));
        for name in ["one", "two", "three"] {
            ensure!(said.contains(&format!("nothing is in the way of `{name}`")), "{said}");
            ensure!(alive(&a.host, name)? && status(&b, name)?.is_empty());
        }
        ensure!(b.host.arctern(&["volume", "ls", "-q"])?.is_empty(), "it made a volume");
        let report = a.host.dir().join("move.html");
        let output =
            together(&a, &b, &["--report", &report.to_string_lossy()], &["one", "two", "three"])?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        let page = std::fs::read_to_string(&report)?;
        ensure!(page.contains("<h1>one, two, three → ssh://root@192.0.2.2</h1>"), "{page}");
        for name in ["one", "two", "three"] {
            ensure!(alive(&b.host, name)? && status(&a, name)?.is_empty(), "{name}");
            b.host.arctern(&["rm", "-f", "-t", "0", name])?;
        }
        b.host.arctern(&["volume", "rm", "shared"])?;
        a.host.arctern(&["volume", "rm", "shared"])?;
        a.end()?;
        b.end()
    })
}

#[test]
fn one_that_cannot_be_built_keeps_both() -> Result<(), String> {
    judge("migrate_together::unbuilt", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        let client = lab.client(100)?;
        a.host.image("redis", &[])?;
        crash::tiny_image(&a.host)?;
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "db"];
        a.host.arctern(&[&run[..], &["-v", "data:/data"], &REDIS].concat())?;
        // It has a file open that the other host has not.
        let (files, empty) = (a.host.dir().join("files"), b.host.dir().join("empty"));
        std::fs::create_dir_all(&files)?;
        std::fs::create_dir_all(&empty)?;
        std::fs::write(files.join("here"), "here")?;
        let volume = format!("{}:/mnt:ro", files.display());
        let program = "exec 3</mnt/here; exec sleep 1000000";
        let run = ["run", "-d", "--name", "reader", "-v", &volume, "tiny", "sh", "-c", program];
        a.host.arctern(&run)?;
        let bind = |arguments: &[&std::ffi::OsStr]| {
            arctern_harness::host::run(b.host.enter("mount").args(arguments)).map(drop)
        };
        bind(&["--bind".as_ref(), empty.as_os_str(), files.as_os_str()])?;

        let server = SocketAddr::new(address(20).into(), 6379);
        await_listener(&client, server)?;
        let load = Load::increments(&client, server, "count", 4, Duration::from_millis(5))?;
        load.wait_for(100)?;
        for order in [["db", "reader"], ["reader", "db"]] {
            let output = together(&a, &b, &[], &order)?;
            let said = text(&output.stderr);
            println!("{said}");
            ensure!(output.status.code() == Some(125), "{said}");
            ensure!(said.contains("here") && said.contains("The containers run on here"), "{said}");
            for name in order {
                ensure!(alive(&a.host, name)?, "{name} stands still");
                ensure!(settled(&b, name)?.is_empty(), "{name} is there");
            }
            ensure!(b.host.arctern(&["volume", "ls", "-q"])?.is_empty(), "its volume is there");
            let files = b.host.files_of_containers();
            ensure!(files.is_empty(), "left: {files:?}");
            load.wait_for(100)?;
        }
        let report = load.finish()?;
        report.check()?;
        let value = redis_value(&client, server, "count")?;
        ensure!(value == report.answers, "{value} increments, and {} answers", report.answers);
        a.host.arctern(&["rm", "-f", "-t", "0", "db", "reader"])?;
        a.host.arctern(&["volume", "rm", "data"])?;
        arctern_harness::host::run(b.host.enter("umount").arg(&files))?;
        a.end()?;
        b.end()
    })
}

/// An ssh whose user is killed at the commit, which goes on to the other host, or is lost.
const CUT: &str = r#"#!/usr/bin/env python3
import os, signal, subprocess, sys
passes = PASSES
ssh = subprocess.Popen(["ssh"] + sys.argv[1:], stdin=subprocess.PIPE)
last = b""
while True:
    bytes = os.read(0, 1 << 20)
    if not bytes:
        break
    word = b'"commit"'
    if word in last + bytes:
        if passes:
            ssh.stdin.write(bytes)
            ssh.stdin.flush()
        os.kill(os.getppid(), signal.SIGKILL)
        break
    ssh.stdin.write(bytes)
    ssh.stdin.flush()
    last = bytes[-len(word):]
ssh.stdin.close()
sys.exit(ssh.wait())
"#;

#[test]
fn a_doubt_at_the_commit_ends_for_both_at_once() -> Result<(), String> {
    judge("migrate_together::doubt", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let client = lab.client(100)?;
        machines[0].host.image("nginx", &[NGINX])?;
        let Website { volume, .. } = Website::new(&machines[0].host)?;
        start_pair(&machines[0], &volume)?;
        let front = SocketAddr::new(address(20).into(), 80);
        await_listener(&client, SocketAddr::new(address(21).into(), 80))?;
        await_listener(&client, front)?;
        let (a, b) = (&machines[0], &machines[1]);
        let load = Load::http(&client, front, "/", 4, Duration::from_millis(5))?;
        load.wait_for(50)?;
        for passes in [false, true] {
            let wrapper = a.host.dir().join("cut-ssh");
            std::fs::write(&wrapper, CUT.replace("PASSES", if passes { "True" } else { "False" }))?;
            std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
            let output = together(a, b, &["--ssh", &wrapper.to_string_lossy()], &PAIR)?;
            ensure!(!output.status.success(), "nobody killed it: {}", text(&output.stderr));
            ensure!(states(a, PAIR)? == ["migrating", "migrating"], "{:?}", states(a, PAIR)?);
            let there = if passes { "running" } else { "" };
            ensure!(states(b, PAIR)? == [there, there], "{:?}", states(b, PAIR)?);
            // Of whichever it is asked.
            let said = a.host.arctern(&["migrate", "--resolve", PAIR[usize::from(passes)]])?;
            let (here, end) = match passes {
                true => ("", "it is at its destination"),
                false => ("running", "it goes on here"),
            };
            ensure!(said.contains(end), "{said}");
            ensure!(states(a, PAIR)? == [here, here], "{:?}", states(a, PAIR)?);
            ensure!(states(b, PAIR)? == [there, there], "{:?}", states(b, PAIR)?);
            load.wait_for(50).with_context(|| format!("the commit passed: {passes}"))?;
            for machine in &machines {
                let found = machine.host.attempt(&["system", "check"])?;
                ensure!(found.status.success(), "{}", text(&found.stdout));
            }
        }
        load.finish()?.check()?;
        let moves = b.host.dir().join("root/migrations");
        let left: Vec<_> = std::fs::read_dir(&moves)?.collect();
        ensure!(left.is_empty(), "moves that are not forgotten: {left:?}");
        b.host.arctern(&["rm", "-f", "-t", "0", "front", "back"])?;
        for machine in &machines {
            machine.host.arctern(&["volume", "rm", "logs"])?;
        }
        machines.into_iter().try_for_each(Machine::end)
    })
}
