//! Captures and restores that are killed at a random moment: the workload must not notice, and
//! nothing may be left. The moments come from a seed (`ARCTERN_SEED`).
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::engine::Engine::{self, Arctern};
use arctern_harness::process::{processes_below, reap_orphans};
use arctern_harness::random::{Random, rounds};
use arctern_harness::workload::Run;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts the command, kills it after a random part of `span`, and waits for it.
fn killed(mut command: Command, span: Duration, random: &mut Random) -> Result<bool> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The moment of the kill is the point of the test, not a wait for something.
    std::thread::sleep(Duration::from_micros(random.below(span.as_micros() as u64 + 1)));
    child.kill()?;
    Ok(!child.wait()?.success())
}

fn fresh(images: &Path) -> Result<()> {
    if images.exists() {
        fs::remove_dir_all(images)?;
    }
    Ok(fs::create_dir_all(images)?)
}

fn captures(workload: &str, same_maps: bool) -> Result<()> {
    let run = Run::start(workload)?;
    let images = run.images("images")?;
    let start = Instant::now();
    Arctern.dump(run.pid(), &images, true)?;
    let span = start.elapsed();
    let maps = run.maps()?;
    let mut random = Random::seeded();
    let mut hits = 0;
    for round in 0..rounds(25, 500) {
        fresh(&images)?;
        let command = Engine::dump_command(Arctern, run.pid(), &images, true)?;
        hits += usize::from(killed(command, span, &mut random)?);
        run.unharmed().with_context(|| format!("after kill {round}"))?;
        if same_maps {
            let now = run.maps()?;
            for line in maps.lines() {
                let kept = now.lines().any(|other| other == line);
                ensure!(kept, "kill {round} changed the mapping {line}:\n{now}");
            }
            // Nobody is left who could unmap the page of remote calls.
            let more = now.lines().count() - maps.lines().count();
            ensure!(more <= round + 1, "kill {round} left {more} mappings:\n{now}");
        }
    }
    println!("{hits} captures were killed");
    run.verify()
}

/// Fails the operation at its first step, its second, and so on, until none is left to fail; calls
/// `after` with each failure. The number of steps.
fn every_step(
    operation: &str,
    mut attempt: impl FnMut() -> Result<Command>,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    for step in 0.. {
        let output = attempt()?.env("ARCTERN_FAULT", format!("{operation}:{step}")).output()?;
        if output.status.success() {
            return Ok(step);
        }
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(step < 1000, "step after step fails: {message}");
        after(step).with_context(|| format!("after a fault at step {step}: {message}"))?;
    }
    unreachable!("the loop ends by itself")
}

fn capture_faults(workload: &str, same_maps: bool) -> Result<()> {
    let run = Run::start(workload)?;
    let images = run.images("images")?;
    Arctern.dump(run.pid(), &images, true)?;
    let maps = run.maps()?;
    let steps = every_step(
        "capture",
        || {
            fresh(&images)?;
            Engine::dump_command(Arctern, run.pid(), &images, true)
        },
        |_| {
            run.unharmed()?;
            if same_maps {
                let now = run.maps()?;
                ensure!(now == maps, "a mapping was left:\nbefore\n{maps}\nafter\n{now}");
            }
            Ok(())
        },
    )?;
    ensure!(steps > 3, "a capture has only {steps} steps");
    run.verify()
}

#[test]
fn capture_that_fails_at_any_step_leaves_threads_unharmed() -> Result<()> {
    capture_faults("threads", true)
}

#[test]
fn capture_that_fails_at_any_step_leaves_a_tree_unharmed() -> Result<()> {
    capture_faults("sessions", true)
}

#[test]
fn capture_that_fails_at_any_step_leaves_a_busy_program_unharmed() -> Result<()> {
    capture_faults("busy", false)
}

#[test]
fn capture_that_fails_at_any_step_leaves_connections_unharmed() -> Result<()> {
    capture_faults("tcp-queues", false)?;
    capture_faults("tcp-accept-queue", false)?;
    capture_faults("tcp-closing", false)
}

fn restore_faults(workload: &str) -> Result<()> {
    let mut run = Run::start(workload)?;
    let images = run.images("images")?;
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, false)?;
    run.wait_for_kill(tree)?;
    let steps = every_step(
        "restore",
        || Engine::restore_command(Arctern, &images),
        |_| {
            let left = processes_below(&run.work());
            ensure!(left.is_empty(), "processes were left: {left:?}");
            Ok(())
        },
    )?;
    ensure!(steps > 3, "a restore has only {steps} steps");
    let pid = fs::read_to_string(images.join("restored.pid"))?;
    run.restored(pid.trim().parse()?)?;
    run.verify()
}

#[test]
fn restore_that_fails_at_any_step_leaves_nothing_of_threads() -> Result<()> {
    restore_faults("threads")
}

