//! `checkpoint diff`

use std::path::PathBuf;

use arctern_image::summary::{Difference, compare};

use super::Context;
use super::checkpoint_inspect::locate;
use super::seal_args::UnsealArgs;
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// Show what has changed between two checkpoints
///
/// Processes, pages of memory, descriptors, connections and the configuration: what `-` marks is in
/// the first one only, what `+` marks in the second one only. It needs neither root nor a store.
///
///   arctern checkpoint diff monday.tar tuesday.tar
///   arctern checkpoint diff --identity friend monday.tar.age tuesday.tar.age
///
/// Keys are for both: neither may then be without encryption, or without the signature.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub unseal: UnsealArgs,
    /// An archive, a directory of images, or a container
    #[arg(value_name = "FIRST")]
    pub first: PathBuf,
    /// Another one
    #[arg(value_name = "SECOND")]
    pub second: PathBuf,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let (first, second) = (locate(ctx, &args.first)?, locate(ctx, &args.second)?);
    let difference = compare(&first, &second, &args.unseal.unseal()?)
        .cannot(|| format!("compare {} and {}", first.display(), second.display()))?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&difference).cannot(|| "write JSON")?);
    } else {
        show(&difference);
    }
    Ok(0)
}

fn show(difference: &Difference) {
    difference.removed.iter().for_each(|process| outln!("- process {process}"));
    difference.added.iter().for_each(|process| outln!("+ process {process}"));
    for process in &difference.changed {
        let pages = process.pages_changed + process.pages_added + process.pages_removed;
        let files = process.added_files.len() + process.removed_files.len();
        if pages == 0 && files == 0 && process.threads.0 == process.threads.1 {
            continue;
        }
        outln!(
            "  process {} ({}): {} pages changed, {} added, {} removed, {} the same ({})",
            process.pid,
            process.comm,
            process.pages_changed,
            process.pages_added,
            process.pages_removed,
            process.pages_common - process.pages_changed,
            size(process.bytes()),
        );
        if process.threads.0 != process.threads.1 {
            outln!("    threads: {} -> {}", process.threads.0, process.threads.1);
        }
        for (mark, files) in [('-', &process.removed_files), ('+', &process.added_files)] {
            for file in files {
                outln!("  {mark} fd {} {} {}", file.fd, file.kind, file.about);
            }
        }
    }
    for (mark, connections) in
        [('-', &difference.removed_connections), ('+', &difference.added_connections)]
    {
        for c in connections {
            outln!("{mark} {} {} {} {}", c.protocol, c.state, c.local, c.remote);
        }
    }
    for (name, before, after) in &difference.config {
        outln!("  config {name}: {before} -> {after}");
    }
}
