//! Containers that move from host to host while clients on the same segment talk to them.
//! `ARCTERN_SOAK=1` makes it ten moves or more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load, hexadecimal};
use arctern_harness::skips::judge;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::time::Duration;

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
