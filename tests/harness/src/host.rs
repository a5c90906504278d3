//! A host of its own for containers: separate directories and a separate network, so that tests do
//! not meet each other or the machine, and so that everything that is left can be found.

use crate::engine::{built, source};
use crate::place::Place;
use crate::process::Process;
use crate::skips::Skip;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Directories and namespaces of one host of a test.
pub struct Host {
    base: tempfile::TempDir,
    place: Place,
    /// A process that holds the mount namespace, if the host has one of its own.
    mounts: Option<Child>,
    /// Ids that commands printed: containers (and images) that were there.
    ids: Mutex<Vec<String>>,
}

impl Host {
    /// A host without images and containers.
    pub fn new() -> Result<Self> {
        crate::process::become_reaper()?;
        let base = tempfile::Builder::new().prefix("arctern-host-").tempdir_in("/var/tmp")?;
        Ok(Self { base, place: Place::new()?, mounts: None, ids: Mutex::default() })
    }

    /// A host with a mount namespace of its own: as another machine, but for the files.
    pub fn with_mounts() -> Result<Self> {
        let mut host = Self::new()?;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-c", "echo ready; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let ready = holder.stdout.take().context("no output")?;
        host.mounts = Some(holder);
        let mut line = String::new();
        BufReader::new(ready).read_line(&mut line)?;
        match line.trim() {
            "ready" => Ok(host),
            _ => bail!("unshare --mount failed"),
        }
    }

    /// Its network.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A directory of the test, for archives.
    pub fn dir(&self) -> &Path {
        self.base.path()
    }

    /// A path of this host, as this process can open it.
    pub fn seen(&self, path: &Path) -> PathBuf {
        match (&self.mounts, path.strip_prefix("/")) {
            (Some(holder), Ok(path)) => {
                Path::new(&format!("/proc/{}/root", holder.id())).join(path)
            }
            _ => path.to_owned(),
        }
    }

