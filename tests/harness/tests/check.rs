//! `criu dump --check` and `container checkpoint --dry-run`: everything in the way is told at once, and
//! nobody is stopped.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::engine::Engine::Arctern;
use arctern_harness::host::Host;
use arctern_harness::skips::judge;
use arctern_harness::workload::Run;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks at the threads of a tree all the time, and fails with the first that is held.
#[test]
fn a_check_stops_no_thread() -> Result<()> {
    let run = Run::start("threads")?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                run.unharmed()?;
                looks += 1;
            }
            anyhow::Ok(looks)
        });
        let mut checked = Ok(());
        for _ in 0..20 {
            let output = Arctern.check_command(run.pid()).and_then(|mut c| Ok(c.output()?));
            checked = output.and_then(|output| {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(
                    output.status.success() && text == "Nothing is in the way.\n",
                    "{output:?}"
                );
                Ok(())
            });
            if checked.is_err() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        let looks = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
        checked?;
        ensure!(looks > 20, "only {looks} looks");
        Ok(())
    })?;
    run.verify()
}

#[test]
fn a_check_tells_json() -> Result<()> {
    let run = Run::start("lease")?;
    let output = Arctern.check_command(run.pid())?.arg("--json").output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let list = told["blockers"].as_array().context("no list of blockers")?;
    ensure!(list.len() == 1, "{told}");
    ensure!(list[0]["subject"]["pid"] == run.pid(), "{told}");
    ensure!(list[0]["remedy"] == "give the lease up before the checkpoint", "{told}");
    run.verify()
}

#[test]
fn a_container_is_checked_while_it_runs() -> Result<(), String> {
    judge("check::container", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        let lock = ["flock", "/etc/hostname", "sleep", "infinity"];
        host.arctern(&[&["run", "-d", "--name", "locked", "nginx"][..], &lock].concat())?;
        host.arctern(&["run", "-d", "--name", "free", "nginx", "sleep", "infinity"])?;
        let free = host.arctern(&["container", "checkpoint", "--dry-run", "free"])?;
        ensure!(free == "Nothing is in the way.", "{free}");
        let output = host.attempt(&["container", "checkpoint", "--dry-run", "--json", "locked"])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("checkpoint with --file-locks"), "{text}");
        let locked = ["container", "checkpoint", "--dry-run", "--file-locks", "locked"];
        let told = host.arctern(&locked)?;
        ensure!(told == "Nothing is in the way.", "{told}");
        let running = host.arctern(&["ps", "-q"])?;
        ensure!(running.lines().count() == 2, "{running}");
        host.arctern(&["rm", "-f", "-t", "0", "locked", "free"])?;
        Ok(())
    })
}
