//! `forward rm`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// End connections by way of hosts that containers have left
///
///   arctern forward rm web
///   arctern forward rm --all
///
/// On the host that the container left its published ports lead nowhere any more, and its address is
/// free. On the host where it runs answers no longer go back to the other one. Each host ends its own
/// part: what is ended on one of them is of no use on the other.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Of all containers
    #[arg(short, long, conflicts_with = "containers")]
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
        let all = host.forwards().cannot(|| "list what is forwarded")?;
        names.extend(all.into_iter().map(|forward| forward.container));
        names.sort_unstable();
        names.dedup();
    }
    for_each(&names, |name| {
        let id = host.end_forward(name).cannot(|| format!("end what is forwarded for `{name}`"))?;
        outln!("{id}");
        Ok(())
    })
}
