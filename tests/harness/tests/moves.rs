//! Containers that move from host to host while clients on the same segment talk to them.
//! `ARCTERN_SOAK=1` makes it ten moves or more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, SUBNET, SUBNET6, address};
use arctern_harness::load::{Download, Load, hexadecimal};
use arctern_harness::skips::judge;
use sha2::{Digest, Sha256};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How the containers of a host come onto the segment.
#[derive(Clone, Copy, Debug)]
enum Lan {
    Macvlan,
    PlainBridge,
}

impl Lan {
    /// A host with a network `lan` on the segment; each host gives addresses from a range of its own.
    fn host(self, lab: &Lab, number: u8) -> Result<Host> {
        let range = format!("192.0.2.{}-192.0.2.{}", number * 16, number * 16 + 15);
        let mut arguments = vec!["network", "create", "--subnet", SUBNET, "--subnet", SUBNET6];
        let range6 = format!("fd00:2::{0:x}00-fd00:2::{0:x}ff", number);
        arguments.extend(["--ip-range", &range, "--ip-range", &range6]);
        let host = match self {
            Lan::Macvlan => {
                arguments.extend(["-d", "macvlan", "-o", "parent=eth0"]);
                lab.host(number)?
            }
            Lan::PlainBridge => {
                arguments.extend(["-o", "mode=unmanaged", "--interface-name", "br0"]);
                lab.bridged_host(number)?
            }
        };
        arguments.push("lan");
        host.arctern(&arguments)?;
        Ok(host)
    }
}

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
    // A server that starts gives no other sign that it listens.
    std::thread::sleep(Duration::from_millis(300));
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
