//! `container prune`

use arctern_container::state::Status;

use super::select::{Filter, matches, parse_filter};
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};
use crate::ui::confirm;

/// Remove all containers that have ended or were never started
///
/// Those that were checkpointed stay: they are to go on some day. Prints the ids of the removed ones.
///
///   arctern container prune --force
///   arctern container prune --force --filter until=24h
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only those that match, as with `ps`
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    pub filter: Vec<Filter>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    if !args.force && !confirm("Remove all containers that do not run?").cannot(|| "ask")? {
        return Ok(0);
    }
    let mut host = ctx.host()?;
    let records = host.list().cannot(|| "list containers")?;
    let over = |status| matches!(status, Status::Created | Status::Exited);
    let ids: Vec<String> = records
        .iter()
        .filter(|record| over(record.status) && matches(&args.filter, &host, record))
        .map(|record| record.id().to_owned())
        .collect();
    for_each(&ids, |id| {
        match host.remove(id, false) {
            // Gone or started meanwhile: that is what others wanted of it.
            Err(
                arctern_container::Error::NoSuchContainer(_)
                | arctern_container::Error::StillRunning(_),
            ) => return Ok(()),
            result => result.cannot(|| format!("remove container `{id}`"))?,
        };
        outln!("{id}");
        Ok(())
    })
}
