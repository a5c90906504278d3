//! Disk and memory that do not suffice: seen before anything is frozen where they can be known, and
//! survived where they cannot.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::crash::{self, alive};
use arctern_harness::disk::{self, fill};
use arctern_harness::host::Host;
use arctern_harness::process::readable;
use arctern_harness::skips::{Skip, judge};
use arctern_harness::workload;
use rustix::fd::AsFd;
use rustix::fs::inotify;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

/// Mebibytes of memory that the container has, none of which can be compressed.
const MEMORY: u64 = 48;

/// A host whose root is a file system of `mebibytes`, with a running container `c` that looks at the
/// clock all the time. `small` is another file system, of a third of the memory.
fn host(mebibytes: u64) -> Result<Host> {
    let host = Host::with_mounts()?;
    crash::leave_orphans_to_init()?;
    disk::mount(&host, "root", mebibytes)?;
    disk::mount(&host, "small", MEMORY / 3)?;
    let program = workload::program().to_string_lossy().into_owned();
    crash::image_of(&host, "clock", &["/bin/sh", &program])?;
    let script = format!(": > /ready; exec {program} load clock {MEMORY} /");
    let run = ["run", "-d", "--network", "none", "--name", "c", "clock", "sh", "-c", &script];
    host.arctern(&run)?;
    longest(&host)?;
    Ok(host)
}

/// The longest time in which the container did not run since the last such question, in microseconds.
fn longest(host: &Host) -> Result<u64> {
    let script = "until read t < /still; do :; done 2>/dev/null; : > /reset; \
                  while test -e /reset; do :; done; echo $t";
    let said = host.arctern(&["exec", "c", "sh", "-c", script])?;
    said.trim().parse().with_context(|| format!("the clock says {said}"))
}

/// Runs a checkpoint that cannot succeed. With a fault at the first step, that of the freeze, another
/// error would say that it came so far.
fn refused(host: &Host, file: &Path, before_the_freeze: bool) -> Result<String> {
    let file = file.to_string_lossy();
    let mut command = host.command(&["container", "checkpoint", "c", "--file", &file]);
    if before_the_freeze {
        command.env("ARCTERN_FAULT", "capture:freeze");
    }
    unharmed(host, &command.output()?)
}

/// What a failed checkpoint said. The container goes on, and nothing is left.
fn unharmed(host: &Host, output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(125), "{:?}: {said}", output.status);
    ensure!(said.contains("The container runs on, and no file was written."), "{said}");
    ensure!(alive(host, "c")?, "it does not run: {said}");
    let found = host.attempt(&["system", "check"])?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(found.is_empty(), "{said}{found}");
    let files = fs::read_dir(host.seen(&host.dir().join("small")))?.flatten();
    let files: Vec<_> = files.map(|f| f.file_name()).filter(|f| f != "lost+found").collect();
    ensure!(files.is_empty(), "beside the archive: {files:?}");
    let left: Vec<_> = ["checkpoint.new", "checkpoint", "capture"]
        .into_iter()
        .filter(|name| directory(host).is_ok_and(|dir| dir.join(name).exists()))
        .collect();
    ensure!(left.is_empty(), "beside the container: {left:?}");
    Ok(said)
}

/// The directory of the container.
fn directory(host: &Host) -> Result<PathBuf> {
    let id = host.arctern(&["inspect", "--format", "{{.Id}}", "c"])?;
    Ok(host.seen(&host.dir().join("root/containers").join(id)))
}

/// Starts a container `other`, which keeps the control group above all containers, and gives the file
/// with the limit of that group.
fn limit_above(host: &Host) -> Result<PathBuf> {
    let script = "while :; do read x < /dev/zero; done";
    let run = ["run", "-d", "--network", "none", "--name", "other", "clock", "sh", "-c", script];
    host.arctern(&run)?;
    let pid = crash::init(host, "other")?.context("it does not run")?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = groups.lines().find(|line| line.contains(":memory:"));
    let Some((_, group)) = line.and_then(|line| line.split_once(":memory:")) else {
        return Err(Skip("no memory controller of version 1".into()).into());
    };
    let above = Path::new(group).parent().context("no group above")?;
    let above = Path::new("/sys/fs/cgroup/memory").join(above.strip_prefix("/")?);
    Ok(above.join("memory.limit_in_bytes"))
}

/// Fills a file system and leaves a few blocks, which SQLite needs to open its database (-wal, -shm).
fn fill_but_for_the_database(filler: &File) -> Result<()> {
    fill(filler)?;
    Ok(filler.set_len(filler.metadata()?.len().saturating_sub(512 << 10))?)
}

