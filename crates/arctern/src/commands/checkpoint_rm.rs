//! `checkpoint rm`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Remove the checkpoints that are kept with containers
///
/// The containers stay. One that was stopped by its checkpoint can only go on from it: that one is
/// removed with --force only, and the container has ended then.
///
///   arctern checkpoint rm web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Remove also what a stopped container needs to go on
    #[arg(short, long)]
    pub force: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    for_each(&args.containers, |name| {
        host.checkpoint_remove(name, args.force)
            .cannot(|| format!("remove the checkpoint of `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
