//! `image prune`

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::{confirm, size};

/// Remove images that have no name, or with --all those that no container uses
///
/// Layers that nothing refers to any more go with them. Prints the ids of what was removed.
///
///   arctern image prune
///   arctern image prune --all --force
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Also images with names, if no container uses them
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let question = match args.all {
        true => "Remove all images that no container uses?",
        false => "Remove all images without a name?",
    };
    if !args.force && !confirm(question).cannot(|| "ask")? {
        return Ok(0);
    }
    let host = ctx.host()?;
    let removed = host.images.prune(args.all).cannot(|| "remove unused images")?;
    for image in &removed {
        outln!("{}", image.id);
    }
    eprintln!(
        "{} image(s) removed, {} at most given back",
        removed.len(),
        size(removed.iter().map(|image| image.size).sum())
    );
    Ok(0)
}
