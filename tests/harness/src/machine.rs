//! Machines between which containers move by `arctern migrate`, and what is asked of them.

use crate::disk;
use crate::host::Host;
use crate::lab::{Lab, address};
use crate::load::hexadecimal;
use crate::place::Place;
use crate::ssh::Sshd;
use crate::travel::Lan;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

/// A machine on the segment whose containers have addresses of it, reached by ssh.
pub struct Machine {
    /// Its containers and its network.
    pub host: Host,
    /// Where the other ones reach it.
    pub sshd: Sshd,
}

impl Machine {
    /// The machine with this number.
    pub fn new(lab: &Lab, number: u8) -> Result<Machine> {
        Machine::of(Lan::PlainBridge.host(lab, number)?, number)
    }

    /// As [`Machine::new`], with a disk of so many mebibytes for everything that arctern keeps.
    pub fn with_disk(lab: &Lab, number: u8, mebibytes: u64) -> Result<Machine> {
        let host = lab.bridged_host(number)?;
        disk::mount(&host, "root", mebibytes)?;
        Lan::PlainBridge.join(&host, number)?;
        Machine::of(host, number)
    }

    /// One whose containers have addresses of its own bridge, and ports of the host.
    pub fn with_ports(lab: &Lab, number: u8) -> Result<Machine> {
        Machine::of(lab.host(number)?, number)
    }

    fn of(host: Host, number: u8) -> Result<Machine> {
        let sshd = Sshd::start(&host, address(number).into())?;
        Ok(Machine { host, sshd })
    }

    /// `arctern migrate OPTIONS CONTAINER` from here to there.
    pub fn migrate(&self, to: &Machine, options: &[&str], container: &str) -> Result<Output> {
        self.migration(to, options, container).output().context("cannot run arctern")
    }

    /// The command of [`Machine::migrate`].
    pub fn migration(&self, to: &Machine, options: &[&str], container: &str) -> Command {
        self.migration_of(to, options, &[container])
    }

    /// As [`Machine::migration`], for containers that move together.
    pub fn migration_of(&self, to: &Machine, options: &[&str], containers: &[&str]) -> Command {
        let remote = to.sshd.options();
        let url = to.sshd.url();
        let mut arguments = vec!["migrate"];
        arguments.extend(options);
        arguments.extend(remote.iter().map(String::as_str));
        arguments.extend(containers);
        arguments.push(&url);
        self.host.command(&arguments)
    }

    /// As [`Machine::migrate`], which must succeed; what it says in JSON.
    pub fn moved(&self, to: &Machine, container: &str) -> Result<Value> {
        self.moved_with(to, &[], container)
    }

    /// As [`Machine::moved`], with options.
    pub fn moved_with(&self, to: &Machine, options: &[&str], container: &str) -> Result<Value> {
        let output = self.migrate(to, &[&["--json"], options].concat(), container)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Nothing may be left on it.
    pub fn end(self) -> Result<()> {
        drop(self.sshd);
        self.host.arctern(&["forward", "rm", "--all"])?;
        self.host.arctern(&["network", "rm", "--force", "lan"])?;
        let left = self.host.leftovers()?;
        ensure!(left.is_empty(), "left on a host:\n{}", left.join("\n"));
        Ok(())
    }
}

/// What an image of nginx needs to be a server.
pub const NGINX: &str = r#"CMD ["nginx", "-g", "daemon off;"]"#;

/// An image of nginx, and a file of 50 MiB for it to serve as `/files/large`.
pub struct Website {
    /// SHA-256 of the file.
    pub digest: String,
    /// What `--volume` is to say.
    pub volume: String,
}

impl Website {
    /// Makes both on a host.
    pub fn new(host: &Host) -> Result<Website> {
        host.image("nginx", &[NGINX])?;
        let directory = host.dir().join("files");
        std::fs::create_dir_all(&directory)?;
        let contents: Vec<u8> = (0..50u64 << 17)
            .flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        std::fs::write(directory.join("large"), &contents)?;
        let digest = hexadecimal(&Sha256::digest(&contents));
        Ok(Website { digest, volume: format!("{}:/var/www/html/files:ro", directory.display()) })
    }
}

/// Waits until a server that was just started listens, of which it gives no other sign.
pub fn await_listener(client: &Place, server: SocketAddr) -> Result<()> {
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

/// What redis answers to a command.
pub fn redis(client: &Place, server: SocketAddr, command: &[&str]) -> Result<String> {
    client.inside(|| {
        let mut stream = TcpStream::connect(server)?;
        let words: String =
            command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        write!(stream, "*{}\r\n{words}", command.len())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(!line.starts_with('-'), "redis answers {line}");
        Ok(line.trim().to_owned())
    })
}

/// What redis says that a counter is at.
pub fn redis_value(client: &Place, server: SocketAddr, key: &str) -> Result<u64> {
    let answer = client.inside(|| {
        let mut stream = TcpStream::connect(server)?;
        write!(stream, "GET {key}\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    answer.lines().nth(1).context("no value")?.parse().context(answer)
}

/// The status of a container as `ps -a` shows it; empty when there is none.
pub fn status(machine: &Machine, name: &str) -> Result<String> {
    let filter = format!("name={name}");
    let text = machine.host.arctern(&["ps", "-a", "--filter", &filter, "--format", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list[0]["State"].as_str().unwrap_or_default().to_owned())
}

/// As [`status`], when the one who is at work on it has ended.
pub fn settled(machine: &Machine, name: &str) -> Result<String> {
    for _ in 0..400 {
        let state = status(machine, name)?;
        if state != "restoring" {
            return Ok(state);
        }
        // That a lock is free again is told to nobody who does not want it.
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{name} is being restored for ever")
}
