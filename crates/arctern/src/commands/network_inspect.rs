//! `network inspect`

use serde_json::{Map, Value, json};

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show everything about networks as JSON, also which containers are on them
///
///   arctern network inspect lan
///   arctern network inspect lan | jq '.[0].containers'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Networks, by name or id
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut shown = Vec::new();
    for name in &args.networks {
        let action = || format!("inspect network `{name}`");
        let network = host.network(name).cannot(action)?;
        let mut containers = Map::new();
        for (id, container) in host.containers_of(&network.name).cannot(action)? {
            containers.insert(id, container);
        }
        let mut value = serde_json::to_value(&network).cannot(action)?;
        value["containers"] = Value::Object(containers);
        shown.push(value);
    }
    outln!("{}", serde_json::to_string_pretty(&json!(shown)).cannot(|| "write JSON")?);
    Ok(0)
}
