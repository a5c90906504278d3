//! `unpause`

use arctern_container::Host;

use super::select::Select;
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Let paused containers go on
///
///   arctern unpause web
///   arctern unpause --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names = args.select.names(&mut host, Host::is_paused)?;
    for_each(&names, |name| {
        host.unpause(name).cannot(|| format!("unpause container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
