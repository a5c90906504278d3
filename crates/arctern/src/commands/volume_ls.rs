//! `volume ls`

use arctern_container::volumes::VolumeInfo;
use serde_json::Value;

use super::Context;
use super::lists::{Condition, Facts, Shown, fulfils, parse_condition};
use crate::report::{Cannot, CommandResult};

/// List volumes
///
///   arctern volume ls
///   arctern volume ls --filter dangling=true --format '{{.Name}} {{.Mountpoint}}'
///   arctern volume ls --format json | jq '.[].Mountpoint'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub shown: Shown,
    /// Only matching ones: name=, label=, dangling= (no container has it), until=, driver=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Mountpoint", "MOUNTPOINT"),
    ("CreatedAt", "CREATED AT"),
    ("Labels", "LABELS"),
    ("Scope", "SCOPE"),
    ("Anonymous", "ANONYMOUS"),
    ("Containers", "CONTAINERS"),
    ("MountCount", "MOUNT COUNT"),
    ("Options", "OPTIONS"),
];

/// Whether a volume is meant.
pub fn is_meant(filter: &[Condition], info: &VolumeInfo) -> bool {
    let facts = Facts {
        id: &info.volume.name,
        names: std::slice::from_ref(&info.volume.name),
        labels: info.volume.labels.clone(),
        dangling: info.containers.is_empty(),
        created: &info.volume.created,
        driver: "local",
    };
    fulfils(filter, &facts)
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let volumes = ctx.host()?.volumes().cannot(|| "list volumes")?;
    let rows: Vec<Value> = volumes
        .iter()
        .filter(|info| is_meant(&args.filter, info))
        .map(super::volume_inspect::describe)
        .collect();
    args.shown.print(&rows, &rows, FIELDS, &["Driver", "Name", "Containers"])?;
    Ok(0)
}
