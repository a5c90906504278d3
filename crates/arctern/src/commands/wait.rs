//! `wait`

use arctern_container::lifecycle::Condition;

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Wait until containers end and print their exit codes
///
/// With --condition until something else is the case; -1 stands for no exit code.
///
///   code=$(arctern wait job)
///   arctern wait --condition running --condition exited web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// What to wait for: running, stopped (or exited), created, checkpointed, healthy, unhealthy,
    /// removed; with several, any of them
    #[arg(long, value_name = "STATE")]
    pub condition: Vec<Condition>,
    /// The container that was created last
    #[arg(short, long, conflicts_with = "containers")]
    pub latest: bool,
    /// A container that does not exist is no error: its code is -1
    #[arg(long)]
    pub ignore: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "latest")]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names = match args.latest {
        true => vec![host.latest().cannot(|| "find the latest container")?],
        false => args.containers,
    };
    for_each(&names, |name| {
        let waited = match args.condition.as_slice() {
            [] => host.wait(name),
            conditions => host.wait_until(name, conditions),
        };
        let code = match waited {
            Err(arctern_container::Error::NoSuchContainer(_)) if args.ignore => -1,
            result => result.cannot(|| format!("wait for container `{name}`"))?,
        };
        outln!("{code}");
        Ok(())
    })
}
