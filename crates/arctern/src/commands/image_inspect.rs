//! `image inspect`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show everything about images, as JSON
///
///   arctern image inspect nginx
///   arctern image inspect nginx | jq '.[0].Config.Cmd'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format; json is the only one
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"], default_value = "json")]
    pub format: String,
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let mut all = Vec::new();
    for name in &args.images {
        let action = || format!("inspect image `{name}`");
        let image = host.images.resolve(name).cannot(action)?;
        all.push(super::images::describe(&host, &image).cannot(action)?);
    }
    outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
    Ok(0)
}
