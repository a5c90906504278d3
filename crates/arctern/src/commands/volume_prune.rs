//! `volume prune`

use super::Context;
use super::lists::{Condition, parse_condition};
use super::volume_ls::is_meant;
use crate::report::{Cannot, CommandResult};
use crate::ui::confirm;

/// Remove the volumes that no container has, with their files
///
/// Prints the names of the removed ones.
///
///   arctern volume prune --force
///   arctern volume prune --force --filter label=test
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only matching ones: name=, label=, until=
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let question = "Remove all volumes that no container has, with their files?";
    if !args.force && !confirm(question).cannot(|| "ask")? {
        return Ok(0);
    }
    let meant = |info: &_| is_meant(&args.filter, info);
    for name in ctx.host()?.volume_prune(meant).cannot(|| "remove unused volumes")? {
        outln!("{name}");
    }
    Ok(0)
}
