//! `network inspect`

use serde_json::{Map, Value};

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};

/// Show everything about networks, also which containers are on them
///
/// As JSON, or the fields that --format names.
///
///   arctern network inspect lan
///   arctern network inspect lan | jq '.[0].containers'
///   arctern network inspect --format '{{.NetworkInterface}} {{.Subnets}}' lan
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format: json, or fields: `{{.Name}} {{.Subnets}}`
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: Format,
    /// Networks, by name or id
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let (mut shown, mut rows) = (Vec::new(), Vec::new());
    for name in &args.networks {
        let action = || format!("inspect network `{name}`");
        let network = host.network(name).cannot(action)?;
        let mut containers = Map::new();
        for (id, container) in host.containers_of(&network.name).cannot(action)? {
            containers.insert(id, container);
        }
        let containers = Value::Object(containers);
        let mut row = super::network_ls::fields(&network);
        row["Containers"] = containers.clone();
        rows.push(row);
        let mut value = serde_json::to_value(&network).cannot(action)?;
        value["containers"] = containers;
        shown.push(value);
    }
    args.format.print_all(&shown, &rows)?;
    Ok(0)
}
