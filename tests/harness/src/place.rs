//! Network namespaces with a name: the places that hosts, clients and cables of a test are in.

use crate::host::run;
use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A network namespace, removed with the value.
#[derive(Debug)]
pub struct Place {
    name: String,
}

impl Place {
    /// A new one, in which only loopback is up.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = Self { name: format!("arctern-{}-{count}", std::process::id()) };
        run(Command::new("ip").args(["netns", "add", &place.name]))?;
        place.ip("link set lo up")?;
        Ok(place)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it can be opened.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs `ip ARGUMENTS` (separated by spaces) in it; what it printed.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments.split_whitespace());
        Ok(String::from_utf8_lossy(&run(&mut command)?.stdout).into_owned())
    }

    /// Writes a value below `/proc/sys/net` of it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.inside(|| {
            let path = format!("/proc/sys/net/{name}");
            std::fs::write(&path, value).with_context(|| format!("cannot set {path}"))
        })
    }

    /// Waits until a server that was just started can be reached from it, of which the server gives
    /// no other sign; 20 s at most.
    pub fn await_listener(&self, server: SocketAddr) -> Result<()> {
        self.inside(|| {
            for _ in 0..200 {
                if TcpStream::connect_timeout(&server, Duration::from_secs(1)).is_ok() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            anyhow::bail!("{server} does not listen")
        })
    }

    /// Runs a closure in a thread that is in it.
    pub fn inside<T: Send>(&self, closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.path())?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || enter(&namespace).and_then(|()| closure()))
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
        })
    }

    /// Starts a thread that is in it.
    pub fn spawn<T: Send + 'static>(
        &self,
        closure: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = File::open(self.path())?;
        Ok(std::thread::spawn(move || enter(&namespace).and_then(|()| closure())))
    }
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the network namespace")
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
