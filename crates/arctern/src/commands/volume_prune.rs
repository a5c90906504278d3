//! `volume prune`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Remove the volumes that no container has
///
///   arctern volume prune
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Do not ask; nothing is asked anyway
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, _: Args) -> CommandResult {
    for name in ctx.host()?.volume_prune().cannot(|| "remove unused volumes")? {
        outln!("{name}");
    }
    Ok(0)
}
