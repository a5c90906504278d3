//! `forward ls`

use arctern_container::config::short_id;
use arctern_container::transfer::{Direction, Forward};

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};
use crate::ui::Table;

/// List connections by way of hosts that containers have left
///
///   arctern forward ls
///   arctern forward ls --format '{{.Name}} {{.Direction}} {{.Via}}'
///   arctern forward ls --format json | jq '.[].RemainingSeconds'
///
/// A container that `arctern migrate` has moved is still reached by way of the host that it left: its
/// published ports there lead to the new host. On the host that it left it is listed with direction
/// `to`, on the one where it runs with `from`: answers go back there. Each ends by itself when its
/// time is over, when the container comes back, or by `arctern forward rm`.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Containers' names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    pub json: bool,
    /// Output format: table, json, or fields as {{.Name}}
    #[arg(long, value_name = "FORMAT", default_value = "table", conflicts_with = "quiet")]
    pub format: Format,
}

const FIELDS: &[(&str, &str)] = &[
    ("Container", "CONTAINER ID"),
    ("Name", "NAME"),
    ("Address", "ADDRESS"),
    ("Direction", "DIRECTION"),
    ("Via", "VIA"),
    ("Host", "HOST"),
    ("Ports", "PORTS"),
    ("RemainingSeconds", "REMAINING"),
];

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let forwards = ctx.host()?.forwards().cannot(|| "list what is forwarded")?;
    if args.quiet {
        forwards.iter().for_each(|forward| outln!("{}", forward.name));
        return Ok(0);
    }
    let values = || forwards.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
    match args.format {
        _ if args.json => print(&forwards)?,
        Format::Json => print(&forwards)?,
        Format::Fields(fields) => {
            let rows = values().cannot(|| "write JSON")?;
            out!("{}", fields.render(&rows, FIELDS).cannot(|| "format the list")?);
        }
        Format::Table => out!("{}", table(&forwards)),
    }
    Ok(0)
}

fn print(forwards: &[Forward]) -> Result<(), crate::report::Failure> {
    outln!("{}", serde_json::to_string_pretty(forwards).cannot(|| "write JSON")?);
    Ok(())
}

fn table(forwards: &[Forward]) -> String {
    let mut table =
        Table::new(&["CONTAINER ID", "NAME", "ADDRESS", "DIRECTION", "HOST", "PORTS", "REMAINING"]);
    for forward in forwards {
        let ports = forward.ports.iter().flat_map(|mapping| {
            let protocol = mapping.protocol;
            mapping.pairs().map(move |(host, inner)| format!("{host}->{inner}/{protocol}"))
        });
        let direction = match forward.direction {
            Direction::To => "to",
            Direction::From => "from",
        };
        let host = match forward.host.is_empty() {
            true => forward.via.to_string(),
            false => forward.host.clone(),
        };
        table.row(vec![
            short_id(&forward.container).to_owned(),
            forward.name.clone(),
            forward.address.to_string(),
            direction.to_owned(),
            host,
            ports.collect::<Vec<_>>().join(", "),
            forward.remaining_seconds.map_or_else(|| "no limit".into(), |s| format!("{s} s")),
        ]);
    }
    table.render()
}
