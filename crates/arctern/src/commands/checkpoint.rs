//! `checkpoint`

use std::path::PathBuf;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Freeze containers to disk
///
/// All processes are stopped at one instant and written down with their memory, files, sockets and
/// timers. The container stops, unless --leave-running is given, and `restore` lets it go on.
/// Without --file the checkpoint stays with the container.
///
///   arctern container checkpoint web
///   arctern container checkpoint web --file web.tar.gz
///   arctern container checkpoint --leave-running --compress none -e /backup/web.tar web
///
/// When it fails the container goes on running and no file is left.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Write the checkpoint to this archive
    #[arg(
        short = 'e',
        long = "file",
        visible_alias = "export",
        short_alias = 'F',
        value_name = "FILE"
    )]
    pub file: Option<PathBuf>,
    /// Compress the archive [default: by its name: .gz, .zst, .tar; else zstd]
    #[arg(short, long, value_name = "METHOD", value_parser = ["zstd", "gzip", "none"], requires = "file")]
    pub compress: Option<String>,
    /// Let the container go on afterwards
    #[arg(short = 'R', long)]
    pub leave_running: bool,
    /// Leave changes of the root file system out of the archive
    #[arg(long, requires = "file")]
    pub ignore_rootfs: bool,
    /// Put the container's image into the archive
    #[arg(long, requires = "file")]
    pub with_image: bool,
    /// Also connections that are established
    #[arg(long)]
    pub tcp_established: bool,
    /// Also file locks
    #[arg(long)]
    pub file_locks: bool,
    /// Print statistics as JSON
    #[arg(long)]
    pub print_stats: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(_ctx: &Context, args: Args) -> CommandResult {
    Err(anyhow::anyhow!("the engine is not built in"))
        .cannot(|| format!("checkpoint {}", args.containers.join(", ")))
}
