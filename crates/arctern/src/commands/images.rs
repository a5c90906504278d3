//! `images`

use arctern_container::Host;
use arctern_container::config::short_id;
use arctern_container::time::Timestamp;
use arctern_storage::Image;
use serde_json::{Value, json};

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};
use crate::ui::{Table, size};

/// List images
///
///   arctern images
///   arctern images --format json
///   arctern images --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}'
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
    /// Output format: table, json, or fields: '{{.ID}} {{.Repository}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Id", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ConfigDigest", "CONFIG DIGEST"),
    ("Created", "CREATED"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedTime", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("Names", "NAMES"),
    ("RepoTags", "TAGS"),
    ("RepoDigests", "DIGESTS"),
    ("Labels", "LABELS"),
    ("Containers", "CONTAINERS"),
    ("Dangling", "DANGLING"),
    ("Os", "OS"),
    ("Arch", "ARCH"),
];

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
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
    if args.json || args.format == Format::Json {
        let list: Vec<Value> = images.iter().map(summary).collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    if let Format::Fields(template) = &args.format {
        let records = host.list().cannot(|| "list containers")?;
        let mut rows = Vec::new();
        for image in &images {
            let used = records.iter().filter(|record| record.config.image_id == image.id).count();
            let config = host.images.config(&image.id).cannot(|| "list images")?;
            let config = serde_json::to_value(&config).cannot(|| "list images")?;
            rows.extend(names(image).map(|name| fields(image, name, id(image), used, &config)));
        }
        out!("{}", template.render(&rows, FIELDS).cannot(|| "list images")?);
        return Ok(0);
    }
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for image in &images {
        for (repository, tag) in names(image) {
            table.row(vec![
                repository.to_owned(),
                tag.to_owned(),
                id(image),
                created(image),
                size(image.size),
            ]);
        }
    }
    out!("{}", table.render());
    Ok(0)
}

/// Repository and tag of each of its names; every image has a row.
fn names(image: &Image) -> impl Iterator<Item = (&str, &str)> {
    let unnamed = image.names.is_empty().then_some("<none>:<none>");
    let names = image.names.iter().map(String::as_str).chain(unnamed);
    names.map(|name| name.rsplit_once(':').unwrap_or((name, "")))
}

fn created(image: &Image) -> String {
    Timestamp::parse_rfc3339(&image.created)
        .map_or_else(|| image.created.clone(), |time| format!("{} ago", time.ago()))
}

/// A row of --format; `used` is the number of its containers.
fn fields(
    image: &Image,
    (repository, tag): (&str, &str),
    id: String,
    used: usize,
    config: &Value,
) -> Value {
    let since = created(image);
    let digest = format!("sha256:{}", image.manifest);
    let bytes = size(image.size);
    json!({
        "ID": id,
        "Id": image.id,
        "Repository": repository,
        "Tag": tag,
        "Digest": digest,
        "ConfigDigest": format!("sha256:{}", image.id),
        "Created": since,
        "CreatedSince": since,
        "CreatedAt": image.created,
        "CreatedTime": image.created,
        "Size": bytes,
        "VirtualSize": bytes,
        "Names": image.names,
        "RepoTags": image.names,
        "RepoDigests": image.digests,
        "Labels": config["config"]["Labels"].as_object().cloned().unwrap_or_default(),
        "Containers": used,
        "Dangling": image.names.is_empty(),
        "Os": config["os"],
        "Arch": config["architecture"],
    })
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
    let layers: Vec<String> = image.layers.iter().map(|hex| format!("sha256:{hex}")).collect();
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
        "RootFS": { "Type": "layers", "Layers": layers },
        "History": field("history"),
        "Annotations": image.checkpoint,
    }))
}
