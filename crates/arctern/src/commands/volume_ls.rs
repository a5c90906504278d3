//! `volume ls`

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::Table;

/// List volumes
///
///   arctern volume ls
///   arctern volume ls --json | jq '.[].Mountpoint'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let volumes = ctx.host()?.volumes().cannot(|| "list volumes")?;
    if args.json {
        let all: Vec<_> = volumes.iter().map(super::volume_inspect::describe).collect();
        outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let mut table = Table::new(&["DRIVER", "VOLUME NAME", "CONTAINERS"]);
    for info in volumes {
        if args.quiet {
            outln!("{}", info.volume.name);
            continue;
        }
        table.row(vec!["local".to_owned(), info.volume.name, info.containers.join(", ")]);
    }
    if !args.quiet {
        out!("{}", table.render());
    }
    Ok(0)
}
