//! `volume exists`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Say by the exit code whether there is a volume: 0 yes, 1 no
///
///   arctern volume exists data || arctern volume create data
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Volume, by name
    #[arg(value_name = "VOLUME")]
    pub volume: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let volumes = ctx.host()?.volumes().cannot(|| format!("look for volume `{}`", args.volume))?;
    Ok(u8::from(!volumes.iter().any(|info| info.volume.name == args.volume)))
}
