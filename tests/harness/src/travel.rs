//! Containers that go from host to host on a segment.

use crate::host::Host;
use crate::lab::{Lab, SUBNET, SUBNET6};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// How the containers of a host come onto the segment.
#[derive(Clone, Copy, Debug)]
pub enum Lan {
    /// By macvlan devices.
    Macvlan,
    /// By a bridge that somebody else has made.
    PlainBridge,
}

impl Lan {
    /// A host with a network `lan` on the segment; each host gives addresses from a range of its own.
    pub fn host(self, lab: &Lab, number: u8) -> Result<Host> {
        let host = match self {
            Lan::Macvlan => lab.host(number)?,
            Lan::PlainBridge => lab.bridged_host(number)?,
        };
        self.join(&host, number)?;
        Ok(host)
    }

    /// Makes the network `lan` of a host that is on the segment.
    pub fn join(self, host: &Host, number: u8) -> Result<()> {
        let range = format!("192.0.2.{}-192.0.2.{}", number * 16, number * 16 + 15);
        let mut arguments = vec!["network", "create", "--subnet", SUBNET, "--subnet", SUBNET6];
        let range6 = format!("fd00:2::{0:x}00-fd00:2::{0:x}ff", number);
        arguments.extend(["--ip-range", &range, "--ip-range", &range6]);
        arguments.extend(match self {
            Lan::Macvlan => ["-d", "macvlan", "-o", "parent=eth0"],
            Lan::PlainBridge => ["-o", "mode=unmanaged", "--interface-name", "br0"],
        });
        arguments.push("lan");
        host.arctern(&arguments).map(drop)
    }
}

/// Two hosts on a segment, with a container that goes to and fro between them.
pub struct Traveller<'a> {
    hosts: [&'a Host; 2],
    name: &'a str,
    moves: usize,
}

impl<'a> Traveller<'a> {
    /// The container `name`, which is on the first of the hosts.
    pub fn new(hosts: [&'a Host; 2], name: &'a str) -> Self {
        Traveller { hosts, name, moves: 0 }
    }

    /// The host that it is on, and the one that it goes to next.
    fn ends(&self) -> (&'a Host, &'a Host) {
        (self.hosts[self.moves % 2], self.hosts[(self.moves + 1) % 2])
    }

    fn archive(&self) -> String {
        let name = format!("{}-{}.tar", self.name, self.moves);
        self.ends().0.dir().join(name).to_string_lossy().into_owned()
    }

    /// Leaves its host with its connections.
    pub fn leave(&self) -> Result<()> {
        let file = self.archive();
        let mut checkpoint = vec!["container", "checkpoint", "--tcp-established", "--file", &file];
        if self.moves == 0 {
            // The other host has the image from then on.
            checkpoint.push("--with-image");
        }
        checkpoint.push(self.name);
        let (from, _) = self.ends();
        from.arctern(&checkpoint)?;
        // Before it is on the other one, because the hosts of a lab share their control groups, which
        // go by the id.
        from.arctern(&["rm", self.name]).map(drop)
    }

    /// Comes to the other host.
    pub fn arrive(&mut self) -> Result<()> {
        let file = self.archive();
        let (_, to) = self.ends();
        // Both hosts are ours: what the container has of the first one, it may have of the other.
        to.arctern(&["container", "restore", "--trust", "--tcp-established", "--file", &file])?;
        std::fs::remove_file(&file)?;
        self.moves += 1;
        Ok(())
    }

    /// Moves to the other host, with a wait in between. Gives the time from the beginning of the
    /// checkpoint to the end of the restore.
    pub fn go(&mut self, wait: Duration) -> Result<Duration> {
        let begin = Instant::now();
        self.leave()?;
        std::thread::sleep(wait);
        self.arrive()?;
        Ok(begin.elapsed())
    }

    /// Removes the container and the networks; nothing may be left.
    pub fn end(self) -> Result<()> {
        self.ends().0.arctern(&["rm", "-f", "-t", "0", self.name])?;
        for host in self.hosts {
            host.arctern(&["network", "rm", "--force", "lan"])?;
            host.await_keepers()?;
            let left = host.leftovers()?;
            ensure!(left.is_empty(), "left on a host:\n{}", left.join("\n"));
        }
        Ok(())
    }
}
