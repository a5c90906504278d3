//! `images`

use arctern_container::Host;
use arctern_container::config::short_id;
use arctern_container::time::Timestamp;
use arctern_storage::Image;
use serde_json::{Value, json};

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::{Table, size};

/// List images
///
///   arctern images
///   arctern images --format json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: table or json
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let images = host.images.images().cannot(|| "list images")?;
    let id = |image: &Image| {
        if args.no_trunc { format!("sha256:{}", image.id) } else { short_id(&image.id).to_owned() }
    };
    if args.quiet {
        for image in &images {
            outln!("{}", id(image));
        }
        return Ok(0);
    }
    if args.json || args.format == "json" {
        let list: Vec<Value> = images.iter().map(summary).collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for image in &images {
        let created = Timestamp::parse_rfc3339(&image.created)
            .map_or_else(|| image.created.clone(), |t| format!("{} ago", t.ago()));
        let names: Vec<&str> = if image.names.is_empty() {
            vec!["<none>:<none>"]
        } else {
            image.names.iter().map(String::as_str).collect()
        };
        for name in names {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, ""));
            table.row(vec![
                repository.to_owned(),
                tag.to_owned(),
                id(image),
                created.clone(),
                size(image.size),
            ]);
        }
    }
    out!("{}", table.render());
    Ok(0)
}

fn summary(image: &Image) -> Value {
    json!({
        "Id": image.id,
        "Names": image.names,
        "Digest": format!("sha256:{}", image.manifest),
        "RepoDigests": image.digests,
        "Created": image.created,
        "Size": image.size,
    })
}

/// An image for `inspect`.
pub fn describe(host: &Host, image: &Image) -> anyhow::Result<Value> {
    let config = host.images.config(&image.id)?;
    let config = serde_json::to_value(&config)?;
    let field = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
    Ok(json!({
        "Id": image.id,
        "RepoTags": image.names,
        "RepoDigests": image.digests,
        "Digest": format!("sha256:{}", image.manifest),
        "Created": image.created,
        "Size": image.size,
        "Architecture": field("architecture"),
        "Os": field("os"),
        "Config": field("config"),
        "RootFS": { "Type": "layers", "Layers": image.layers },
        "History": field("history"),
        "Annotations": image.checkpoint,
    }))
}
