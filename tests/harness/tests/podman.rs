//! Archives of Podman 5.8 with runc and CRIU, restored by Arctern, and the other way round: a program
//! with memory, threads, a child, shared memory, a pipe, a connection, a deleted file, a volume and a
//! changed root file system compares itself after every move.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::crash;
use arctern_harness::host::Host;
use arctern_harness::peer::Peer;
use arctern_harness::registry::{ADDRESS, CREDS, Registry};
use arctern_harness::skips::judge;
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// The program; it says more.
const STATE: &str = include_str!("../src/state.py");

/// Asks it.
const ASK: &str = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/state.sock'); \
                   print(s.recv(65536).decode())";

/// What CRIU and Podman lose by themselves: their tars have no holes.
const LOST_BY_PODMAN: &str = "the hole has become blocks";

/// What the program counted when it was last asked.
#[derive(Default)]
struct Counted {
    number: u64,
    threads: [u64; 2],
    child: u64,
}

impl Counted {
    /// Takes an answer: nothing may be wrong, and every count goes on.
    fn compare(&mut self, answer: &Value) -> Result<()> {
        let wrong: Vec<&str> =
            answer["wrong"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let wrong: Vec<_> = wrong.into_iter().filter(|text| *text != LOST_BY_PODMAN).collect();
        ensure!(wrong.is_empty(), "the program finds: {}", wrong.join("; "));
        let now = Counted {
            number: count(&answer["number"]),
            threads: [count(&answer["threads"][0]), count(&answer["threads"][1])],
            child: count(&answer["child"][1]),
        };
        ensure!(
            now.number == self.number + 1
                && now.threads[0] >= self.threads[0]
                && now.threads[1] >= self.threads[1]
                && now.child >= self.child,
            "something was counted anew: {answer}"
        );
        *self = now;
        Ok(())
    }
}

/// Asks the program of a container until it answers (60 s at most).
fn ask(mut exec: impl FnMut(&[&str]) -> Result<String>) -> Result<Value> {
    let begin = Instant::now();
    loop {
        match exec(&["python3", "-c", ASK]) {
            Ok(answer) => return serde_json::from_str(&answer).context(answer),
            Err(error) if begin.elapsed() > Duration::from_secs(60) => return Err(error),
            // It says that it is ready by answering; nothing else of it is seen from here.
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

struct Both {
    host: Host,
    peer: Peer,
    counted: Counted,
}

impl Both {
    fn new() -> Result<Self> {
        let host = Host::new()?;
        let peer = Peer::start(host.dir())?;
        host.image("python", &[])?;
        Ok(Both { host, peer, counted: Counted::default() })
    }

    fn file(&self, name: &str) -> String {
        self.host.dir().join(name).to_string_lossy().into_owned()
    }

    fn ask_arctern(&mut self) -> Result<()> {
        let answer = ask(|command| self.host.arctern(&[&["exec", "state"], command].concat()))?;
        self.counted.compare(&answer).context("in Arctern")
    }

    fn ask_podman(&mut self) -> Result<()> {
        let answer = ask(|command| self.peer.podman(&[&["exec", "state"], command].concat()))?;
        self.counted.compare(&answer).context("in Podman")
    }

    /// Arctern's container goes into an archive, and nothing of it stays.
    fn leave_arctern(&self, name: &str, more: &[&str]) -> Result<()> {
        let file = self.file(name);
        let arguments = ["container", "checkpoint", "state", "--tcp-established", "--file", &file];
        self.host.arctern(&[&arguments[..], more].concat())?;
        self.host.arctern(&["rm", "--force", "-v", "state"])?;
        self.host.arctern(&["volume", "rm", "data"])?;
        Ok(())
    }

    fn enter_arctern(&mut self, name: &str) -> Result<()> {
        let file = self.file(name);
        self.host.arctern(&["container", "restore", "--tcp-established", "--file", &file])?;
        self.ask_arctern()
    }

    fn leave_podman(&self, name: &str, compression: &str) -> Result<()> {
        let path = Peer::path(name);
        let arguments =
            ["container", "checkpoint", "state", "--tcp-established", "--export", &path];
        self.peer.podman(&[&arguments[..], &["--compress", compression]].concat())?;
        self.peer.podman(&["rm", "state"])?;
        self.peer.podman(&["volume", "rm", "--all", "--force"])?;
        Ok(())
    }

    fn enter_podman(&mut self, name: &str) -> Result<()> {
        let path = Peer::path(name);
        self.peer.podman(&["container", "restore", "--tcp-established", "--import", &path])?;
        self.ask_podman()
    }

    /// Brings the image of an archive that was made with `--with-image` to Podman.
    fn bring_image(&self, name: &str) -> Result<()> {
        let output = Command::new("tar")
            .args(["--extract", "--directory"])
            .arg(self.host.dir())
            .args(["--file", &self.file(name), "image.tar"])
            .output()?;
        if !output.status.success() {
            bail!("tar: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.peer.podman(&["load", "--input", &Peer::path("image.tar")]).map(drop)
    }
}

#[test]
fn archives_go_both_ways() -> Result<(), String> {
    judge("podman::both-ways", || {
        let mut both = Both::new()?;
        let program = ["python3", "-c", STATE, "/data"];
        let run =
            ["run", "-d", "--name", "state", "-v", "data:/data", "-v", "/anonymous", "python"];
        both.host.arctern(&[&run[..], &program].concat())?;
        both.ask_arctern()?;
        both.leave_arctern("first.tar", &["--with-image"])?;
        both.bring_image("first.tar")?;
        both.enter_podman("first.tar")?;
        both.leave_podman("second.tar", "gzip")?;
        both.enter_arctern("second.tar")?;
        let taken =
            both.host.attempt(&["container", "restore", "--file", &both.file("first.tar")])?;
        ensure!(!taken.status.success(), "a container was restored over itself");
        both.leave_arctern("third.tar.zst", &[])?;
        both.enter_podman("third.tar.zst")?;
        both.leave_podman("fourth.tar", "zstd")?;
        both.enter_arctern("fourth.tar")?;
        both.leave_arctern("fifth.tar.gz", &[])?;
        both.enter_podman("fifth.tar.gz")?;
        both.leave_podman("sixth.tar", "none")?;
        both.enter_arctern("sixth.tar")?;
        both.host.arctern(&["rm", "--force", "-t", "0", "-v", "state"])?;
        let volumes = both.host.arctern(&["volume", "ls", "--quiet"])?;
        ensure!(volumes == "data", "the volumes are: {volumes}");
        both.host.arctern(&["volume", "prune", "--force"])?;
        let left = both.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn a_container_that_podman_started_goes_on_here() -> Result<(), String> {
    judge("podman::started-there", || {
        let mut both = Both::new()?;
        // The image reaches Podman in an archive.
        both.host.arctern(&["run", "-d", "--name", "image", "python", "sleep", "1000"])?;
        let file = both.file("image-in.tar");
        let arguments = ["container", "checkpoint", "image", "--with-image", "--file"];
        both.host.arctern(&[&arguments[..], &[&file]].concat())?;
        both.host.arctern(&["rm", "image"])?;
        both.bring_image("image-in.tar")?;
        let program = ["python", "python3", "-c", STATE, "/data"];
        let run =
            ["run", "-d", "--name", "state", "-v", "data:/data", "--tmpfs", "/tmp", "-e", "A=b"];
        let more =
            ["--workdir", "/srv", "--cap-drop", "setfcap", "-p", "8099:80", "--label", "a=b"];
        both.peer.podman(&[&run[..], &more, &program].concat())?;
        both.ask_podman()?;
        both.leave_podman("state.tar", "none")?;
        let file = both.file("state.tar");
        let shown = both.host.arctern(&["checkpoint", "inspect", "--json", &file])?;
        let shown: Value = serde_json::from_str(&shown).context(shown)?;
        ensure!(
            shown["written_by"] == "podman"
                && shown["processes"][0]["command"][0] == "python3"
                && shown["connections"].as_array().is_some_and(|list| list.len() == 3),
            "the archive shows {shown}"
        );
        both.enter_arctern("state.tar")?;
        let environment = both.host.arctern(&["exec", "state", "env"])?;
        ensure!(environment.contains("A=b"), "the environment is: {environment}");
        let place = both.host.arctern(&["exec", "state", "pwd"])?;
        ensure!(place == "/srv", "the directory is {place}");
        let ports = both.host.arctern(&["port", "state"])?;
        ensure!(ports.contains("8099"), "the ports are: {ports}");
        // Again, now as one of ours.
        both.leave_arctern("again.tar", &[])?;
        both.enter_arctern("again.tar")?;
        both.host.arctern(&["rm", "--force", "-t", "0", "state"])?;
        both.host.arctern(&["volume", "rm", "data"])?;
        let left = both.host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

/// What Podman and Arctern say of an image in the same words.
fn identity(shown: &str) -> Result<(String, Value, Value)> {
    let all: Value = serde_json::from_str(shown).context(shown.to_owned())?;
    let image = &all[0];
    let id = image["Id"].as_str().context("no id")?.to_owned();
    Ok((id, image["RootFS"]["Layers"].clone(), image["Config"]["Env"].clone()))
}

#[test]
fn images_go_both_ways() -> Result<(), String> {
    judge("podman::images", || {
        let host = Host::new()?;
        let peer = Peer::start(host.dir())?;
        crash::tiny_image(&host)?;
        let tar = host.dir().join("tiny.tar").to_string_lossy().into_owned();
        let ours = "localhost/ours:1";
        host.arctern(&["import", "--change", "ENV V=ours", &tar, ours])?;
        let here = identity(&host.arctern(&["image", "inspect", ours])?)?;
        let says = ["sh", "-c", "echo version $V"];
        let run = ["run", "--rm", "--network", "none"];
        for format in ["docker-archive", "oci-archive"] {
            // What we save Podman loads, and runs.
            let file = host.dir().join(format).to_string_lossy().into_owned();
            host.arctern(&["save", "--format", format, "-o", &file, ours])?;
            peer.podman(&["load", "--input", &Peer::path(format)])?;
            let there = identity(&peer.podman(&["image", "inspect", ours])?)?;
            ensure!(there == here, "{format}: {here:?} became {there:?}");
            let said = peer.podman(&[&run[..], &[ours], &says].concat())?;
            ensure!(said == "version ours", "{format}: in Podman it says {said}");

            // What Podman saves is loaded here, and runs.
            let theirs = "localhost/theirs:1";
            let change = ["import", "--change", "ENV=V=theirs", &Peer::path("tiny.tar"), theirs];
            peer.podman(&change)?;
            let there = identity(&peer.podman(&["image", "inspect", theirs])?)?;
            let back = format!("back-{format}");
            peer.podman(&["save", "--format", format, "-o", &Peer::path(&back), theirs])?;
            let file = host.dir().join(&back).to_string_lossy().into_owned();
            host.arctern(&["load", "-i", &file])?;
            let loaded = identity(&host.arctern(&["image", "inspect", theirs])?)?;
            ensure!(loaded == there, "{format}: {there:?} became {loaded:?}");
            let said = host.arctern(&[&run[..], &[theirs], &says].concat())?;
            ensure!(said == "version theirs", "{format}: here it says {said}");
            host.arctern(&["rmi", theirs])?;
            peer.podman(&["rmi", "--all", "--force"])?;
        }
        Ok(())
    })
}

#[test]
fn registries_are_shared_with_podman() -> Result<(), String> {
    judge("podman::registry", || {
        let host = Host::new()?;
        let peer = Peer::start(host.dir())?;
        let mut registry = Registry::new()?;
        registry.serve(&host)?;
        registry.serve_by(peer.beside("docker-registry")?)?;
        registry.login(&host)?;
        crash::tiny_image(&host)?;
        let certs = host.dir().join("certs");
        fs::create_dir(&certs)?;
        fs::copy(registry.certs().join("ca.crt"), certs.join("ca.crt"))?;
        let access = ["--creds", CREDS, "--cert-dir", &Peer::path("certs")];
        let says = ["sh", "-c", "echo version $V"];
        let run = ["run", "--rm", "--network", "none"];
        let tar = host.dir().join("tiny.tar").to_string_lossy().into_owned();
        for format in ["oci", "v2s2"] {
            let ours = format!("{ADDRESS}/team/ours:{format}");
            host.arctern(&["import", "--change", "ENV V=ours", &tar, &ours])?;
            registry.arctern(&host, &["push", "-q", "--format", format, &ours])?;
            peer.podman(&[&["pull", "--retry", "5"][..], &access, &[&ours]].concat())?;
            let here = identity(&host.arctern(&["image", "inspect", &ours])?)?;
            let there = identity(&peer.podman(&["image", "inspect", &ours])?)?;
            ensure!(there == here, "{format}: {here:?} became {there:?}");
            let said = peer.podman(&[&run[..], &[&ours], &says].concat())?;
            ensure!(said == "version ours", "{format}: in Podman it says {said}");

            let theirs = format!("{ADDRESS}/team/theirs:{format}");
            let archive = Peer::path("tiny.tar");
            peer.podman(&["import", "--change", "ENV=V=theirs", &archive, &theirs])?;
            peer.podman(&[&["push", "--format", format][..], &access, &[&theirs]].concat())?;
            let said = registry.arctern(&host, &[&run[..], &[&theirs], &says].concat())?;
            ensure!(said == "version theirs", "{format}: here it says {said}");
        }
        Ok(())
    })
}