#[test]
fn restore_that_fails_at_any_step_leaves_nothing_of_a_tree() -> Result<()> {
    restore_faults("sessions")?;
    restore_faults("unix-peers-inside")
}

#[test]
fn restore_that_fails_at_any_step_leaves_connections_for_the_next() -> Result<()> {
    restore_faults("tcp-queues")?;
    restore_faults("tcp-half-closed")?;
    restore_faults("tcp-accept-queue")?;
    restore_faults("tcp-closing")
}

#[test]
fn killed_capture_leaves_connections_unharmed() -> Result<()> {
    captures("tcp-closing", false)
}

#[test]
fn capture_that_is_killed_while_it_reads_a_connection_leaves_it_whole() -> Result<()> {
    for workload in ["tcp-queues", "tcp-closing", "tcp-options"] {
        for point in ["in-repair", "release"] {
            let run = Run::start(workload)?;
            let images = run.images("images")?;
            let mut command = Engine::dump_command(Arctern, run.pid(), &images, false)?;
            let killed = command.env("ARCTERN_FAULT", format!("kill-capture:{point}")).status()?;
            ensure!(killed.code().is_none(), "the capture was not killed but ended with {killed}");
            // Its guard is an orphan now, which ends when it is done.
            reap_orphans(Duration::from_millis(300));
            run.unharmed().with_context(|| format!("{workload}, killed at {point}"))?;
            run.verify().with_context(|| format!("{workload}, killed at {point}"))?;
        }
    }
    Ok(())
}

/// Kills a restore at the beginning of a step; what is left of the tree.
fn restore_killed_at(step: &str, run: &Run, images: &Path) -> Result<Vec<i32>> {
    let mut command = Engine::restore_command(Arctern, images)?;
    let killed = command.env("ARCTERN_FAULT", format!("kill-restore:{step}")).status()?;
    ensure!(killed.code().is_none(), "not killed at {step}, but ended with {killed}");
    reap_orphans(Duration::from_millis(500));
    Ok(processes_below(&run.work()))
}

#[test]
fn restore_that_is_killed_leaves_nothing_or_whole_connections() -> Result<()> {
    for workload in [
        "tcp-queues",
        "tcp-half-closed",
        "tcp-closing",
        "tcp-both-ends",
        "tcp-syn-sent",
        "sessions",
    ] {
        for last in ["unlock", "release"] {
            let mut run = Run::start(workload)?;
            let images = run.images("images")?;
            let (tree, pid) = (run.tree()?, run.pid());
            Arctern.dump(pid, &images, false)?;
            run.wait_for_kill(tree)?;
            for step in ["connections", "registers 0", "secure"] {
                let left = restore_killed_at(step, &run, &images)?;
                ensure!(left.is_empty(), "{workload}, killed at {step}, left {left:?}");
            }
            let left = restore_killed_at(last, &run, &images)?;
            ensure!(left.contains(&pid), "{workload}, killed at {last}: {pid} is not in {left:?}");
            run.restored(pid)?;
            run.unharmed().with_context(|| format!("{workload}, killed at {last}"))?;
            run.verify().with_context(|| format!("{workload}, killed at {last}"))?;
        }
    }
    Ok(())
}

#[test]
fn killed_capture_leaves_threads_unharmed() -> Result<()> {
    captures("threads", true)
}

#[test]
fn killed_capture_leaves_a_busy_program_unharmed() -> Result<()> {
    // A controller that dies in the middle of a remote call cannot give a sleeping thread its
    // interrupted call back: the call returns EINTR, as after a signal.
    captures("busy-interruptible", false)
}

#[test]
fn killed_restore_leaves_nothing_and_can_be_repeated() -> Result<()> {
    let mut run = Run::start("threads")?;
    let images = run.images("images")?;
    let tree = run.tree()?;
    Arctern.dump(run.pid(), &images, false)?;
    run.wait_for_kill(tree)?;
    let mut random = Random::seeded();
    let start = Instant::now();
    let pid = Arctern.restore(&images)?;
    let span = start.elapsed();
    run.restored(pid)?;
    for round in 0..rounds(20, 400) {
        run.kill()?;
        let command = Engine::restore_command(Arctern, &images)?;
        let was_killed = killed(command, span, &mut random)?;
        // A restore that was killed after its end left a running tree, which does not end.
        reap_orphans(Duration::from_millis(500));
        let left = processes_below(&run.work());
        // A kill after the release of the tasks comes too late: then all of them are there.
        if was_killed && !left.is_empty() {
            ensure!(left.contains(&pid), "kill {round} left {left:?} without their root");
            run.restored(pid)?;
            run.unharmed().with_context(|| format!("after kill {round}"))?;
        } else if left.is_empty() {
            run.restored(Arctern.restore(&images).with_context(|| format!("after kill {round}"))?)?;
        } else {
            run.restored(pid)?;
        }
    }
    run.verify()
}
