//! `stop`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Stop containers
///
/// Sends the container's stop signal, SIGTERM unless it was created with another, and SIGKILL when
/// it has not ended in time. A container that does not run is no error.
///
///   arctern stop web
///   arctern stop --time 2 web db
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Seconds until SIGKILL [default: that of the container, 10]
    #[arg(short, long, value_name = "SECONDS")]
    pub time: Option<u32>,
    /// All running containers
    #[arg(short, long)]
    pub all: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "all")]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut names = args.containers;
    if args.all {
        let records = host.list().cannot(|| "list containers")?;
        names.extend(records.iter().filter(|r| host.init(r).is_some()).map(|r| r.id().to_owned()));
    }
    for_each(&names, |name| {
        host.stop(name, args.time).cannot(|| format!("stop container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
