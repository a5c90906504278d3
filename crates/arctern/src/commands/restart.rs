//! `restart`

use super::select::{Select, running};
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Stop containers and start them
///
/// One that does not run is only started. A container that was created with --rm is not removed.
///
///   arctern restart web
///   arctern restart --time 2 --latest
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Seconds until SIGKILL [default: that of the container, 10]
    #[arg(short, long, value_name = "SECONDS")]
    pub time: Option<u32>,
    /// With --all or --filter: only those that run
    #[arg(long)]
    pub running: bool,
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names =
        args.select.names(&mut host, |host, record| !args.running || running(host, record))?;
    for_each(&names, |name| {
        host.restart(name, args.time).cannot(|| format!("restart container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
