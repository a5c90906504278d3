//! Containers that move from host to host while clients on the same segment talk to them.
//! `ARCTERN_SOAK=1` makes it ten moves or more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load, Report, hexadecimal};
use arctern_harness::random::rounds;
use arctern_harness::relay::Wire;
use arctern_harness::skips::judge;
use arctern_harness::travel::{Lan, Traveller};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A container without connections moves, is announced, and is reached at once at its address.
fn moves_with_its_address(lan: Lan) -> Result<()> {
    let lab = Lab::new()?;
    let (a, b, client) = (lan.host(&lab, 1)?, lan.host(&lab, 2)?, lab.client(100)?);
    a.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
    a.arctern(&["run", "-d", "--network", "lan", "--name", "web", "nginx"])?;
    let network = |host: &Host| -> Result<serde_json::Value> {
        let text = host.arctern(&["inspect", "web"])?;
        let inspected: serde_json::Value = serde_json::from_str(&text)?;
        Ok(inspected[0]["NetworkSettings"]["Networks"].clone())
    };
    let before = network(&a)?;
    ensure!(before["ip"] == "192.0.2.16", "the address is not of the host's range: {before}");
    let web = SocketAddr::new(before["ip"].as_str().context("no address")?.parse()?, 80);
    let get = || Load::http(&client, web, "/", 1, Duration::ZERO);
    client.await_listener(web)?;
    let load = get()?;
    load.wait_for(1)?;
    load.finish()?.check()?;

    let archive = a.dir().join("web.tar.zst").to_string_lossy().into_owned();
    let capture = Capture::start(&client)?;
    a.arctern(&["container", "checkpoint", "web", "--with-image", "--file", &archive])?;
    a.arctern(&["rm", "web"])?;
    b.arctern(&["container", "restore", "--file", &archive])?;
    let load = get()?;
    load.wait_for(1)?;
    let report = load.finish()?;
    report.check()?;
    let after = network(&b)?;
    for key in ["ip", "ip6", "mac", "network"] {
        ensure!(before[key] == after[key], "{key} is not kept: {before} {after}");
    }
    let seen = capture.finish()?;
    let mac = before["mac"].as_str().unwrap_or_default();
    for address in ["192.0.2.16", "fd00:2::100"] {
        let address: std::net::IpAddr = address.parse()?;
        let heard = |(_, ip, bytes): &(_, _, [u8; 6])| {
            *ip == address && bytes.map(|b| format!("{b:02x}")).join(":") == mac
        };
        let count = seen.announcements.iter().filter(|a| heard(a)).count();
        ensure!(count >= 1, "{address} was not announced: {:?}", seen.announcements);
    }
    // On IPv6 too.
    let web6 = SocketAddr::new("fd00:2::100".parse()?, 80);
    let page = client.inside(|| Ok(TcpStream::connect_timeout(&web6, Duration::from_secs(5))?))?;
    ensure!(page.peer_addr()? == web6);

    b.arctern(&["rm", "-f", "-t", "0", "web"])?;
    for host in [&a, &b] {
        host.arctern(&["network", "rm", "lan"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on a host:\n{}", left.join("\n"));
    }
    Ok(())
}

/// A restore that fails on the other host, when that has announced the container already, is made again:
/// there, and where the container came from.
fn fails_elsewhere(lan: Lan) -> Result<()> {
    let lab = Lab::new()?;
    let (a, b, client) = (lan.host(&lab, 1)?, lan.host(&lab, 2)?, lab.client(100)?);
    a.image("redis", &[])?;
    let server = ["redis-server", "--protected-mode", "no"];
    let run = ["run", "-d", "--network", "lan", "--name", "db", "redis"];
    a.arctern(&[&run[..], &server].concat())?;
    let db = SocketAddr::new("192.0.2.16".parse()?, 6379);
    client.await_listener(db)?;
    let stream = client.inside(|| Ok(TcpStream::connect(db)?))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let ping = || -> Result<()> {
        (&stream).write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        (&stream).read_exact(&mut answer)?;
        ensure!(&answer == b"+PONG\r\n", "redis answers {answer:?}");
        Ok(())
    };
    ping()?;
    let capture = Capture::start(&client)?;
    let archive = a.dir().join("db.tar").to_string_lossy().into_owned();
    let restore = ["container", "restore", "--tcp-established", "--file", &archive];
    // From, where it fails, where it goes on.
    for (from, bad, good) in [(&a, &b, &b), (&b, &a, &b)] {
        let checkpoint = ["container", "checkpoint", "--tcp-established", "--with-image"];
        from.arctern(&[&checkpoint[..], &["--file", &archive, "db"]].concat())?;
        from.arctern(&["rm", "db"])?;
        std::thread::scope(|scope| -> Result<()> {
            let answer = scope.spawn(ping);
            let mut command = bad.command(&restore);
            let output = command.env("ARCTERN_FAULT", "restore:unlock").output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains("unlock"), "it did not fail: {said}");
            ensure!(bad.arctern(&["ps", "-aq"])?.is_empty(), "the failed restore left a container");
            if answer.is_finished() {
                bail!("nobody should have answered: {:?}", answer.join());
            }
            good.arctern(&restore)?;
            answer.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
        })?;
        ping()?;
    }
    let seen = capture.finish()?;
    ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
    ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
    b.arctern(&["rm", "-f", "-t", "0", "db"])?;
    for host in [&a, &b] {
        host.arctern(&["network", "rm", "--force", "lan"])?;
        host.await_keepers()?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on a host:\n{}", left.join("\n"));
    }
    Ok(())
}

#[test]
fn a_restore_that_fails_elsewhere_is_made_again_on_macvlan() -> Result<(), String> {
    judge("moves::failed-macvlan", || fails_elsewhere(Lan::Macvlan))
}

#[test]
fn a_restore_that_fails_elsewhere_is_made_again_on_a_plain_bridge() -> Result<(), String> {
    judge("moves::failed-plain-bridge", || fails_elsewhere(Lan::PlainBridge))
}

#[test]
fn an_address_moves_on_macvlan() -> Result<(), String> {
    judge("moves::address-macvlan", || moves_with_its_address(Lan::Macvlan))
}

#[test]
fn an_address_moves_on_a_plain_bridge() -> Result<(), String> {
    judge("moves::address-plain-bridge", || moves_with_its_address(Lan::PlainBridge))
}

/// A file for a web server to give, in a directory of the host; its digest.
fn large_file(host: &Host, megabytes: usize) -> Result<(String, String)> {
    let directory = host.dir().join("files");
    std::fs::create_dir_all(&directory)?;
    // Contents that differ everywhere, so that a byte out of place shows.
    let mut contents = Vec::with_capacity(megabytes << 20);
    for number in 0..(megabytes as u64) << 17 {
        contents.extend(number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    std::fs::write(directory.join("large"), &contents)?;
    let volume = format!("{}:/var/www/html/files:ro", directory.display());
    Ok((volume, hexadecimal(&Sha256::digest(&contents))))
}

#[test]
fn a_server_that_stays_is_the_control() -> Result<(), String> {
    judge("moves::control", || {
        let lab = Lab::new()?;
        let (host, client) = (lab.host(1)?, lab.client(100)?);
        let slow = lab.slow_client(101, "80mbit")?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        let (volume, digest) = large_file(&host, 10)?;
        host.arctern(&["run", "-d", "-p", "80:80", "-v", &volume, "--name", "web", "nginx"])?;
        let server = SocketAddr::new(address(1).into(), 80);
        host.http("127.0.0.1:80").context("the server's first answer")?;

        let capture = Capture::start(&client)?;
        let load = Load::http(&client, server, "/", 8, Duration::from_millis(2))?;
        let download = Download::start(&slow, server, "/files/large")?;
        load.wait_for(200)?;
        let downloaded = download.finish()?;
        let report = load.finish()?;
        let seen = capture.finish()?;
        report.check()?;
        ensure!(downloaded.sha256 == digest, "the download differs");
        ensure!(seen.resets.is_empty(), "resets without a move: {:?}", seen.resets);
        ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
        println!(
            "{} answers, longest gap {:?}, {} bytes, {} packets",
            report.answers, report.longest_gap, downloaded.bytes, seen.packets
        );
        Ok(())
    })
}

/// Clients wait no longer than the longest move took: what they sent meanwhile arrives at its end, and
/// not when a timer of theirs fires, which has backed off to as much again.
fn no_longer_than(report: &Report, times: &[Duration]) -> Result<()> {
    let longest = *times.iter().max().context("no move")?;
    let limit = longest + Duration::from_millis(250);
    ensure!(
        report.longest_gap <= limit,
        "a client waited for {:?}, the moves took {times:?}",
        report.longest_gap
    );
    Ok(())
}

/// nginx with kept-open connections and a download, moved from host to host.
fn nginx_moves_under_load(lan: Lan) -> Result<()> {
    let lab = Lab::new()?;
    let (a, b, client) = (lan.host(&lab, 1)?, lan.host(&lab, 2)?, lab.client(100)?);
    let slow = lab.slow_client(101, "40mbit")?;
    a.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
    let (volume, digest) = large_file(&a, 50)?;
    a.arctern(&[
        "run",
        "-d",
        "--network",
        "lan",
        "--ip",
        "192.0.2.20",
        "--ip6",
        "fd00:2::20",
        "-v",
        &volume,
        "--name",
        "web",
        "nginx",
    ])?;
    let server = SocketAddr::new(address(20).into(), 80);
    client.await_listener(server)?;
    let mut traveller = Traveller::new([&a, &b], "web");
    // Once with the image and without clients.
    traveller.go(Duration::ZERO)?;

    let capture = Capture::start(&client)?;
    let load = Load::http(&client, server, "/", 8, Duration::from_millis(5))?;
    let server6 = SocketAddr::new("fd00:2::20".parse()?, 80);
    let load6 = Load::http(&client, server6, "/", 4, Duration::from_millis(5))?;
    let wire = Wire { delay: Duration::from_millis(15), loss: 10 };
    let (far, _relay) = lab.far_client(102, wire)?;
    let far_load = Load::http(&far, server, "/", 8, Duration::from_millis(5))?;
    let mut download = Download::start(&slow, server, "/files/large")?;
    for load in [&load, &load6, &far_load] {
        load.wait_for(100)?;
    }
    let mut times = Vec::new();
    for round in 0..rounds(3, 10) {
        if download.is_finished() {
            let done =
                std::mem::replace(&mut download, Download::start(&slow, server, "/files/large")?);
            ensure!(done.finish()?.sha256 == digest, "the download differs");
        }
        let more = download.received() + (1 << 20);
        download.wait_for(more.min(40 << 20))?;
        times.push(traveller.go(Duration::ZERO).with_context(|| format!("move {round}"))?);
        for load in [&load, &load6, &far_load] {
            load.wait_for(100).with_context(|| format!("after move {round}"))?;
        }
    }
    let downloaded = download.finish().context("the download")?;
    let reports = [load.finish()?, load6.finish()?, far_load.finish()?];
    let seen = capture.finish()?;
    println!("{lan:?}: moves {times:?}, longest gap of the download {:?}", downloaded.longest_gap);
    println!("resets of connections that were closed already: {:?}", seen.late_resets);
    for (report, whose) in reports.iter().zip(["near", "near, IPv6", "far"]) {
        println!(
            "{whose}: {} answers on {} connections, longest gap {:?}",
            report.answers, report.connections, report.longest_gap
        );
        report.check()?;
    }
    no_longer_than(&reports[0], &times)?;
    no_longer_than(&reports[1], &times)?;
    ensure!(downloaded.sha256 == digest, "the download differs");
    ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
    ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
    traveller.end()
}

#[test]
fn nginx_moves_under_load_on_macvlan() -> Result<(), String> {
    judge("moves::nginx-macvlan", || nginx_moves_under_load(Lan::Macvlan))
}

#[test]
fn nginx_moves_under_load_on_a_plain_bridge() -> Result<(), String> {
    judge("moves::nginx-plain-bridge", || nginx_moves_under_load(Lan::PlainBridge))
}

#[test]
fn redis_moves_with_fifty_clients() -> Result<(), String> {
    judge("moves::redis", || {
        let lan = Lan::PlainBridge;
        let lab = Lab::new()?;
        let (a, b, client) = (lan.host(&lab, 1)?, lan.host(&lab, 2)?, lab.client(100)?);
        a.image("redis", &[])?;
        let run =
            ["run", "-d", "--network", "lan", "--ip", "192.0.2.20", "--name", "redis", "redis"];
        let command = ["redis-server", "--protected-mode", "no", "--save", ""];
        a.arctern(&[&run[..], &command].concat())?;
        let server = SocketAddr::new(address(20).into(), 6379);
        client.await_listener(server)?;
        let mut traveller = Traveller::new([&a, &b], "redis");
        traveller.go(Duration::ZERO)?;
        let capture = Capture::start(&client)?;
        let load = Load::increments(&client, server, "count", 50, Duration::from_millis(20))?;
        load.wait_for(500)?;
        let mut times = Vec::new();
        for round in 0..rounds(3, 20) {
            // Timers of clients back off to different lengths.
            let wait = Duration::from_millis([0, 300, 1000, 100][round % 4]);
            times.push(traveller.go(wait).with_context(|| format!("move {round}"))?);
            // Each client has had some, so that none waits over two moves.
            load.wait_for(5000).with_context(|| format!("after move {round}"))?;
        }
        let report = load.finish()?;
        let seen = capture.finish()?;
        println!(
            "{} increments, moves {times:?}, longest gap {:?}",
            report.answers, report.longest_gap
        );
        report.check()?;
        no_longer_than(&report, &times)?;
        ensure!(report.connections == 50, "{} connections were opened", report.connections);
        let value = client.inside(|| {
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(b"GET count\r\nQUIT\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let count = report.answers.to_string();
        ensure!(
            value.lines().nth(1) == Some(&count),
            "{count} were acknowledged, redis has {value}"
        );
        ensure!(seen.resets.is_empty(), "resets: {:?}", seen.resets);
        ensure!(seen.icmp_errors.is_empty(), "ICMP errors: {:?}", seen.icmp_errors);
        traveller.end()
    })
}
