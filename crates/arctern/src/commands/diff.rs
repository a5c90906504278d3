//! `diff`

use serde_json::json;

use arctern_storage::diff::ChangeKind;

use super::Context;
use super::select::One;
use crate::report::{Cannot, CommandResult};

/// List what a container has changed in its root file system
///
/// `A` is a path that it added, `C` one that it changed, `D` one that it deleted.
///
///   arctern diff web
///   arctern diff --format json web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format: text or json
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
    #[command(flatten)]
    pub one: One,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let name = args.one.name(&host)?;
    let changes =
        host.changes(&name).cannot(|| format!("list the changes of container `{name}`"))?;
    if args.format == "json" {
        let of = |kind| -> Vec<String> {
            let own = changes.iter().filter(|(_, k)| *k == kind);
            own.map(|(path, _)| path.display().to_string()).collect()
        };
        let all = json!({
            "added": of(ChangeKind::Added),
            "changed": of(ChangeKind::Changed),
            "deleted": of(ChangeKind::Deleted),
        });
        outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
        return Ok(0);
    }
    for (path, kind) in &changes {
        let letter = match kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        outln!("{letter} {}", path.display());
    }
    Ok(0)
}
