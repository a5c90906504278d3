//! `inspect`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show everything about containers or images, as JSON
///
///   arctern inspect web
///   arctern inspect web | jq '.[0].State'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format; json is the only one
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"], default_value = "json")]
    pub format: String,
    /// Containers or images, by name or id
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut all = Vec::new();
    for name in &args.names {
        let action = || format!("inspect `{name}`");
        let value = match host.inspect(name) {
            Err(error @ arctern_container::Error::NoSuchContainer(_)) => {
                match host.images.resolve(name) {
                    Ok(image) => super::images::describe(&host, &image).cannot(action)?,
                    Err(_) => return Err(error).cannot(action),
                }
            }
            result => result.cannot(action)?,
        };
        all.push(value);
    }
    let text = serde_json::to_string_pretty(&all).cannot(|| "write JSON")?;
    outln!("{text}");
    Ok(0)
}
