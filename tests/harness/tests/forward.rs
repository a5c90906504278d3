//! Connections by way of a host that a container has left: its published ports go on there.
//! `ARCTERN_SOAK=1` makes it twenty moves.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load};
use arctern_harness::machine::{Machine, NGINX, Website, await_listener};
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// What is forwarded on a host: names with directions.
fn forwards(machine: &Machine) -> Result<Vec<String>> {
    let text = machine.host.arctern(&["forward", "ls", "--format", "json"])?;
    let list: Vec<Value> = serde_json::from_str(&text)?;
    let one = |f: &Value| format!("{} {}", f["Name"], f["Direction"]).replace('"', "");
    Ok(list.iter().map(one).collect())
}

/// What the kernel of a host has for such connections.
fn traces(machine: &Machine) -> Result<Vec<String>> {
    let place = machine.host.place();
    let rules = place.ip("rule list")?;
    let routes = place.ip("route list table all")?;
    let tables = place.command("nft").args(["list", "tables"]).output()?;
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    let ours = |line: &&str| {
        ["fwmark", "via", "inet back", "inet onward"].iter().any(|word| line.contains(word))
    };
    let all = [rules, routes, tables].concat();
    Ok(all.lines().filter(ours).map(str::to_owned).collect())
}

#[test]
fn ports_of_the_old_host_lead_to_the_new_one() -> Result<(), String> {
    judge("forward::ports", || {
        let lab = Lab::new()?;
        let machines = [Machine::with_ports(&lab, 1)?, Machine::with_ports(&lab, 2)?];
        let client = lab.client(100)?;
        let slow = lab.slow_client(101, "40mbit")?;
        let Website { digest, volume } = Website::new(&machines[0].host)?;
        let run = ["run", "-d", "-p", "8080:80", "-v", &volume, "--name", "web", "nginx"];
        machines[0].host.arctern(&run)?;
        // Always A's.
        let server = SocketAddr::new(address(1).into(), 8080);
        await_listener(&client, server)?;

        let capture = Capture::start(&client)?;
        let pause = Duration::from_millis(5);
        let load = Load::http(&client, server, "/", 8, pause)?;
        let mut by_b = None;
        let mut download = Download::start(&slow, server, "/files/large")?;
        load.wait_for(100)?;
        let mut downtimes = Vec::new();
        for round in 0..rounds(4, 20) {
            // What the server has sent whole, and the client has not read, cannot be moved.
            if download.is_finished() || download.received() > 30 << 20 {
                let next = Download::start(&slow, server, "/files/large")?;
                let done = std::mem::replace(&mut download, next);
                ensure!(done.finish()?.sha256 == digest, "the download differs");
            }
            download.wait_for(download.received() + (1 << 20))?;
            let (from, to) = (&machines[round % 2], &machines[(round + 1) % 2]);
            let moved = from.moved(to, "web").with_context(|| format!("move {round}"))?;
            downtimes.push(moved["downtime_us"].as_u64().context("no downtime")? / 1000);
            load.wait_for(100).with_context(|| format!("after move {round}"))?;
            // New ones, by both hosts.
            for machine in [1, 2] {
                await_listener(&client, SocketAddr::new(address(machine).into(), 8080))
                    .with_context(|| format!("by host {machine} after move {round}"))?;
            }
            if by_b.is_none() {
                let server = SocketAddr::new(address(2).into(), 8080);
                by_b = Some(Load::http(&client, server, "/", 4, pause)?);
            }
            ensure!(forwards(from)?.contains(&"web to".to_owned()), "{:?}", forwards(from)?);
            ensure!(!forwards(to)?.contains(&"web to".to_owned()), "{:?}", forwards(to)?);
            ensure!(forwards(to)?.contains(&"web from".to_owned()), "{:?}", forwards(to)?);
        }
        let downloaded = download.finish().context("the download")?;
        let by_b = by_b.context("no move")?;
        by_b.wait_for(50)?;
        let (report, by_b) = (load.finish()?, by_b.finish()?);
        let seen = capture.finish()?;
        println!(
            "downtimes {downtimes:?} ms; by A {} answers, longest gap {:?}; by B {}, {:?}; of the \
             download {:?}",
            report.answers,
            report.longest_gap,
            by_b.answers,
            by_b.longest_gap,
            downloaded.longest_gap
        );
        report.check()?;
        by_b.check()?;
        ensure!(downloaded.sha256 == digest, "the download differs");
        ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
        ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
        let last = &machines[rounds(4, 20) % 2].host;
        last.arctern(&["rm", "-f", "-t", "0", "web"])?;
        machines.into_iter().try_for_each(|machine| {
            machine.host.arctern(&["forward", "rm", "--all"])?;
            let left = traces(&machine)?;
            ensure!(left.is_empty(), "left in the kernel: {left:?}");
            machine.end()
        })
    })
}

