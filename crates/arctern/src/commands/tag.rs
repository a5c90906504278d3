//! `tag`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Give an image another name
///
///   arctern tag nginx nginx:stable
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// New name
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub names: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    for name in &args.names {
        host.images.tag(&args.image, name).cannot(|| format!("tag image `{}`", args.image))?;
    }
    Ok(0)
}
