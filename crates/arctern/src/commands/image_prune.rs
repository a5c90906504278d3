//! `image prune`

use std::collections::BTreeSet;

use super::Context;
use super::images::is_meant;
use super::lists::{Condition, parse_condition};
use crate::report::{Cannot, CommandResult};
use crate::ui::{confirm, size};

/// Remove images that have no name, or with --all those that no container uses
///
/// Layers that nothing refers to any more go with them. Prints the ids of what was removed.
///
///   arctern image prune
///   arctern image prune --all --force
///   arctern image prune --all --force --filter until=240h
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Also images with names, if no container uses them
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only matching ones, as with `images`
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
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
    let mut meant = BTreeSet::new();
    for image in host.images.images().cannot(|| "list images")? {
        if is_meant(&host, &args.filter, &image).cannot(|| "remove unused images")? {
            meant.insert(image.id);
        }
    }
    let removed = host.images.prune(args.all, |image| meant.contains(&image.id));
    let removed = removed.cannot(|| "remove unused images")?;
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