#[test]
fn too_little_disk_is_told_before_the_freeze() -> Result<(), String> {
    judge("room::disk", || {
        let host = host(MEMORY * 4)?;
        let small = host.dir().join("small");

        // The archive has no room.
        longest(&host)?;
        let said = refused(&host, &small.join("c.tar"), true)?;
        println!("the container stood still for {} µs at most", longest(&host)?);
        let place = small.to_string_lossy().into_owned();
        ensure!(said.contains("there is not enough room"), "{said}");
        ensure!(said.contains(&format!("the file system on {place} (ext4)")), "{said}");
        ensure!(said.contains("for the archive") && said.contains("or compress it"), "{said}");
        ensure!(!said.contains("for the memory"), "{said}");

        // Nor have the images: both are told.
        let filler = File::create(host.seen(&host.dir().join("root/filler")))?;
        fill_but_for_the_database(&filler)?;
        let said = refused(&host, &small.join("c.tar"), true)?;
        ensure!(said.matches("the file system on").count() == 2, "{said}");
        ensure!(said.contains("for the memory of the processes"), "{said}");
        filler.set_len(0)?;

        // How long a compressed one will be nobody knows: it ends in the freeze.
        let said = refused(&host, &small.join("c.tar.zst"), false)?;
        ensure!(said.contains("No space left on device"), "{said}");
        ensure!(!said.contains("not enough room"), "{said}");

        // What fits is not refused: the images and as much again for the archive.
        let archive = host.dir().join("root/c.tar").to_string_lossy().into_owned();
        host.arctern(&["container", "checkpoint", "c", "--leave-running", "--file", &archive])?;
        ensure!(alive(&host, "c")?, "it does not run");

        // An archive that cannot be unpacked, and one that can.
        host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        fill_but_for_the_database(&filler)?;
        let output = host.attempt(&["container", "restore", "--file", &archive])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("for the unpacked checkpoint"), "{said}");
        ensure!(host.arctern(&["ps", "-a", "-q"])?.is_empty(), "a container is left");
        filler.set_len(0)?;
        host.arctern(&["container", "restore", "--file", &archive])?;
        longest(&host)?;
        host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        Ok(())
    })
}

#[test]
fn a_disk_that_others_fill_meanwhile_costs_nothing_but_the_checkpoint() -> Result<(), String> {
    judge("room::filled", || {
        let host = host(MEMORY * 3)?;
        let filler = File::create(host.seen(&host.dir().join("root/filler")))?;
        let dir = directory(&host)?;
        let mut failed = 0;
        // The filler has to be faster than the checkpoint.
        for _ in 0..20 {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&watch, &dir, inotify::WatchFlags::CREATE)?;
            let child = host
                .command(&["container", "checkpoint", "c", "--leave-running"])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            // It has looked by now, and writes.
            ensure!(readable(&[watch.as_fd()], Duration::from_secs(20))?[0], "it makes nothing");
            fill(&filler)?;
            let output = child.wait_with_output()?;
            filler.set_len(0)?;
            if output.status.success() {
                host.arctern(&["checkpoint", "rm", "c"])?;
                continue;
            }
            let said = unharmed(&host, &output)?;
            ensure!(!said.contains("not enough room"), "it was seen before: {said}");
            ensure!(said.contains("No space left on device"), "{said}");
            failed += 1;
            if failed == 3 {
                break;
            }
        }
        ensure!(failed > 0, "the checkpoint was always faster");
        println!("{failed} checkpoints had no room");
        host.arctern(&["container", "checkpoint", "c"])?;
        host.arctern(&["container", "restore", "c"])?;
        longest(&host)?;
        host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        Ok(())
    })
}

#[test]
fn what_a_restore_lacks_of_disk_and_memory_is_told_at_once() -> Result<(), String> {
    judge("room::both", || {
        let host = host(MEMORY * 4)?;
        let limit = limit_above(&host)?;
        let archive = host.dir().join("root/c.tar").to_string_lossy().into_owned();
        host.arctern(&["container", "checkpoint", "c", "--file", &archive])?;
        host.arctern(&["rm", "c"])?;
        let filler = File::create(host.seen(&host.dir().join("root/filler")))?;
        fill(&filler)?;
        fs::write(&limit, ((MEMORY - 8) << 20).to_string())?;
        let output = host.attempt(&["container", "restore", "--file", &archive])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(125), "{:?}: {said}", output.status);
        ensure!(said.contains("for the unpacked checkpoint"), "nothing about the disk: {said}");
        ensure!(said.contains("control group"), "nothing about the memory: {said}");
        ensure!(host.arctern(&["ps", "-q"])?.lines().count() == 1, "a container is left");
        filler.set_len(0)?;
        fs::write(&limit, (256 << 20).to_string())?;
        host.arctern(&["container", "restore", "--file", &archive])?;
        longest(&host)?;
        host.arctern(&["rm", "-f", "-t", "0", "c", "other"])?;
        Ok(())
    })
}

#[test]
fn a_restore_without_memory_is_refused_and_keeps_its_checkpoint() -> Result<(), String> {
    judge("room::memory", || {
        let host = host(MEMORY * 4)?;
        let limit = limit_above(&host)?;
        let group = limit.parent().context("no group")?;
        host.arctern(&["container", "checkpoint", "c"])?;
        fs::write(&limit, ((MEMORY - 8) << 20).to_string())?;
        let output = host.attempt(&["container", "restore", "c"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains(&format!("control group {}", group.display())), "{said}");
        ensure!(said.contains("raise its limit"), "{said}");
        fs::write(&limit, (256 << 20).to_string())?;
        host.arctern(&["container", "restore", "c"])?;
        longest(&host)?;
        host.arctern(&["rm", "-f", "-t", "0", "c", "other"])?;
        Ok(())
    })
}
