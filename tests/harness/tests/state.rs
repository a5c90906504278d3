//! docs/state.md is what the code says. `ARCTERN_UPDATE=1` writes it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::engine::source;
use arctern_harness::kinds;

#[test]
fn the_table_of_kinds_is_what_the_code_says() -> Result<()> {
    let path = source().join("docs/state.md");
    let document = kinds::document()?;
    if std::env::var_os("ARCTERN_UPDATE").is_some() {
        return std::fs::write(&path, document).context("cannot write docs/state.md");
    }
    let written = std::fs::read_to_string(&path).context("cannot read docs/state.md")?;
    ensure!(
        written == document,
        "docs/state.md is not what the code says: ARCTERN_UPDATE=1 cargo nextest run --workspace -E \
         'binary(state)' writes it"
    );
    Ok(())
}

#[test]
fn forty_workloads_go_each_way_through_criu() -> Result<()> {
    let ways = kinds::ways()?;
    ensure!(ways.to_criu >= 40 && ways.from_criu >= 40, "{ways:?}");
    println!("{ways:?}");
    Ok(())
}
