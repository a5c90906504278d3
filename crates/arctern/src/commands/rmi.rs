//! `rmi`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Remove images
///
///   arctern rmi nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Remove an image with all its names, and the containers made from it
    #[arg(short, long)]
    pub force: bool,
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    for_each(&args.images, |name| {
        let action = || format!("remove image `{name}`");
        if args.force {
            let image = host.images.resolve(name).cannot(action)?;
            for record in host.list().cannot(action)? {
                if record.config.image_id == image.id {
                    host.remove(record.id(), true).cannot(action)?;
                }
            }
        }
        let removed = host.images.remove_image(name, args.force).cannot(action)?;
        for name in removed.untagged {
            outln!("Untagged: {name}");
        }
        if let Some(id) = removed.deleted {
            outln!("Deleted: {id}");
        }
        Ok(())
    })
}
