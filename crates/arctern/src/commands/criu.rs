//! `criu`

use crate::report::{Cannot, CommandResult};

/// Dump and restore process trees with CRIU's command line
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[arg(value_name = "COMMAND")]
    pub command: String,
}

/// Runs the command.
pub fn run(args: Args) -> CommandResult {
    Err(anyhow::anyhow!("the engine is not built in")).cannot(|| args.command)
}
