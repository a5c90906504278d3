//! Every workload under every pair of engines: who captures, who restores. Those that hold what is
//! not carried must be refused with the reason, and go on.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::engine::Engine::{self, Arctern, Criu};
use arctern_harness::skips;
use arctern_harness::workload::{Run, program};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::Command;

/// A column of the matrix: its name, who captures, and who restores (nobody: the tree goes on).
const COLUMNS: [(&str, Engine, Option<Engine>); 5] = [
    ("arctern-leave", Arctern, None),
    ("arctern-arctern", Arctern, Some(Arctern)),
    ("arctern-criu", Arctern, Some(Criu)),
    ("criu-arctern", Criu, Some(Arctern)),
    ("criu-criu", Criu, Some(Criu)),
];

fn cell(workload: &str, capture: Engine, restore: Option<Engine>) -> Result<()> {
    let mut run = Run::start(workload)?;
    let outcome = through(&mut run, capture, restore);
    if outcome.is_err() && std::env::var_os("ARCTERN_KEEP").is_some() {
        return outcome.with_context(|| format!("kept in {}", run.keep().display()));
    }
    outcome
}

fn through(run: &mut Run, capture: Engine, restore: Option<Engine>) -> Result<()> {
    let images = run.images("images")?;
    let tree = run.tree()?;
    if capture == Arctern && restore.is_none() {
        // What can be captured, a check beforehand says so.
        let output = Arctern.check_command(run.pid())?.output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "the check beforehand: {text}");
    }
    capture.dump(run.pid(), &images, restore.is_none())?;
    if let Some(restore) = restore {
        run.wait_for_kill(tree)?;
        let pid = restore.restore(&images)?;
        run.restored(pid)?;
    }
    run.verify()
}

fn test(
    name: &str,
    workload: &str,
    capture: Engine,
    restore: Option<Engine>,
) -> Result<(), Failed> {
    Ok(skips::judge(name, || cell(workload, capture, restore))?)
}

/// What is not carried is refused with the parts of text that the workload declares, nothing is killed
/// or stopped, and the program finds its state as it was.
fn refused(workload: &str, tells: bool, says: &[String]) -> Result<()> {
    let run = Run::start(workload)?;
    let images = run.images("images")?;
    let mut command = Arctern.dump_command(run.pid(), &images, false)?;
    // Of a task that waits in vfork, and never comes.
    command.args(["--timeout", "2"]);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "nothing was refused");
    ensure!(text.contains("(workload)"), "no process is named: {text}");
    for part in says {
        ensure!(text.contains(part.as_str()), "`{part}` is not said: {text}");
    }
    if tells {
        // The check says the same, and stops nobody.
        let found = blockers(run.pid())?;
        for part in says {
            ensure!(found.contains(part.as_str()), "`{part}` is not found beforehand: {found}");
        }
    }
    run.verify()
}

/// What `criu dump --check` finds, as text; it fails when it finds nothing.
fn blockers(pid: i32) -> Result<String> {
    let output = Arctern.check_command(pid)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {text}{errors}", output.status);
    Ok(text)
}

/// What the kernel does not tell stays with a program that is left running, and is gone after a restore,
/// as docs/limits.md says.
fn lost(workload: &str) -> Result<()> {
    cell(workload, Arctern, None)?;
    let Err(error) = cell(workload, Arctern, Some(Arctern)) else {
        bail!("nothing was lost: docs/limits.md and the list of workloads are wrong")
    };
    let text = format!("{error:#}");
    ensure!(text.contains("the workload ended with Exited(1)"), "{text}");
    Ok(())
}

/// What the workload program prints.
fn ask(question: &str) -> String {
    match Command::new(program()).arg(question).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => {
            eprintln!("{} does not run: cargo build -p arctern-workloads", program().display());
            std::process::exit(1);
        }
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for line in ask("refused").lines() {
        let mut fields = line.split('\t').map(str::to_owned);
        let (Some(workload), Some(tells)) = (fields.next(), fields.next()) else { continue };
        let (name, says) = (format!("{workload}::refused"), fields.collect::<Vec<_>>());
        let test_name = name.clone();
        let body =
            move || Ok(skips::judge(&test_name, || refused(&workload, tells == "running", &says))?);
        trials.push(Trial::test(name, body));
    }
    for workload in ask("lost").lines() {
        let (name, workload) = (format!("{workload}::lost"), workload.to_owned());
        let test_name = name.clone();
        let body = move || Ok(skips::judge(&test_name, || lost(&workload))?);
        trials.push(Trial::test(name, body));
    }
    for workload in ask("list").lines() {
        for (column, capture, restore) in COLUMNS {
            let name = format!("{workload}::{column}");
            let (test_name, workload) = (name.clone(), workload.to_owned());
            trials.push(Trial::test(name, move || test(&test_name, &workload, capture, restore)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
