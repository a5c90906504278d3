//! `restore`

use std::path::PathBuf;
use std::time::Instant;

use arctern_container::checkpoint::{RestoreOptions, Restored};
use arctern_container::config::PortMapping;
use arctern_engine::options::TcpPolicy;
use serde_json::{Value, json};

use super::{Context, for_each};
use crate::progress::Progress;
use crate::report::{Cannot, CommandResult, Failure};

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
    /// Leave out the contents of named volumes: those that are there are used as they are
    #[arg(long, requires = "file")]
    pub ignore_volumes: bool,
    /// Take a new address in place of the one it had
    #[arg(long, requires = "file")]
    pub ignore_static_ip: bool,
    /// Take a new hardware address in place of the one it had
    #[arg(long, requires = "file")]
    pub ignore_static_mac: bool,
    /// Also live TCP connections; the container gets the address that it had
    #[arg(long, conflicts_with = "tcp_close")]
    pub tcp_established: bool,
    /// Drop live TCP connections: the program finds them closed
    #[arg(long)]
    pub tcp_close: bool,
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
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let options = RestoreOptions {
        name: args.name,
        publish: args.publish,
        ignore_rootfs: args.ignore_rootfs,
        ignore_volumes: args.ignore_volumes,
        ignore_static_ip: args.ignore_static_ip,
        ignore_static_mac: args.ignore_static_mac,
        file_locks: args.file_locks,
        tcp: match (args.tcp_established, args.tcp_close) {
            (true, _) => TcpPolicy::Established,
            (_, true) => TcpPolicy::Close,
            _ => TcpPolicy::Refuse,
        },
    };
    let mut host = ctx.host()?;
    let begin = Instant::now();
    let mut statistics = Vec::new();
    let mut tell = |done: Restored| {
        for warning in &done.warnings {
            eprintln!("warning: {warning}");
        }
        if args.print_stats {
            statistics.push(statistics_of(&done));
        } else {
            outln!("{}", done.record.id());
        }
    };
    let code = match &args.file {
        Some(file) => {
            let mut progress = Progress::new();
            let done = host.restore_archive(file, &options, &mut progress).map_err(|error| {
                Failure::new(format!("restore from {}", file.display()), error)
                    .leaving("Nothing of it was left behind.")
            })?;
            drop(progress);
            tell(done);
            0
        }
        None => for_each(&args.containers, |name| {
            let done =
                host.restore(name, &options).cannot(|| format!("restore container `{name}`"))?;
            tell(done);
            Ok(())
        })?,
    };
    if args.print_stats {
        let all = json!({
            "podman_restore_duration": u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "container_statistics": statistics,
        });
        outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
    }
    Ok(code)
}

/// Statistics in the shape of Podman's; times in microseconds.
fn statistics_of(done: &Restored) -> Value {
    json!({
        "Id": done.record.id(),
        "runtime_restore_duration": done.total_us,
        "criu_statistics": {
            "forking_time": done.report.forking_us,
            "restore_time": done.report.total_us,
            "pages_restored": done.report.pages_restored,
        },
    })
}
