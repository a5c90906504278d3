//! `checkpoint inspect`

use std::path::{Path, PathBuf};

use arctern_image::summary::{Process, Summary, summarise_sealed};

use super::Context;
use super::seal_args::UnsealArgs;
use crate::report::{Cannot, CommandResult, Failure};
use crate::ui::{Table, size};

/// Show what is in a checkpoint
///
/// An archive of Arctern's or Podman's, a directory of CRIU's images, or the checkpoint that is kept
/// with a container. For files it needs neither root nor a store, and unpacks nothing.
///
///   arctern checkpoint inspect web.tar.gz
///   arctern checkpoint inspect --json web.tar.gz | jq '.processes[].command'
///
/// Digests are compared by a restore, and here only with --require-signature.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Also the open descriptors of every process, and the size of every file
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    pub unseal: UnsealArgs,
    /// An archive, a directory of images, or a container
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Where a checkpoint is: a path that exists, or a container that has one.
pub fn locate(ctx: &Context, given: &Path) -> Result<PathBuf, Failure> {
    let name = given.to_str().filter(|name| !name.contains('/'));
    match name {
        Some(name) if !given.exists() => ctx
            .host()?
            .checkpoint_path(name)
            .cannot(|| format!("find a file or a container `{name}`")),
        _ => Ok(given.to_owned()),
    }
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let path = locate(ctx, &args.file)?;
    let unseal = args.unseal.unseal()?;
    let summary =
        summarise_sealed(&path, &unseal).cannot(|| format!("look into {}", path.display()))?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&summary).cannot(|| "write JSON")?);
        return Ok(0);
    }
    about(&summary);
    tree(&summary.processes);
    if args.verbose {
        descriptors(&summary.processes);
    }
    list("Connections", summary.connections.iter(), |c| {
        vec![c.protocol.clone(), c.state.clone(), c.local.clone(), c.remote.clone()]
    });
    list("Mounts", summary.mounts.iter(), |m| {
        let kept = m.external.as_ref().map(|key| format!("kept outside as {key}"));
        vec![m.path.clone(), m.kind.clone(), kept.unwrap_or_default()]
    });
    members(&summary, args.verbose);
    for problem in &summary.problems {
        eprintln!("warning: {problem}");
    }
    Ok(0)
}

fn about(summary: &Summary) {
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            outln!("{name:<12} {value}");
        }
    };
    if let Some(container) = &summary.container {
        line("Container", &format!("{} ({})", container.name, short(&container.id)));
        line("Image", &format!("{} ({})", container.image, short(&container.image_id)));
        line("Created", &container.created);
        for (network, addresses) in &container.addresses {
            line("Network", &format!("{network} {}", addresses.join(" ")));
        }
        line("Volumes", &container.volumes.join(", "));
    }
    line("Hostname", summary.hostname.as_deref().unwrap_or_default());
    line("Written by", &summary.written_by);
    if let Some(key) = &summary.signed_by {
        line("Signed by", key);
    }
    if let Some(host) = &summary.host {
        line("Host", &format!("{} {} {}", host.distribution, host.kernel, host.architecture));
        line("CPU", &host.cpu_features.join(" "));
    }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// The processes as a tree, with what they store.
fn tree(processes: &[Process]) {
    let mut table =
        Table::new(&["PID", "THREADS", "ANON", "FILE", "SHARED", "ZERO", "FDS", "COMMAND"]);
    for process in processes {
        let memory = &process.memory;
        let command = match process.command.is_empty() {
            true => format!("[{}]", process.comm),
            false => process.command.join(" "),
        };
        let command = crate::ui::shorten(&command, 100);
        table.row(vec![
            process.pid.to_string(),
            process.threads.to_string(),
            size(memory.anonymous),
            size(memory.file),
            size(memory.shared),
            size(memory.zero),
            process.descriptors.len().to_string(),
            // Deep trees stay on the screen.
            format!("{}{command}", "  ".repeat(process.depth.min(20))),
        ]);
    }
    outln!("\nProcesses");
    out!("{}", table.render());
}

fn descriptors(processes: &[Process]) {
    for process in processes {
        let head = format!("Descriptors of {} ({})", process.pid, process.comm);
        list(&head, process.descriptors.iter(), |d| {
            vec![d.fd.to_string(), d.kind.clone(), d.about.clone()]
        });
    }
}

/// A table without a head, if there is anything to show.
fn list<T>(head: &str, items: impl Iterator<Item = T>, row: impl Fn(T) -> Vec<String>) {
    let mut table = Table::new(&[]);
    let mut any = false;
    for item in items {
        table.row(row(item));
        any = true;
    }
    if any {
        outln!("\n{head}");
        out!("{}", table.render().trim_start_matches('\n'));
    }
}

/// The files: the images together, unless each is asked for.
fn members(summary: &Summary, verbose: bool) {
    let mut rows: Vec<(String, u64)> = Vec::new();
    for member in &summary.members {
        let group = match member.name.split_once('/') {
            Some(("checkpoint", name)) if !verbose && name.starts_with("pages-") => {
                "checkpoint/pages".to_owned()
            }
            Some(("checkpoint", _)) if !verbose => "checkpoint/ (other images)".to_owned(),
            _ => member.name.clone(),
        };
        match rows.iter_mut().find(|(name, _)| *name == group) {
            Some((_, bytes)) => *bytes = bytes.saturating_add(member.size),
            None => rows.push((group, member.size)),
        }
    }
    let compression = summary.compression.as_deref().filter(|method| *method != "none");
    let head = match compression {
        Some(method) => format!("Files (unpacked; the archive is compressed with {method})"),
        None => "Files".to_owned(),
    };
    list(&head, rows.into_iter(), |(name, bytes)| vec![name, size(bytes)]);
}
