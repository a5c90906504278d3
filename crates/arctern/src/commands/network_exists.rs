//! `network exists`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Say by the exit code whether a network exists: 0 if it does, 1 if not
///
///   arctern network exists lan || arctern network create lan
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Network, by name or id
    #[arg(value_name = "NETWORK")]
    pub network: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    match ctx.host()?.network(&args.network) {
        Ok(_) => Ok(0),
        Err(arctern_container::Error::NoSuchNetwork(_)) => Ok(1),
        Err(error) => Err(error).cannot(|| format!("look for network `{}`", args.network)),
    }
}
