//! `kill`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Send a signal to containers
///
///   arctern kill web
///   arctern kill --signal HUP web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let signal = arctern_container::signal::parse(&args.signal).cannot(|| "send a signal")?;
    let mut host = ctx.host()?;
    for_each(&args.containers, |name| {
        host.kill(name, signal).cannot(|| format!("signal container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
