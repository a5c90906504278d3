//! `rename`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Give a container another name
///
/// Also while it runs. Its own files in /etc know the new name after the next start.
///
///   arctern rename web www
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    host.rename(&args.container, &args.name)
        .cannot(|| format!("rename container `{}`", args.container))?;
    Ok(0)
}