#[test]
fn a_forward_ends_in_time_or_when_it_is_removed() -> Result<(), String> {
    judge("forward::ends", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::with_ports(&lab, 1)?, Machine::with_ports(&lab, 2)?);
        let client = lab.client(100)?;
        a.host.image("nginx", &[NGINX])?;
        a.host.arctern(&["run", "-d", "-p", "8080:80", "--name", "web", "nginx"])?;
        let [by_a, by_b] = [1, 2].map(|host| SocketAddr::new(address(host).into(), 8080));
        await_listener(&client, by_a)?;
        let refused = |server| {
            client.inside(|| {
                let tried = std::net::TcpStream::connect_timeout(&server, Duration::from_secs(5));
                Ok(tried.is_err())
            })
        };

        // Somebody flushes the rules: ports are gone until the next container starts.
        let move_for = |from: &Machine, to: &Machine, options: &[&str]| -> Result<()> {
            let output = from.migrate(to, options, "web")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        move_for(&a, &b, &["--forward-for", "none"])?;
        await_listener(&client, by_a)?;
        let flushed = a.host.place().command("nft").args(["flush", "ruleset"]).status()?;
        ensure!(flushed.success() && refused(by_a)?, "a port without rules");
        a.host.arctern(&["run", "--name", "other", "nginx", "true"])?;
        await_listener(&client, by_a).context("after the rules were made again")?;
        a.host.arctern(&["rm", "other"])?;

        // The user ends it.
        a.host.arctern(&["forward", "rm", "web"])?;
        ensure!(refused(by_a)?, "it is reached by way of A");
        ensure!(traces(&a)?.is_empty() && forwards(&a)?.is_empty(), "{:?}", traces(&a)?);
        let again = a.host.attempt(&["forward", "rm", "web"])?;
        ensure!(!again.status.success(), "there is nothing to remove");
        await_listener(&client, by_b)?;
        ensure!(forwards(&b)? == ["web from"], "{:?}", forwards(&b)?);
        b.host.arctern(&["forward", "rm", "web"])?;
        ensure!(traces(&b)?.is_empty() && forwards(&b)?.is_empty(), "{:?}", traces(&b)?);

        // Its time is over: nobody runs a command.
        move_for(&b, &a, &["--forward-for", "2s"])?;
        ensure!(traces(&b)?.len() > 1 && traces(&a)?.len() > 2, "{:?}", (traces(&b)?, traces(&a)?));
        a.host.await_keepers()?;
        b.host.await_keepers()?;
        ensure!(traces(&b)?.is_empty(), "left on B: {:?}", traces(&b)?);
        ensure!(traces(&a)?.is_empty(), "left on A: {:?}", traces(&a)?);
        ensure!(refused(by_b)?, "it is reached by way of B");

        // Not wanted.
        move_for(&a, &b, &["--no-forward"])?;
        ensure!(traces(&a)?.is_empty() && traces(&b)?.is_empty(), "a forward nobody wanted");
        b.host.arctern(&["rm", "-f", "-t", "0", "web"])?;
        a.end()?;
        b.end()
    })
}
