//! `volume inspect`

use arctern_container::volumes::VolumeInfo;
use serde_json::{Value, json};

use super::Context;
use crate::format::Format;
use crate::report::{Cannot, CommandResult};

/// Show everything about volumes
///
/// As JSON, or the fields that --format names.
///
///   arctern volume inspect data
///   arctern volume inspect --format '{{.Mountpoint}}' data
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Output format: json, or fields: `{{.Name}} {{.Mountpoint}}`
    #[arg(short, long, value_name = "FORMAT", default_value = "json")]
    pub format: Format,
    /// Volumes, by name
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// A volume with the names that Podman gives its facts.
pub fn describe(info: &VolumeInfo) -> Value {
    json!({
        "Name": info.volume.name,
        "Driver": "local",
        "Mountpoint": info.mountpoint,
        "CreatedAt": info.volume.created,
        "Labels": info.volume.labels,
        "Scope": "local",
        "Anonymous": info.volume.anonymous,
        "Containers": info.containers,
        "MountCount": info.containers.len(),
        "Options": {},
    })
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let mut all = Vec::new();
    let code = super::for_each(&args.volumes, |name| {
        all.push(describe(&host.volume(name).cannot(|| format!("inspect volume `{name}`"))?));
        Ok(())
    });
    args.format.print_all(&all, &all)?;
    code
}
