//! `checkpoint ls`

use serde_json::json;

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::{Table, size};

/// List the checkpoints that are kept with containers
///
/// Those that `checkpoint` made without --file. A container that was stopped by it waits for
/// `arctern restore`; one that goes on can be restored from it when it has stopped.
///
///   arctern checkpoint ls
///   arctern checkpoint ls --json | jq '.[].Size'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Names of the containers only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let all = ctx.host()?.checkpoints().cannot(|| "list checkpoints")?;
    if args.json {
        let list: Vec<_> = all
            .iter()
            .map(|kept| {
                json!({
                    "Id": kept.record.id(),
                    "Name": kept.record.name(),
                    "Status": kept.record.status.as_str(),
                    "Created": kept.created.rfc3339(),
                    "Size": kept.size,
                })
            })
            .collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let mut table = Table::new(&["CONTAINER ID", "NAME", "STATUS", "CREATED", "SIZE"]);
    for kept in all {
        if args.quiet {
            outln!("{}", kept.record.name());
            continue;
        }
        table.row(vec![
            kept.record.config.short_id().to_owned(),
            kept.record.name().to_owned(),
            kept.record.status.to_string(),
            kept.created.rfc3339(),
            size(kept.size),
        ]);
    }
    if !args.quiet {
        out!("{}", table.render());
    }
    Ok(0)
}
