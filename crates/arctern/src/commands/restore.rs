//! `restore`

use std::path::PathBuf;

use arctern_container::config::PortMapping;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Let checkpointed containers go on
///
/// From the checkpoint that is kept with a container, or from an archive. One archive can be
/// restored many times, each time under another name.
///
///   arctern container restore web
///   arctern container restore --file web.tar.gz
///   arctern container restore --file web.tar.gz --name web2 --publish 8081:80
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Restore from this archive
    #[arg(
        short = 'i',
        long = "file",
        visible_alias = "import",
        short_alias = 'F',
        value_name = "FILE",
        conflicts_with = "containers"
    )]
    pub file: Option<PathBuf>,
    /// Restore as a new container with this name
    #[arg(short, long, value_name = "NAME", requires = "file")]
    pub name: Option<String>,
    /// Published ports, in place of those it had
    #[arg(short, long, value_name = "[[IP:]HOSTPORT:]PORT[/PROTO]", requires = "file", value_parser = parse_port)]
    pub publish: Vec<PortMapping>,
    /// Leave out changes of the root file system
    #[arg(long, requires = "file")]
    pub ignore_rootfs: bool,
    /// Also connections that were established
    #[arg(long)]
    pub tcp_established: bool,
    /// Also file locks
    #[arg(long)]
    pub file_locks: bool,
    /// Print statistics as JSON
    #[arg(long)]
    pub print_stats: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "file")]
    pub containers: Vec<String>,
}

fn parse_port(text: &str) -> Result<PortMapping, arctern_container::config::BadPort> {
    text.parse()
}

/// Runs the command.
pub fn run(_ctx: &Context, args: Args) -> CommandResult {
    Err(anyhow::anyhow!("the engine is not built in"))
        .cannot(|| format!("restore {}", args.containers.join(", ")))
}
