//! `wait`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Wait until containers end and print their exit codes
///
///   code=$(arctern wait job)
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    for_each(&args.containers, |name| {
        let code = host.wait(name).cannot(|| format!("wait for container `{name}`"))?;
        outln!("{code}");
        Ok(())
    })
}
