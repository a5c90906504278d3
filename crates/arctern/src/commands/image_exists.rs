//! `image exists`

use arctern_storage::StoreError;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Exit with 0 if an image is here, with 1 if it is not
///
///   arctern image exists nginx || arctern pull nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let found = ctx.host()?.images.resolve(&args.image);
    match found {
        Ok(_) => Ok(0),
        Err(StoreError::NoSuchImage(..)) => Ok(1),
        Err(error) => Err(error).cannot(|| format!("look for image `{}`", args.image)),
    }
}
