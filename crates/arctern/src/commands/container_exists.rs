//! `container exists`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Exit with 0 if there is such a container, and with 1 if there is none
///
///   arctern container exists web && arctern stop web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    match ctx.host()?.find(&args.container) {
        Ok(_) => Ok(0),
        Err(arctern_container::Error::NoSuchContainer(_)) => Ok(1),
        Err(error) => Err(error).cannot(|| format!("look for container `{}`", args.container)),
    }
}
