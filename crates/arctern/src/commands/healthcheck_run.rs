//! `healthcheck run`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Check the health of a container now
///
/// Runs the command that --health-cmd gave it, as `exec` would. Exits with 0 if it is well and with 1
/// if it is not. The result counts like those of the checks that run by themselves: `ps` and
/// `inspect` show it.
///
///   arctern healthcheck run web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let container = args.container;
    let result = ctx
        .host()?
        .check_health(&container)
        .cannot(|| format!("check the health of container `{container}`"))?;
    Ok(u8::from(result.exit_code != 0))
}
