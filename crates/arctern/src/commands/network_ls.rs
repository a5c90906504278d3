//! `network ls`

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::Table;

/// List networks
///
///   arctern network ls
///   arctern network ls --json | jq '.[].name'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let networks = ctx.host()?.networks().cannot(|| "list networks")?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&networks).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let mut table = Table::new(&["NETWORK ID", "NAME", "DRIVER", "DEVICE", "SUBNETS"]);
    for network in networks {
        if args.quiet {
            outln!("{}", network.name);
            continue;
        }
        let subnets: Vec<String> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
        let length = if args.no_trunc { network.id.len() } else { 12 };
        table.row(vec![
            network.id.chars().take(length).collect(),
            network.name,
            network.driver.to_string(),
            network.network_interface,
            subnets.join(", "),
        ]);
    }
    if !args.quiet {
        out!("{}", table.render());
    }
    Ok(0)
}
