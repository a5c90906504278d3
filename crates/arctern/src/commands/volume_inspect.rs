//! `volume inspect`

use arctern_container::volumes::VolumeInfo;
use serde_json::{Value, json};

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show everything about volumes, as JSON
///
///   arctern volume inspect data
///   arctern volume inspect data | jq -r '.[].Mountpoint'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
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
    outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
    code
}
