//! Every workload under every pair of engines: who captures, who restores.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
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

fn main() {
    let arguments = Arguments::from_args();
    let list = Command::new(program()).arg("list").output();
    let list = match &list {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        _ => {
            eprintln!("{} does not run: cargo build -p arctern-workloads", program().display());
            std::process::exit(1);
        }
    };
    let mut trials = Vec::new();
    for workload in list.lines() {
        for (column, capture, restore) in COLUMNS {
            let name = format!("{workload}::{column}");
            let (test_name, workload) = (name.clone(), workload.to_owned());
            trials.push(Trial::test(name, move || test(&test_name, &workload, capture, restore)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
