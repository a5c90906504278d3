//! `arctern migrate` between hosts with a real sshd, with clients that notice nothing.
//! `ARCTERN_SOAK=1` makes it ten moves or more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::crash::shim;
use arctern_harness::host::{Host, run};
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load};
use arctern_harness::machine::{Machine, NGINX, Website, await_listener, status};
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use std::net::SocketAddr;
use std::time::Duration;

#[test]
fn nginx_goes_to_and_fro_under_load() -> Result<(), String> {
    judge("migrate::nginx", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let client = lab.client(100)?;
        let slow = lab.slow_client(101, "40mbit")?;
        let a = &machines[0].host;
        let Website { digest, volume } = Website::new(a)?;
        let run = ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "-v", &volume];
        a.arctern(&[&run[..], &["--name", "web", "nginx"]].concat())?;
        let server = SocketAddr::new(address(20).into(), 80);
        await_listener(&client, server)?;

        let capture = Capture::start(&client)?;
        let load = Load::http(&client, server, "/", 8, Duration::from_millis(5))?;
        let mut download = Download::start(&slow, server, "/files/large")?;
        load.wait_for(100)?;
        let mut downtimes = Vec::new();
        for round in 0..rounds(4, 20) {
            if download.is_finished() {
                let next = Download::start(&slow, server, "/files/large")?;
                let done = std::mem::replace(&mut download, next);
                ensure!(done.finish()?.sha256 == digest, "the download differs");
            }
            let more = download.received() + (1 << 20);
            download.wait_for(more.min(40 << 20))?;
            let (from, to) = (&machines[round % 2], &machines[(round + 1) % 2]);
            let moved = from.moved(to, "web").with_context(|| format!("move {round}"))?;
            downtimes.push(moved["downtime_us"].as_u64().context("no downtime")? / 1000);
            ensure!(moved["plan"]["image"] == (round == 0), "move {round}: {moved}");
            load.wait_for(100).with_context(|| format!("after move {round}"))?;
        }
        let downloaded = download.finish().context("the download")?;
        let report = load.finish()?;
        let seen = capture.finish()?;
        println!(
            "downtimes {downtimes:?} ms, {} answers, longest gap {:?}, of the download {:?}",
            report.answers, report.longest_gap, downloaded.longest_gap
        );
        report.check()?;
        ensure!(downloaded.sha256 == digest, "the download differs");
        ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
        ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
        let last = &machines[rounds(4, 20) % 2].host;
        last.arctern(&["rm", "-f", "-t", "0", "web"])?;
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn a_dry_run_lists_everything_and_touches_nothing() -> Result<(), String> {
    judge("migrate::dry-run", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        a.host.image("nginx", &[NGINX])?;
        let volume = format!("{}:/mnt:ro", a.host.dir().join("root").display());
        let run = ["run", "-d", "-p", "8080:80", "-v", &volume, "--name", "web", "nginx"];
        a.host.arctern(&run)?;
        let output = a.migrate(&b, &["--dry-run"], "web")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("and the image"), "{text}");
        ensure!(text.contains("round(s) with") && text.contains("in a freeze of about"), "{text}");

        b.host.image("nginx", &[NGINX])?;
        b.host.arctern(&["create", "--name", "web", "nginx"])?;
        let listener = b.host.inside(|| Ok(std::net::TcpListener::bind("0.0.0.0:8080")?))?;
        let output = a.migrate(&b, &["--dry-run"], "web")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(125), "{text}");
        for blocker in
            ["2 thing(s)", "`web` is used by container", "port 8080 of the host is in use"]
        {
            ensure!(text.contains(blocker), "{blocker} is not in {text}");
        }
        let output = a.migrate(&b, &[], "web")?;
        ensure!(!output.status.success(), "it went where its name is taken");
        drop(listener);
        ensure!(a.host.arctern(&["ps", "-q"])?.lines().count() == 1, "it does not run any more");
        b.host.arctern(&["rm", "web"])?;
        a.host.arctern(&["rm", "-f", "-t", "0", "web"])?;
        a.end()?;
        b.end()
    })
}

