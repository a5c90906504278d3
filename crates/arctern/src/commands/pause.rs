//! `pause`

use super::select::{Select, running};
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Let containers stand still
///
/// The kernel's freezer stops every process of the container, also those that `exec` started. They
/// keep memory, files and connections, and notice nothing but the time that is gone. `ps` shows
/// the container as paused; it takes no `exec` and no checkpoint until `unpause`.
///
///   arctern pause web
///   arctern pause --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names = args
        .select
        .names(&mut host, |host, record| running(host, record) && !host.is_paused(record))?;
    for_each(&names, |name| {
        host.pause(name).cannot(|| format!("pause container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
