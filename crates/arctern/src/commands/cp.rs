//! `cp`

use arctern_container::lifecycle::Place;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Copy files into a container or out of it
///
/// Also for containers that do not run. A directory is copied with all in it, `DIR/.` is what is in it.
/// `-` stands for a tar archive on standard input or output. What arrives in a container belongs to
/// the container's user, what arrives here to whoever copies; --archive=false keeps the owners.
///
///   arctern cp web:/etc/nginx/nginx.conf .
///   arctern cp ./nginx.conf web:/tmp/
///   arctern cp web:/var/www/. - | tar -t
///   tar -c nginx.conf | arctern cp - web:/tmp
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Give what is copied to the container's user, or to yourself
    #[arg(short, long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub archive: bool,
    /// What to copy
    #[arg(value_name = "[CONTAINER:]SOURCE|-")]
    pub source: String,
    /// Where to
    #[arg(value_name = "[CONTAINER:]TARGET|-")]
    pub target: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let (from, to) = (Place::parse(&args.source), Place::parse(&args.target));
    ctx.host()?
        .copy(&from, &to, !args.archive)
        .cannot(|| format!("copy {} to {}", args.source, args.target))?;
    Ok(0)
}
