//! `volume create`

use std::collections::BTreeMap;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Make volumes, which keep files for containers
///
/// Without a name one is generated. The first container that mounts a new volume fills it with what
/// its image has at that place.
///
///   arctern volume create data
///   arctern run -d -v data:/var/lib/redis redis
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Add a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// A volume that is there already is no error
    #[arg(long)]
    pub ignore: bool,
    /// Names
    #[arg(value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let labels: BTreeMap<String, String> = args
        .label
        .iter()
        .map(|label| label.split_once('=').unwrap_or((label, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let names = if args.volumes.is_empty() { vec![String::new()] } else { args.volumes };
    super::for_each(&names, |name| {
        let made = host
            .volume_create(name, labels.clone(), args.ignore)
            .cannot(|| format!("create volume `{name}`"))?;
        outln!("{made}");
        Ok(())
    })
}
