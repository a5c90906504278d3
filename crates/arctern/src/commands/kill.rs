//! `kill`

use super::select::{Select, running};
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Send a signal to containers
///
/// A signal that ends programs (INT, QUIT, KILL, TERM, or the container's stop signal) also stops its
/// restart policy.
///
///   arctern kill --signal HUP web
///   arctern kill web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let signal = arctern_container::signal::parse(&args.signal).cannot(|| "send a signal")?;
    let mut host = ctx.host()?;
    let names = args.select.names(&mut host, running)?;
    for_each(&names, |name| {
        host.kill(name, signal).cannot(|| format!("signal container `{name}`"))?;
        outln!("{name}");
        Ok(())
    })
}
