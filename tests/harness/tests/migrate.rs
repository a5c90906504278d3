//! `arctern migrate` between hosts with a real sshd, with clients that notice nothing.
//! `ARCTERN_SOAK=1` makes it ten moves or more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::capture::Capture;
use arctern_harness::host::Host;
use arctern_harness::lab::{Lab, address};
use arctern_harness::load::{Download, Load, hexadecimal};
use arctern_harness::place::Place;
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use arctern_harness::ssh::Sshd;
use arctern_harness::travel::Lan;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;
use std::time::Duration;

/// A machine on the segment whose containers have addresses of it, reached by ssh.
struct Machine {
    host: Host,
    sshd: Sshd,
}

impl Machine {
    fn new(lab: &Lab, number: u8) -> Result<Machine> {
        let host = Lan::PlainBridge.host(lab, number)?;
        let sshd = Sshd::start(&host, address(number).into())?;
        Ok(Machine { host, sshd })
    }

    /// `arctern migrate OPTIONS CONTAINER` from here to there.
    fn migrate(&self, to: &Machine, options: &[&str], container: &str) -> Result<Output> {
        let remote = to.sshd.options();
        let url = to.sshd.url();
        let mut arguments = vec!["migrate"];
        arguments.extend(options);
        arguments.extend(remote.iter().map(String::as_str));
        arguments.extend([container, &url]);
        self.host.attempt(&arguments)
    }

    /// As [`Machine::migrate`], which must succeed; what it says in JSON.
    fn moved(&self, to: &Machine, container: &str) -> Result<Value> {
        let output = self.migrate(to, &["--json"], container)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn end(self) -> Result<()> {
        drop(self.sshd);
        self.host.arctern(&["network", "rm", "--force", "lan"])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on a host:\n{}", left.join("\n"));
        Ok(())
    }
}

/// Waits until a server that was just started listens, of which it gives no other sign.
fn await_listener(client: &Place, server: SocketAddr) -> Result<()> {
    client.inside(|| {
        for _ in 0..200 {
            if TcpStream::connect_timeout(&server, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("{server} does not listen")
    })
}

const NGINX: &str = r#"CMD ["nginx", "-g", "daemon off;"]"#;

#[test]
fn nginx_goes_to_and_fro_under_load() -> Result<(), String> {
    judge("migrate::nginx", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let client = lab.client(100)?;
        let slow = lab.slow_client(101, "40mbit")?;
        let a = &machines[0].host;
        a.image("nginx", &[NGINX])?;
        let directory = a.dir().join("files");
        std::fs::create_dir_all(&directory)?;
        let contents: Vec<u8> = (0..50u64 << 17)
            .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        std::fs::write(directory.join("large"), &contents)?;
        let digest = hexadecimal(&Sha256::digest(&contents));
        let volume = format!("{}:/var/www/html/files:ro", directory.display());
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