/// Every file of a host, with its length; databases write notes of their own.
fn files(host: &Host) -> Result<Vec<String>> {
    let script = format!(
        "cd {} && find root run -type f ! -name '*.db*' -printf '%p %s\\n' | sort",
        host.dir().display()
    );
    let output = run(host.enter("sh").args(["-c", &script]))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn a_host_that_lacks_everything_says_all_of_it_and_is_not_touched() -> Result<(), String> {
    judge("migrate::lacks", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::with_disk(&lab, 2, 32)?);
        a.host.image("nginx", &[NGINX])?;
        a.host.arctern(&["run", "-d", "-p", "8080:80", "--name", "web", "nginx"])?;
        a.host.arctern(&["exec", "web", "sh", "-c", "head -c 40000000 /dev/urandom > /big"])?;

        // Another processor: what the kernel there says of it is put in the place of the truth.
        let facts = std::fs::read_to_string("/proc/cpuinfo")?;
        let is_list = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
        let list = facts.lines().find(is_list).context("no features")?;
        let lost = list.split_whitespace().last().context("no features")?;
        let poorer = facts.replace(&format!(" {lost}"), "");
        let file = b.host.dir().join("cpuinfo");
        std::fs::write(&file, poorer)?;
        run(b.host.enter("mount").arg("--bind").arg(&file).arg("/proc/cpuinfo"))?;
        let listener = b.host.inside(|| Ok(std::net::TcpListener::bind("0.0.0.0:8080")?))?;

        let before = [files(&a.host)?, files(&b.host)?];
        let output = a.migrate(&b, &["--dry-run"], "web")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{text}");
        ensure!(output.status.code() == Some(125), "{text}");
        let place = b.host.dir().join("root").display().to_string();
        for part in [
            "3 thing(s) in the way",
            &format!("the CPU lacks {lost}"),
            "port 8080 of the host is in use",
            &format!("the file system on {place} (ext4)"),
            "for its image",
            "for the files that it changed",
            "it also lacks 1 layer(s) of the image",
        ] {
            ensure!(text.contains(part), "{part} is not in {text}");
        }
        ensure!(before == [files(&a.host)?, files(&b.host)?], "it touched something");
        ensure!(status(&a, "web")? == "running" && status(&b, "web")?.is_empty());
        ensure!(b.host.arctern(&["images", "-q"])?.is_empty(), "it brought an image");
        drop(listener);
        run(b.host.enter("umount").arg("/proc/cpuinfo"))?;
        a.host.arctern(&["rm", "-f", "-t", "0", "web"])?;
        a.end()?;
        b.end()
    })
}

#[test]
fn what_moves_is_not_paused_and_not_started_again_by_its_policy() -> Result<(), String> {
    judge("migrate::policy", || {
        let lab = Lab::new()?;
        let (a, b) = (Machine::new(&lab, 1)?, Machine::new(&lab, 2)?);
        a.host.image("nginx", &[NGINX])?;
        a.host.arctern(&["run", "-d", "--restart", "always", "--name", "web", "nginx"])?;
        a.host.arctern(&["pause", "web"])?;
        for options in [&["--dry-run"][..], &[]] {
            let output = a.migrate(&b, options, "web")?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(125) && text.contains("is paused"), "{text}");
        }
        ensure!(status(&a, "web")? == "paused");
        a.host.arctern(&["unpause", "web"])?;

        let source = shim(&a.host, "web")?;
        let (report, nowhere) = (a.host.dir().join("move.html"), a.host.dir().join("no/move.html"));
        let refused = a.migrate(&b, &["--report", &nowhere.to_string_lossy()], "web")?;
        ensure!(!refused.status.success() && status(&a, "web")? == "running", "it moved");
        let options = ["--keep-source", "--report", &report.to_string_lossy()];
        let output = a.migrate(&b, &options, "web")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let page = std::fs::read_to_string(&report)?;
        for part in ["<h1>web → ssh://root@192.0.2.2</h1>", "class=\"bar frozen\"", "round 1: "] {
            ensure!(page.contains(part), "{part} is not in {page}");
        }
        // Who would start it again is gone.
        source.gone(Duration::from_secs(60))?;
        ensure!(status(&a, "web")? == "exited", "there are two of it");
        let booting =
            ["ps", "-a", "--filter", "should-start-on-boot=true", "--format", "{{.Names}}"];
        ensure!(a.host.arctern(&booting)?.is_empty(), "the next boot makes a second one");
        ensure!(b.host.arctern(&booting)? == "web");
        a.host.arctern(&["stop", "web"])?;
        ensure!(a.host.arctern(&booting)?.is_empty(), "the next boot makes a second one");
        ensure!(status(&b, "web")? == "running");
        // Both have groups of the same name.
        for machine in [&a, &b] {
            machine.host.arctern(&["rm", "-f", "-t", "0", "web"])?;
        }
        a.end()?;
        b.end()
    })
}
