//! `restore`

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use arctern_container::checkpoint::policy::Allowed;
use arctern_container::checkpoint::{RestoreOptions, Restored, Spooled};
use arctern_container::config::{PortMapping, Volume};
use arctern_container::state::Status;
use arctern_container::volumes::MountRequest;
use arctern_container::{Error, Host};
use arctern_storage::Image;
use arctern_storage::registry::{PullOptions, PullPolicy};
use serde_json::{Value, json};

use super::create::parse_volume;
use super::engine_args::EngineArgs;
use super::registry_args::RegistryArgs;
use super::seal_args::UnsealArgs;
use super::select::Select;
use super::{Context, for_each};
use crate::interrupt;
use crate::progress::Progress;
use crate::report::{Cannot, CommandResult, Failure};
use crate::transfer::Transfers;

/// Let checkpointed containers go on
///
/// From the checkpoint that is kept with a container, from an archive, or from an image that is a
/// checkpoint, which is got from its registry if it is not here. So is the image of the container, by
/// its digest. One archive or image can be restored many times, each time under another name.
///
/// Archives and images are not trusted: directories of the host, capabilities beyond the default,
/// privileged mode and the network of the host are refused, unless they are repeated as options here.
///
///   arctern container restore db
///   arctern container restore --all
///   arctern container restore --file web.tar.gz
///   arctern container restore --file web.tar.gz --name web2 --publish 8081:80
///   arctern container restore registry.example/team/web-checkpoint
///   ssh root@hostA arctern container checkpoint web --file - | arctern container restore --file -
///   arctern container restore --file shared.tar.gz --volume /srv:/mnt:ro
///   arctern container restore --file sealed.tar.age --identity friend --require-signature key.pub
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Restore from this archive; `-` reads it from standard input, to its end before anything runs
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
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<String>,
    /// Published ports, in place of those it had
    #[arg(short, long, value_name = "[[IP:]HOSTPORT:]PORT[/PROTO]", value_parser = parse_port)]
    pub publish: Vec<PortMapping>,
    /// Let it have this directory of the host, in place of the archive's own at that path
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]", value_parser = parse_bind)]
    pub volume: Vec<Volume>,
    /// Let it have this capability, if it had it
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Let it be privileged, if it was
    #[arg(long)]
    pub privileged: bool,
    /// Let it have the network of the host, if it had it
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = ["host"])]
    pub network: Option<String>,
    /// Let it have whatever it asks for, but for block devices
    #[arg(long)]
    pub trust: bool,
    /// Leave out changes of the root file system
    #[arg(long)]
    pub ignore_rootfs: bool,
    /// Leave out the contents of named volumes: those that are there are used as they are
    #[arg(long)]
    pub ignore_volumes: bool,
    /// Take a new address in place of the one it had
    #[arg(long)]
    pub ignore_static_ip: bool,
    /// Take a new hardware address in place of the one it had
    #[arg(long)]
    pub ignore_static_mac: bool,
    #[command(flatten)]
    pub unseal: UnsealArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// All containers that were checkpointed
    #[arg(short, long, conflicts_with_all = ["file", "containers"])]
    pub all: bool,
    /// The container that was created last
    #[arg(short, long, conflicts_with_all = ["file", "all", "containers"])]
    pub latest: bool,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Containers, or images that are checkpoints, by name or id
    #[arg(value_name = "CONTAINER|IMAGE", required_unless_present_any = ["file", "all", "latest"])]
    pub containers: Vec<String>,
}

/// A directory or file of the host.
fn parse_bind(text: &str) -> Result<Volume, String> {
    match parse_volume(text)? {
        MountRequest::Bind(volume) => Ok(volume),
        _ => Err("expected /HOST/PATH:/CONTAINER/PATH[:OPTION,…]".to_owned()),
    }
}

