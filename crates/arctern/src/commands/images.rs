//! `images`

use std::collections::BTreeMap;

use arctern_container::Host;
use arctern_container::config::short_id;
use arctern_container::time::Timestamp;
use arctern_storage::Image;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::Context;
use super::lists::{Condition, Facts, fulfils, is_called, parse_condition};
use crate::format::{Format, table};
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// List images
///
///   arctern images
///   arctern images nginx
///   arctern images --filter dangling=true --quiet
///   arctern images --format json
///   arctern images --format 'table {{.Repository}}:{{.Tag}}\t{{.Size}}'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Also images without a name; they are always listed
    #[arg(short, long)]
    pub all: bool,
    /// Only matching ones: reference= (a name or the end of one, with `*` for any text), id=, label=,
    /// dangling= (it has no name), until=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
    /// Also the digests of the manifests
    #[arg(long)]
    pub digests: bool,
    /// Sort by this
    #[arg(long, value_name = "FIELD", default_value = "created")]
    pub sort: Sort,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print no head
    #[arg(short = 'n', long)]
    pub noheading: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: table, json, or fields: '{{.ID}} {{.Repository}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Only images of this name, as --filter reference=
    #[arg(value_name = "NAME", conflicts_with = "filter")]
    pub name: Option<String>,
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Sort {
    Created,
    Id,
    Repository,
    Size,
    Tag,
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
    ("Bytes", "BYTES"),
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

/// Whether an image is meant.
pub fn is_meant(host: &Host, filter: &[Condition], image: &Image) -> anyhow::Result<bool> {
    let labels = match filter.iter().any(|condition| matches!(condition, Condition::Label(..))) {
        true => labels(&serde_json::to_value(host.images.config(&image.id)?)?),
        false => BTreeMap::new(),
    };
    let facts = Facts {
        id: &image.id,
        names: &image.names,
        labels,
        dangling: image.names.is_empty(),
        created: &image.created,
        driver: "",
    };
    Ok(fulfils(filter, &facts))
}

fn labels(config: &Value) -> BTreeMap<String, String> {
    let labels = config["config"]["Labels"].as_object().into_iter().flatten();
    labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || "list images";
    let mut host = ctx.host()?;
    let mut filter = args.filter;
    filter.extend(args.name.clone().map(Condition::Reference));
    let mut images = Vec::new();
    for image in host.images.images().cannot(action)? {
        if is_meant(&host, &filter, &image).cannot(action)? {
            images.push(image);
        }
    }
    let id = |image: &Image| {
        if args.no_trunc { format!("sha256:{}", image.id) } else { short_id(&image.id).to_owned() }
    };
    if args.quiet {
        for image in &images {
            outln!("{}", id(image));
        }
        return Ok(0);
    }
    let records = host.list().cannot(action)?;
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    for image in &images {
        let used = records.iter().filter(|record| record.config.image_id == image.id).count();
        let config = host.images.config(&image.id).cannot(action)?;
        let config = serde_json::to_value(&config).cannot(action)?;
        let called = |name: &&str| args.name.as_ref().is_none_or(|wanted| is_called(name, wanted));
        let named = names(image).filter(called);
        rows.extend(named.map(|name| fields(image, split(name), id(image), used, &config)));
        list.push(summary(image, used, &config));
    }
    if args.json || args.format == Format::Json {
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    sort(&mut rows, args.sort);
    if let Format::Fields(template) = &args.format {
        out!("{}", template.render(&rows, FIELDS).cannot(action)?);
        return Ok(0);
    }
    let columns: &[&str] = match args.digests {
        true => &["Repository", "Tag", "Digest", "ID", "Created", "Size"],
        false => &["Repository", "Tag", "ID", "Created", "Size"],
    };
    out!("{}", table(&rows, FIELDS, columns, !args.noheading));
    Ok(0)
}

/// Newest first already, and largest first; names and the like from a to z.
fn sort(rows: &mut [Value], by: Sort) {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    match by {
        Sort::Created => rows.sort_by_key(|row| std::cmp::Reverse(text(row, "CreatedAt"))),
        Sort::Id => rows.sort_by_key(|row| text(row, "Id")),
        Sort::Repository => rows.sort_by_key(|row| text(row, "Repository")),
        Sort::Size => rows.sort_by_key(|row| row["Bytes"].as_u64().map(std::cmp::Reverse)),
        Sort::Tag => rows.sort_by_key(|row| text(row, "Tag")),
    }
}

/// Each of its names; every image has a row.
fn names(image: &Image) -> impl Iterator<Item = &str> {
    let unnamed = image.names.is_empty().then_some("<none>:<none>");
    image.names.iter().map(String::as_str).chain(unnamed)
}

/// Repository and tag of a name.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once(':').unwrap_or((name, ""))
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
        "Bytes": image.size,
        "VirtualSize": bytes,
        "Names": image.names,
        "RepoTags": image.names,
        "RepoDigests": image.digests,
        "Labels": labels(config),
        "Containers": used,
        "Dangling": image.names.is_empty(),
        "Os": config["os"],
        "Arch": config["architecture"],
    })
}

/// An image of --format json.
fn summary(image: &Image, used: usize, config: &Value) -> Value {
    json!({
        "Id": image.id,
        "Names": image.names,
        "RepoTags": image.names,
        "Digest": format!("sha256:{}", image.manifest),
        "RepoDigests": image.digests,
        "Created": image.created,
        "CreatedAt": image.created,
        "Size": image.size,
        "VirtualSize": image.size,
        "Labels": labels(config),
        "Containers": used,
        "Dangling": image.names.is_empty(),
        "Os": config["os"],
        "Arch": config["architecture"],
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
