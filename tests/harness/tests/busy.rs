//! A busy program captured and resumed, and restored, many times. `ARCTERN_SOAK=1` makes it 10,000
//! captures and 2,000 restores.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::engine::Engine::Arctern;
use arctern_harness::random::rounds;
use arctern_harness::workload::Run;
use std::fs;

fn clean(run: &Run, round: usize) -> Result<()> {
    let errors = run.progress()?[0];
    ensure!(errors == 0, "{errors} errors after round {round}:\n{}", run.output());
    Ok(())
}

#[test]
fn busy_program_survives_captures() -> Result<()> {
    let run = Run::start("busy")?;
    for round in 0..rounds(40, 10_000) {
        let images = run.images("images")?;
        Arctern.dump(run.pid(), &images, true).with_context(|| format!("round {round}"))?;
        run.unharmed().with_context(|| format!("round {round}"))?;
        clean(&run, round)?;
        fs::remove_dir_all(images)?;
    }
    run.verify()
}

#[test]
fn busy_program_survives_restores() -> Result<()> {
    let mut run = Run::start("busy")?;
    for round in 0..rounds(8, 2000) {
        let images = run.images("images")?;
        let tree = run.tree()?;
        Arctern.dump(run.pid(), &images, false).with_context(|| format!("round {round}"))?;
        run.wait_for_kill(tree)?;
        let pid = Arctern.restore(&images).with_context(|| format!("round {round}"))?;
        run.restored(pid)?;
        clean(&run, round)?;
        fs::remove_dir_all(images)?;
    }
    run.verify()
}