    /// A command that will run on this host.
    pub fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.place.path()));
        if let Some(holder) = &self.mounts {
            command.arg(format!("--mount=/proc/{}/ns/mnt", holder.id()));
        }
        command.arg(program);
        command
    }

    /// `arctern ARGUMENTS` on this host.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.enter(built("ARCTERN", "arctern"));
        command.arg("--root").arg(self.base.path().join("root"));
        command.arg("--runroot").arg(self.base.path().join("run"));
        command.args(arguments);
        command
    }

    /// Runs `arctern ARGUMENTS`, which must succeed; what it printed.
    pub fn arctern(&self, arguments: &[&str]) -> Result<String> {
        let output = run(&mut self.command(arguments))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(text.clone());
        }
        Ok(text)
    }

    /// Runs `arctern ARGUMENTS` to see how it fails.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("cannot run arctern")
    }

    /// Imports a test image (see `scripts/image.sh`).
    pub fn image(&self, name: &str, changes: &[&str]) -> Result<()> {
        let tar = rootfs(name)?;
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        arguments.extend([tar.as_str(), name]);
        self.arctern(&arguments).map(|_| ())
    }

    /// Runs a closure in a thread within this host's network.
    pub fn inside<T: Send>(&self, closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.place.inside(closure)
    }

    /// A connection within this host's network, tried until the server listens (20 s at most).
    pub fn connect(&self, address: &str) -> Result<TcpStream> {
        self.inside(|| {
            let mut last = None;
            for _ in 0..200 {
                match TcpStream::connect(address) {
                    Ok(stream) => {
                        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                        return Ok(stream);
                    }
                    Err(error) => last = Some(error),
                }
                // A server that starts gives no other sign that it listens.
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(last.context("not tried")?).with_context(|| format!("cannot connect to {address}"))
        })
    }

    /// The body of `http://ADDRESS/`.
    pub fn http(&self, address: &str) -> Result<String> {
        let mut stream = self.connect(address)?;
        write!(stream, "GET / HTTP/1.0\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
            _ => bail!("{address} answered: {answer}"),
        }
    }

    /// Waits for the keepers of locks that send on what still comes for containers of other hosts,
    /// which takes two seconds.
    pub fn await_keepers(&self) -> Result<()> {
        let base = self.base.path().to_string_lossy().into_owned();
        for pid in crate::process::with_argument("arctern-keeper", &base) {
            if let Ok(keeper) = Process::open(pid) {
                keeper.gone(Duration::from_secs(10))?;
            }
        }
        Ok(())
    }

    /// What a host without containers still has: a line for each process, mount, link, rule, control
    /// group, and file of a container.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let base = self.base.path().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc")?.flatten() {
            let path = entry.path();
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            if entry.file_name().to_string_lossy().parse::<u32>().is_ok()
                && String::from_utf8_lossy(&command).contains(&base)
            {
                left.push(format!(
                    "process {}: {}",
                    entry.file_name().to_string_lossy(),
                    String::from_utf8_lossy(&command).replace('\0', " ")
                ));
            }
        }
        let holder = self.mounts.as_ref().map_or_else(|| "self".to_owned(), |m| m.id().to_string());
        let mounts = fs::read_to_string(format!("/proc/{holder}/mountinfo"))?;
        let disk = format!(" {base}/root ");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&base) && !line.contains(&disk))
                .map(|line| format!("mount {line}")),
        );
        let pids = run(Command::new("ip").args(["netns", "pids", self.place.name()]))?;
        left.extend(
            lines(&pids).into_iter().map(|pid| format!("process in the network namespace {pid}")),
        );
        let links = self.place.ip("-o link")?;
        left.extend(
            links
                .lines()
                .filter(|l| !l.contains(": lo:") && (l.contains("veth") || l.contains("hold")))
                .map(|l| format!("link {l}")),
        );
        for id in self.ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter() {
            left.extend(
                Self::cgroups(id)
                    .into_iter()
                    .map(|path| format!("control group {}", path.display())),
            );
        }
        left.extend(self.rules()?.into_iter().map(|rule| format!("rule {rule}")));
        left.extend(self.files_of_containers());
        Ok(left)
    }

    /// Files that a host without containers does not have, each as `file PATH`.
    pub fn files_of_containers(&self) -> Vec<String> {
        const DIRECTORIES: [&str; 8] = [
            "root/containers",
            "root/storage/containers",
            "root/storage/volumes",
            "root/checkpoints",
            "run/containers",
            "run/netns",
            "run/oci",
            "run/storage/mounts",
        ];
        let entries = |directory: &str| {
            let path = self.seen(&self.base.path().join(directory));
            fs::read_dir(path).into_iter().flatten().flatten()
        };
        let entries = DIRECTORIES.into_iter().flat_map(entries);
        entries.map(|e| format!("file {}", e.path().display())).collect()
    }

    /// Rules that mention an address or a port, in this host's network.
    fn rules(&self) -> Result<Vec<String>> {
        let rules = run(self.place.command("nft").args(["list", "ruleset"]))?;
        Ok(lines(&rules)
            .into_iter()
            .filter(|line| line.contains("dnat") || line.contains("drop"))
            .collect())
    }

    /// Control groups whose name contains the text.
    fn cgroups(text: &str) -> Vec<PathBuf> {
        fn visit(directory: &Path, text: &str, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name().to_string_lossy().contains(text) {
                        found.push(entry.path());
                    }
                    visit(&entry.path(), text, found);
                }
            }
        }
        let mut found = Vec::new();
        visit(Path::new("/sys/fs/cgroup"), text, &mut found);
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(output) = self.attempt(&["ps", "-a", "-q"]) {
            for id in lines(&output) {
                let _ = self.attempt(&["rm", "-f", "-t", "0", &id]);
            }
        }
        if let Some(holder) = &mut self.mounts {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// The tar with the root file system of a test image (see `scripts/image.sh`).
pub fn rootfs(name: &str) -> Result<String> {
    let made = Command::new(source().join("scripts/image.sh")).arg(name).output()?;
    if made.status.code() == Some(69) {
        return Err(Skip(String::from_utf8_lossy(&made.stderr).trim().to_owned()).into());
    }
    if !made.status.success() {
        bail!("scripts/image.sh {name}: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

/// The lines that a command printed, without empty ones.
fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}
