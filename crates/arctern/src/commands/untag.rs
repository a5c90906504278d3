//! `untag`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Take names from an image, and keep it
///
/// Without names all are taken.
///
///   arctern untag nginx registry.example:5000/team/nginx:1
///   arctern untag nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Names
    #[arg(value_name = "NAME[:TAG]")]
    pub names: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    host.images.untag(&args.image, &args.names).cannot(|| format!("untag `{}`", args.image))?;
    Ok(0)
}
