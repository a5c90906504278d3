//! `checkpoint ls`

use serde_json::{Value, json};

use super::Context;
use super::lists::Shown;
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// List the checkpoints that are kept with containers
///
/// Those that `checkpoint` made without --file. A container that was stopped by it waits for
/// `arctern restore`; one that goes on can be restored from it when it has stopped.
///
///   arctern checkpoint ls
///   arctern checkpoint ls --format 'table {{.Name}}\t{{.Size}}'
///   arctern checkpoint ls --format json | jq '.[].Size'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub shown: Shown,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Id", "CONTAINER ID"),
    ("Name", "NAME"),
    ("Status", "STATUS"),
    ("Created", "CREATED"),
    ("Size", "SIZE"),
];

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let all = ctx.host()?.checkpoints().cannot(|| "list checkpoints")?;
    let (mut rows, mut list): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for kept in all {
        let value = json!({
            "Id": kept.record.id(),
            "Name": kept.record.name(),
            "Status": kept.record.status.as_str(),
            "Created": kept.created.rfc3339(),
            "Size": kept.size,
        });
        let mut row = value.clone();
        row["ID"] = kept.record.config.short_id().into();
        row["Size"] = size(kept.size).into();
        rows.push(row);
        list.push(value);
    }
    args.shown.print(&rows, &list, FIELDS, &["ID", "Name", "Status", "Created", "Size"])?;
    Ok(0)
}