fn parse_port(text: &str) -> Result<PortMapping, arctern_container::config::BadPort> {
    text.parse()
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let given = [
        ("--name", args.name.is_some()),
        ("--publish", !args.publish.is_empty()),
        ("--volume", !args.volume.is_empty()),
        ("--cap-add", !args.cap_add.is_empty()),
        ("--privileged", args.privileged),
        ("--network", args.network.is_some()),
        ("--trust", args.trust),
        ("--require-signature", !args.unseal.require_signature.is_empty()),
        ("--identity", !args.unseal.identity.is_empty()),
        ("--passphrase-file", args.unseal.passphrase_file.is_some()),
        ("--ignore-rootfs", args.ignore_rootfs),
        ("--ignore-volumes", args.ignore_volumes),
        ("--ignore-static-ip", args.ignore_static_ip),
        ("--ignore-static-mac", args.ignore_static_mac),
    ];
    let of_archives: Vec<&str> =
        given.into_iter().filter_map(|(option, given)| given.then_some(option)).collect();
    let options = RestoreOptions {
        name: args.name,
        publish: args.publish,
        ignore_rootfs: args.ignore_rootfs,
        ignore_volumes: args.ignore_volumes,
        skip_volumes: Vec::new(),
        ignore_static_ip: args.ignore_static_ip,
        ignore_static_mac: args.ignore_static_mac,
        keep: args.engine.keep,
        file_locks: args.engine.file_locks,
        tcp: args.engine.tcp(),
        cancel: interrupt::listen().cannot(|| "catch signals")?,
        unseal: args.unseal.unseal()?,
        allowed: Allowed {
            trust: args.trust,
            volumes: args.volume,
            cap_add: args.cap_add,
            privileged: args.privileged,
            host_network: args.network.is_some(),
        },
    };
    let mut host = ctx.host()?;
    let (all, latest, filter) = (args.all, args.latest, Vec::new());
    let select = Select { all, latest, filter, containers: args.containers };
    let names = select.names(&mut host, |_, record| record.status == Status::Checkpointed)?;
    let begin = Instant::now();
    let mut statistics = Vec::new();
    let mut tell = |done: Restored| {
        for warning in &done.warnings {
            eprintln!("warning: {warning}");
        }
        if args.engine.print_stats {
            statistics.push(statistics_of(&done));
        } else {
            outln!("{}", done.record.id());
        }
    };
    let pull = PullOptions { access: args.registry.access(), ..PullOptions::default() };
    let transfers = Transfers::new(false);
    let code = match &args.file {
        Some(file) => {
            let failed = |error: Error| {
                let from = match file.as_os_str() == "-" {
                    true => "standard input".to_owned(),
                    false => file.display().to_string(),
                };
                Failure::new(format!("restore from {from}"), error)
                    .leaving("Nothing of it was left behind.")
            };
            let spooled = spooled(&host, file).map_err(failed)?;
            let path = spooled.as_ref().map_or_else(|| file.clone(), Spooled::path);
            host.bring_image(&path, &options, &pull, &transfers).map_err(failed)?;
            let mut progress = Progress::new();
            let done = host.restore_archive(&path, &options, &mut progress).map_err(failed)?;
            drop(progress);
            tell(done);
            0
        }
        None => for_each(&names, |name| {
            let done = match checkpoint_image(&mut host, name, &pull, &transfers)? {
                Some(image) => restore_image(&mut host, &image, &options, &pull, &transfers),
                None if of_archives.is_empty() => host.restore(name, &options),
                None => Err(Error::Invalid(format!(
                    "{} need(s) --file, or an image: what is kept with a container goes on as it was",
                    of_archives.join(", ")
                ))),
            };
            tell(done.cannot(|| format!("restore `{name}`"))?);
            Ok(())
        })?,
    };
    if args.engine.print_stats {
        let all = json!({
            "podman_restore_duration": u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "container_statistics": statistics,
        });
        outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
    }
    Ok(code)
}

/// Standard input, when the archive comes from there.
fn spooled(host: &Host, file: &Path) -> arctern_container::error::Result<Option<Spooled>> {
    if file.as_os_str() != "-" {
        return Ok(None);
    }
    if io::stdin().is_terminal() {
        let reason = "no archive comes from a terminal: redirect standard input";
        return Err(Error::Invalid(reason.to_owned()));
    }
    host.spool(io::stdin().lock()).map(Some)
}

/// The image that a name means, if it means one: a path does, and what no container is called may.
fn checkpoint_image(
    host: &mut Host,
    name: &str,
    pull: &PullOptions,
    transfers: &Transfers,
) -> Result<Option<Image>, Failure> {
    if name.contains('/') {
        let image = host.images.ensure(name, PullPolicy::Missing, pull, transfers);
        return image.map(Some).cannot(|| format!("get image `{name}`"));
    }
    match host.find(name) {
        Err(Error::NoSuchContainer(_)) => Ok(host.images.resolve(name).ok()),
        _ => Ok(None),
    }
}

/// Restores a container from an image, after the image that it was made from was brought here.
pub fn restore_image(
    host: &mut Host,
    image: &Image,
    options: &RestoreOptions,
    pull: &PullOptions,
    transfers: &Transfers,
) -> arctern_container::error::Result<Restored> {
    host.bring_image(&host.archive_of(image)?, options, pull, transfers)?;
    host.restore_image(image, options, &mut Progress::new())
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
