//! `info`

use arctern_container::cgroup::Hierarchies;
use arctern_container::state::Status;
use serde_json::json;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show the host: versions, directories, numbers of containers and images
///
///   arctern info
///   arctern info --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: text or json
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let records = host.list().cannot(|| "list containers")?;
    let count = |status| records.iter().filter(|r| r.status == status).count();
    let images = host.images.images().cannot(|| "list images")?.len();
    let groups = Hierarchies::of(ctx.paths()).cannot(|| "find the cgroup hierarchies")?;
    let system = rustix::system::uname();
    let rows = [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("kernel", json!(system.release().to_string_lossy())),
        ("arch", json!(system.machine().to_string_lossy())),
        ("cgroups", json!(groups.version())),
        ("cpus", json!(std::thread::available_parallelism().map_or(1, usize::from))),
        ("root", json!(ctx.paths().root)),
        ("runroot", json!(ctx.paths().runroot)),
        ("containers", json!(records.len())),
        ("running", json!(count(Status::Running))),
        ("checkpointed", json!(count(Status::Checkpointed))),
        ("images", json!(images)),
    ];
    if args.json || args.format == "json" {
        let map: serde_json::Map<_, _> = rows.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        outln!("{}", serde_json::to_string_pretty(&map).cannot(|| "write JSON")?);
    } else {
        for (name, value) in rows {
            match value.as_str() {
                Some(text) => outln!("{name:<13} {text}"),
                None => outln!("{name:<13} {value}"),
            }
        }
    }
    Ok(0)
}
