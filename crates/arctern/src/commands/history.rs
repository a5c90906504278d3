//! `history`

use arctern_container::config::short_id;
use arctern_container::time::Timestamp;
use serde_json::{Value, json};

use super::Context;
use crate::format::{Format, table};
use crate::report::{Cannot, CommandResult};
use crate::ui::{shorten, size};

/// Show how an image was made, the newest step first
///
///   arctern history nginx
///   arctern history --format json nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Output format: table, json, or fields: `{{.ID}} {{.CreatedBy}}`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Created", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// One step.
struct Step {
    id: Option<String>,
    created: String,
    created_by: String,
    size: u64,
    comment: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let action = || format!("show the history of `{}`", args.image);
    let image = host.images.resolve(&args.image).cannot(action)?;
    let config = host.images.config(&image.id).cannot(action)?;
    let mut sizes = image.layer_sizes.iter().copied();
    let history = config.history().clone().unwrap_or_default();
    let mut steps: Vec<Step> = history
        .iter()
        .map(|step| Step {
            id: None,
            created: step.created().clone().unwrap_or_default(),
            created_by: step.created_by().clone().unwrap_or_default(),
            // Steps that changed only the configuration have no layer.
            size: match step.empty_layer() {
                Some(true) => 0,
                _ => sizes.next().unwrap_or(0),
            },
            comment: step.comment().clone().unwrap_or_default(),
        })
        .collect();
    steps.reverse();
    // Only the image as it became has an id.
    if let Some(step) = steps.first_mut() {
        step.id = Some(image.id.clone());
    }
    if args.format == Format::Json {
        let list: Vec<Value> = steps
            .iter()
            .map(|s| {
                json!({
                    "id": s.id, "created": s.created, "CreatedBy": s.created_by,
                    "size": s.size, "comment": s.comment,
                })
            })
            .collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let id = |step: &Step| match (&step.id, args.no_trunc) {
        (Some(id), true) => format!("sha256:{id}"),
        (Some(id), false) => short_id(id).to_owned(),
        (None, _) => "<missing>".to_owned(),
    };
    if args.quiet {
        steps.iter().for_each(|step| outln!("{}", id(step)));
        return Ok(0);
    }
    let row = |step: &Step| {
        let since = Timestamp::parse_rfc3339(&step.created)
            .map_or_else(|| step.created.clone(), |t| format!("{} ago", t.ago()));
        let by = step.created_by.replace(['\n', '\t'], " ");
        json!({
            "ID": id(step),
            "Created": since,
            "CreatedAt": step.created,
            "CreatedSince": since,
            "CreatedBy": if args.no_trunc { by } else { shorten(&by, 45) },
            "Size": size(step.size),
            "Comment": step.comment,
        })
    };
    let rows: Vec<Value> = steps.iter().map(row).collect();
    match &args.format {
        Format::Fields(template) => out!("{}", template.render(&rows, FIELDS).cannot(action)?),
        _ => {
            let columns = ["ID", "Created", "CreatedBy", "Size", "Comment"];
            out!("{}", table(&rows, FIELDS, &columns, true));
        }
    }
    Ok(0)
}
