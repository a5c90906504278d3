//! What tests of crashes share: a small image, kills of shims, commands with a time limit.

use crate::host::{Host, run};
use crate::process::{Process, readable};
use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use rustix::process::Signal;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Imports an image with a shell and `sleep` of this machine in it, a few megabytes, as `tiny`; its
/// archive stays as `tiny.tar`.
pub fn tiny_image(host: &Host) -> Result<()> {
    image_of(host, "tiny", &["/bin/sh", "/bin/sleep"])
}

/// Imports an image with these programs of this machine and their libraries.
pub fn image_of(host: &Host, name: &str, programs: &[&str]) -> Result<()> {
    let libraries = run(Command::new("ldd").args(programs))?;
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let libraries =
        text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut files: Vec<&str> = programs.iter().copied().chain(libraries).collect();
    files.sort_unstable();
    files.dedup();
    let archive = host.dir().join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--dereference", "--directory=/", "--file"]).arg(&archive);
    run(tar.args(files.iter().map(|file| file.trim_start_matches('/'))))?;
    host.arctern(&["import", &archive.to_string_lossy(), name]).map(drop)
}

/// Undoes [`crate::process::become_reaper`], for tests that cannot tell orphans from children: while
/// nobody reaps what a killed `exec` left, the container's init does not end.
pub fn leave_orphans_to_init() -> Result<()> {
    rustix::process::set_child_subreaper(None).context("cannot leave orphans to init")
}

/// Whether the init of a container runs, untraced and not stopped.
pub fn alive(host: &Host, name: &str) -> Result<bool> {
    let Some(pid) = init(host, name)? else { return Ok(false) };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned()
    };
    let state = field("State:");
    let goes_on = state.starts_with('S') || state.starts_with('R');
    Ok(goes_on && field("TracerPid:") == "0")
}

/// The pid of a container's init, if it runs.
pub fn init(host: &Host, name: &str) -> Result<Option<i32>> {
    let output = host.attempt(&["inspect", name])?;
    if !output.status.success() {
        return Ok(None);
    }
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let pid = json[0]["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    Ok(pid.filter(|pid| *pid > 0))
}

/// Kills the shim of a container and waits for its end.
pub fn kill_shim(host: &Host, name: &str) -> Result<()> {
    let shim = shim(host, name)?;
    shim.signal(Signal::KILL)?;
    shim.gone(Duration::from_secs(20))
}

/// The shim of a container.
pub fn shim(host: &Host, name: &str) -> Result<Process> {
    let id: serde_json::Value = serde_json::from_str(&host.arctern(&["inspect", name])?)?;
    let id = id[0]["Id"].as_str().context("no id")?.to_owned();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(b"arctern-shim\0") && String::from_utf8_lossy(&line).contains(&id) {
            return Process::open(pid);
        }
    }
    bail!("container {name} has no shim")
}

/// The files in a directory whose names begin with a dot.
pub fn hidden_files(directory: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(directory)?.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter(|name| name.as_bytes().starts_with(b"."))
        .map(|name| name.to_string_lossy().into_owned())
        .collect())
}

/// Runs a command that has to end within the limit, or is killed.
pub fn within(mut command: Command, limit: Duration) -> Result<Output> {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let process = Process::open(i32::try_from(child.id())?)?;
    let reader = std::thread::spawn(move || child.wait_with_output());
    if !readable(&[process.as_fd()], limit)?[0] {
        let stack =
            fs::read_to_string(format!("/proc/{}/wchan", process.pid())).unwrap_or_default();
        let _ = process.signal(Signal::KILL);
        bail!("it did not end within {limit:?} (waits in {stack})");
    }
    reader.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?.context("read its output")
}
