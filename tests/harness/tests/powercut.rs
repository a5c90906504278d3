//! A power cut: everything that was not synced is gone. The state is on a file system in a file; a copy
//! of that file, made while it is mounted, has what a disk would have.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::crash;
use arctern_harness::host::{Host, run};
use arctern_harness::skips::{Skip, judge};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file system in a file, mounted until the value is dropped.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(file: &Path, at: &Path) -> Result<Disk> {
        fs::create_dir_all(at)?;
        // Nothing is written by the file system on its own account: no heuristics, no timers.
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,noauto_da_alloc,commit=900"]).arg(file).arg(at);
        let output = mount.output()?;
        match output.status.success() {
            true => Ok(Disk { at: at.to_owned() }),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(Skip(format!("no file system in a file: {said}")).into())
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

/// The machine after the power cut: the disk as it was, another boot, an empty run directory.
struct After<'a> {
    host: &'a Host,
    _disk: Disk,
    root: PathBuf,
    run: PathBuf,
    boot: PathBuf,
}

impl<'a> After<'a> {
    fn the_cut(host: &'a Host, file: &Path, number: usize) -> Result<After<'a>> {
        let base = host.dir();
        let copy = base.join("copy");
        // The file system of the copy before may still be on its way out, and writes then.
        let _ = fs::remove_file(&copy);
        run(Command::new("cp").arg("--sparse=always").args([file, &copy]))?;
        let root = base.join(format!("after-{number}"));
        let disk = Disk::mount(&copy, &root)?;
        let boot = base.join("boot");
        fs::write(&boot, format!("00000000-0000-0000-0000-{number:012}\n"))?;
        let run = base.join(format!("run-{number}"));
        Ok(After { host, _disk: disk, root, run, boot })
    }

    fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
        let arctern = self.host.command(&[]);
        let program = arctern.get_args().nth(1).context("no program")?;
        let mut command = self.host.place().command("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&self.boot).arg(program);
        command.arg("--root").arg(&self.root).arg("--runroot").arg(&self.run).args(arguments);
        command.output().context("cannot run unshare")
    }

    fn arctern(&self, arguments: &[&str]) -> Result<String> {
        let output = self.attempt(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("after the power cut, `{}`: {text}{said}", arguments.join(" "));
        }
        Ok(text)
    }

    /// Nothing is half there once it is repaired; every digest matches.
    fn is_consistent(&self) -> Result<()> {
        self.arctern(&["system", "check", "--repair"])?;
        let left = self.arctern(&["system", "check"])?;
        ensure!(left.is_empty(), "after the power cut and the repair: {left}");
        Ok(())
    }
}

impl Drop for After<'_> {
    fn drop(&mut self) {
        if let Ok(ids) = self.arctern(&["ps", "-a", "-q"]) {
            for id in ids.lines() {
                let _ = self.attempt(&["rm", "-f", "-t", "0", id]);
            }
        }
    }
}

const SLEEPER: &[&str] = &["tiny", "sh", "-c", "while :; do sleep 1; done"];

#[test]
fn what_was_told_is_there_after_a_power_cut() -> Result<(), String> {
    judge("powercut::told", || {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        let file = host.dir().join("disk");
        fs::File::create(&file)?.set_len(512 << 20)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&file))?;
        let root = host.dir().join("root");
        let _disk = Disk::mount(&file, &root)?;
        let archive = root.join("c.tar");
        let archive = archive.to_string_lossy();

        crash::tiny_image(&host)?;
        // What nobody has synced is gone: else this would be no power cut.
        fs::write(root.join("unsynced"), b"x")?;
        let after = After::the_cut(&host, &file, 0)?;
        ensure!(!after.root.join("unsynced").exists(), "what was not synced is there");
        after.is_consistent()?;
        after.arctern(&["run", "--rm", "--network", "none", "tiny", "sh", "-c", ":"])?;
        drop(after);

        host.arctern(&[&["create", "--network", "none", "--name", "c"][..], SLEEPER].concat())?;
        let after = After::the_cut(&host, &file, 1)?;
        after.is_consistent()?;
        after.arctern(&["start", "c"])?;
        drop(after);

        host.arctern(&["start", "c"])?;
        let after = After::the_cut(&host, &file, 2)?;
        let list = after.arctern(&["ps", "-a"])?;
        ensure!(list.contains("Exited") || list.contains("Created"), "{list}");
        after.is_consistent()?;
        after.arctern(&["start", "c"])?;
        drop(after);

        host.arctern(&["container", "checkpoint", "c"])?;
        let after = After::the_cut(&host, &file, 3)?;
        after.is_consistent()?;
        after.arctern(&["container", "restore", "c"]).context("kept with the container")?;
        drop(after);

        host.arctern(&["container", "restore", "c"])?;
        host.arctern(&["container", "checkpoint", "c", "--file", &archive])?;
        let after = After::the_cut(&host, &file, 4)?;
        after.is_consistent()?;
        let there = after.root.join("c.tar");
        let there = there.to_string_lossy();
        after.arctern(&["container", "restore", "--name", "again", "--file", &there])?;
        let hidden = crash::hidden_files(&after.root)?;
        ensure!(hidden.is_empty(), "{hidden:?}");
        drop(after);

        host.arctern(&["network", "create", "lan"])?;
        host.arctern(&["volume", "create", "data"])?;
        host.arctern(&["tag", "tiny", "small"])?;
        host.arctern(&["rm", "c"])?;
        let after = After::the_cut(&host, &file, 5)?;
        let list = after.arctern(&["ps", "-a", "-q"])?;
        ensure!(list.is_empty(), "a removed container is back: {list}");
        after.arctern(&["network", "exists", "lan"])?;
        after.arctern(&["volume", "inspect", "data"])?;
        after.arctern(&["run", "--rm", "--network", "none", "small", "sh", "-c", ":"])?;
        after.is_consistent()?;
        drop(after);

        let saved = root.join("saved.tar").to_string_lossy().into_owned();
        let tar = host.dir().join("tiny.tar").to_string_lossy().into_owned();
        host.arctern(&["save", "-o", &saved, "small"])?;
        host.arctern(&["untag", "tiny", "small"])?;
        host.arctern(&["volume", "import", "data", &tar])?;
        host.arctern(&["volume", "create", "gone"])?;
        host.arctern(&["volume", "rm", "gone"])?;
        host.arctern(&[&["run", "-d", "--network", "none", "--name", "d"][..], SLEEPER].concat())?;
        host.arctern(&["rename", "d", "e"])?;
        host.arctern(&["container", "checkpoint", "--create-image", "frozen", "e"])?;
        let after = After::the_cut(&host, &file, 6)?;
        let names = after.arctern(&["ps", "-a", "--format", "{{.Names}}"])?;
        ensure!(names == "e", "the containers are {names}");
        let images = after.arctern(&["images", "--json"])?;
        ensure!(!images.contains("small"), "a name is back: {images}");
        ensure!(after.arctern(&["volume", "ls", "-q"])? == "data", "a removed volume is back");
        after.arctern(&[
            "volume",
            "export",
            "data",
            "-o",
            &after.root.join("v").to_string_lossy(),
        ])?;
        let listed = run(Command::new("tar").arg("-tf").arg(after.root.join("v")))?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(listed.contains("bin/sh"), "the volume has {listed}");
        after.arctern(&["load", "-i", &after.root.join("saved.tar").to_string_lossy()])?;
        after.arctern(&["container", "restore", "--name", "f", "frozen"])?;
        after.is_consistent()?;
        drop(after);

        host.arctern(&["rm", "e"])?;
        host.arctern(&["rmi", "frozen"])?;
        host.arctern(&["volume", "rm", "data"])?;
        let after = After::the_cut(&host, &file, 7)?;
        let images = after.arctern(&["images", "--json"])?;
        ensure!(!images.contains("frozen"), "a removed image is back: {images}");
        ensure!(after.arctern(&["volume", "ls", "-q"])?.is_empty(), "a removed volume is back");
        after.is_consistent()
    })
}
