//! `stop`

use super::select::{Select, running};
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Stop containers
///
/// Sends the container's stop signal, SIGTERM unless it was created with another, and SIGKILL when
/// it has not ended in time. A container that does not run is no error. One that is paused goes on
/// to take the signal. Whatever its restart policy, a stopped container stays stopped.
///
///   arctern stop web
///   arctern stop --time 2 web db
///   arctern stop --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Seconds until SIGKILL [default: that of the container, 10]
    #[arg(short, long, value_name = "SECONDS")]
    pub time: Option<u32>,
    /// A container that does not exist is no error
    #[arg(short, long)]
    pub ignore: bool,
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names = args.select.names(&mut host, running)?;
    for_each(&names, |name| {
        match host.stop(name, args.time) {
            Err(arctern_container::Error::NoSuchContainer(_)) if args.ignore => return Ok(()),
            result => result.cannot(|| format!("stop container `{name}`"))?,
        };
        outln!("{name}");
        Ok(())
    })
}
