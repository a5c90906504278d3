//! `image inspect`

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};

/// Show everything about images
///
/// As JSON, or the fields that --format names.
///
///   arctern image inspect nginx
///   arctern image inspect --format '{{.Digest}} {{json .Config.Cmd}}' nginx
///   arctern image inspect nginx | jq '.[0].Config.Cmd'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format: json, or fields: `{{.Id}} {{.Config.Cmd}}`
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: Format,
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
    args.format.print_all(&all, &all)?;
    Ok(0)
}
