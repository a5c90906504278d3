//! `create`

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Context as _;
use arctern_container::Host;
use arctern_container::config::{
    Device, HostEntry, Mac, NetworkMode, PortMapping, Tmpfs, Ulimit, parse_size,
};
use arctern_container::extras::parse_sysctl;
use arctern_container::lifecycle::CreateOptions;
use arctern_container::state::Record;
use arctern_container::volumes::MountRequest;

use super::health_args::HealthArgs;
use super::registry_args::PullArgs;
use super::{Context, files};
use crate::report::{Cannot, CommandResult};

/// Create a container and do not start it
///
/// Prints the container's id. `arctern start` starts it.
///
///   arctern create --name web -p 8080:80 nginx
///   arctern start web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// Options of a new container, the same for `run` and `create`.
#[derive(Debug, clap::Args)]
pub struct ContainerArgs {
    /// Name of the container; without one it gets a generated name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Remove a container that has the name, first
    #[arg(long)]
    pub replace: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Set a variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group, names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Variables from files, a line each: NAME=VALUE, or NAME; --env comes after them
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Command in place of the image's entry point; a JSON list for one with arguments
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Host name in the container
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Add a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Labels from files, a line each
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Add an annotation, which tools that read the runtime spec find
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Write the container's id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Write the pid of the container's first process to this file whenever it is started
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Let a small program be pid 1, which ends what the command leaves behind and passes signals on
    #[arg(long)]
    pub init: bool,
    /// That program on the host [default: catatonit or tini-static, if it is there]
    #[arg(long, value_name = "PROGRAM")]
    pub init_path: Option<PathBuf>,
    /// Signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from that signal to SIGKILL
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,

    /// Network: bridge, none, host, or one that `network create` made, with addresses after a colon
    #[arg(long, visible_alias = "net", value_name = "NETWORK[:ip=ADDRESS,mac=ADDRESS]", default_value = "bridge", value_parser = parse::<OnNetwork>)]
    pub network: OnNetwork,
    /// Publish a port of the container on the host
    #[arg(short, long, value_name = "[[IP:]HOSTPORT:]PORT[/PROTO]", value_parser = parse::<PortMapping>)]
    pub publish: Vec<PortMapping>,
    /// Address of the container on its network
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address of the container on its network
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// Hardware address of the container on its network
    #[arg(long, value_name = "ADDRESS", value_parser = parse::<Mac>)]
    pub mac_address: Option<Mac>,

    /// Add a line to /etc/hosts; host-gateway stands for the host's address
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse::<HostEntry>)]
    pub add_host: Vec<HostEntry>,
    /// Name server, in place of the host's
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// Domain that names are looked for in; a lone dot for none
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of the resolver
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,

    /// Mount a directory or file of the host, or a volume by its name; TARGET alone gets a new volume
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:OPTIONS]", value_parser = parse_volume)]
    pub volume: Vec<MountRequest>,
    /// Mount as --volume and --tmpfs do: type=bind|volume|tmpfs,source=SOURCE,target=TARGET
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = MountRequest::mount)]
    pub mount: Vec<MountRequest>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "TARGET[:OPTIONS]", value_parser = parse::<Tmpfs>)]
    pub tmpfs: Vec<Tmpfs>,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,

    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability away; `all` for every one
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// All capabilities and devices, no system call filter, nothing hidden
    #[arg(long)]
    pub privileged: bool,

    /// Let it use a device of the host
    #[arg(long, value_name = "HOST[:CONTAINER][:rwm]", value_parser = parse::<Device>)]
    pub device: Vec<Device>,
    /// Set a kernel setting of its namespaces
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_sysctl)]
    pub sysctl: Vec<(String, String)>,

    #[command(flatten)]
    pub health: HealthArgs,

    /// Limit memory: a number with b, k, m or g
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Limit CPU time: 1.5 is one and a half CPUs
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    pub cpus: Option<u64>,
    /// Limit the number of processes and threads; -1 for none
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Limit a resource of the processes
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::<Ulimit>)]
    pub ulimit: Vec<Ulimit>,

    #[command(flatten)]
    pub pull: PullArgs,

    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Command and its arguments, in place of the image's
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// The value of `--network`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNetwork {
    mode: NetworkMode,
    name: Option<String>,
    ip: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    mac: Option<Mac>,
}

impl std::str::FromStr for OnNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let mut network = OnNetwork::default();
        match name.parse::<NetworkMode>() {
            Ok(mode) => network.mode = mode,
            Err(_) if name == "podman" || name == "default" => {}
            Err(_) if name.is_empty() => return Err("it has no name".to_owned()),
            Err(_) => network.name = Some(name.to_owned()),
        }
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let bad = || format!("{option} is no ip=ADDRESS and no mac=ADDRESS");
            match option.split_once('=') {
                Some(("ip" | "ip6", value)) => match value.parse().map_err(|_| bad())? {
                    IpAddr::V4(ip) => network.ip = Some(ip),
                    IpAddr::V6(ip) => network.ip6 = Some(ip),
                },
                Some(("mac", value)) => network.mac = Some(value.parse().map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        Ok(network)
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

/// A volume whose source may be relative to the current directory.
pub(super) fn parse_volume(text: &str) -> Result<MountRequest, String> {
    let absolute = match text.split_once(':') {
        Some((source, rest)) if source.starts_with('.') => {
            let source = std::path::absolute(PathBuf::from(source)).map_err(|e| e.to_string())?;
            format!("{}:{rest}", source.display())
        }
        _ => text.to_owned(),
    };
    MountRequest::volume(&absolute).map_err(|e| e.to_string())
}

/// Thousandths of CPUs.
fn parse_cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no number of CPUs");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let digits = format!("{fraction:0<3}");
    let milli: u64 = digits.get(..3).ok_or_else(bad)?.parse().map_err(|_| bad())?;
    match whole.checked_mul(1000).and_then(|w| w.checked_add(milli)) {
        Some(0) | None => Err(bad()),
        Some(total) => Ok(total),
    }
}

/// An entry point as given: a JSON list, or one command; empty means none.
fn parse_entrypoint(text: &str) -> Vec<String> {
    match serde_json::from_str(text) {
        Ok(list) => list,
        Err(_) if text.is_empty() => Vec::new(),
        Err(_) => vec![text.to_owned()],
    }
}

impl ContainerArgs {
    /// The options as the library takes them. Reads the files that options name.
    pub fn into_options(self) -> anyhow::Result<CreateOptions> {
        if let Some(file) = self.cidfile.as_ref().filter(|file| file.exists()) {
            let file = file.display();
            anyhow::bail!("{file} is there already: another container may have its id in it");
        }
        let mut env = files::lines(&self.env_file)?;
        env.extend(self.env);
        let mut labels = files::lines(&self.label_file)?;
        labels.extend(self.label);
        let absolute = |path: PathBuf| std::path::absolute(path);
        Ok(CreateOptions {
            image: self.image,
            image_id: None,
            name: self.name,
            replace: self.replace,
            command: self.command,
            entrypoint: self.entrypoint.as_deref().map(parse_entrypoint),
            env,
            workdir: self.workdir,
            user: self.user,
            hostname: self.hostname,
            network: self.network.mode,
            network_name: self.network.name,
            ip: self.ip.or(self.network.ip),
            ip6: self.ip6.or(self.network.ip6),
            mac: self.mac_address.or(self.network.mac),
            ports: self.publish,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileged: self.privileged,
            read_only: self.read_only,
            tmpfs: self.tmpfs,
            mounts: self.volume.into_iter().chain(self.mount).collect(),
            memory: self.memory,
            milli_cpus: self.cpus,
            pids_limit: self.pids_limit,
            ulimits: self.ulimit,
            labels,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            stdin: self.interactive,
            terminal: self.tty,
            auto_remove: self.rm,
            restart: self.health.restart,
            healthcheck: self.health.check(),
            init: self.init,
            init_path: self.init_path,
            annotations: self.annotation,
            hosts: self.add_host,
            dns_servers: self.dns,
            dns_search: self.dns_search,
            dns_options: self.dns_option,
            devices: self.device,
            sysctls: self.sysctl,
            pid_file: self.pidfile.map(absolute).transpose()?,
            create_command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        })
    }
}

/// Creates a container, and writes its id down where that was asked for.
pub fn create(host: &mut Host, args: ContainerArgs, image: String) -> anyhow::Result<Record> {
    let cidfile = args.cidfile.clone();
    let options = CreateOptions { image_id: Some(image), ..args.into_options()? };
    let record = host.create(options)?;
    if let Some(file) = cidfile {
        let written = File::create_new(&file).and_then(|mut f| f.write_all(record.id().as_bytes()));
        if let Err(error) = written {
            host.remove(record.id(), true)?;
            return Err(error).with_context(|| format!("write {}", file.display()));
        }
    }
    Ok(record)
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let image = args.container.image.clone();
    let mut host = ctx.host()?;
    let found = args.container.pull.clone().ensure(&host, &image)?;
    let record = create(&mut host, args.container, found.id)
        .cannot(|| format!("create a container from `{image}`"))?;
    outln!("{}", record.id());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!(parse_cpus("1.5"), Ok(1500));
        assert_eq!(parse_cpus("2"), Ok(2000));
        assert_eq!(parse_cpus(".25"), Ok(250));
        for bad in ["", "0", "x", "1.x", "-1"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_with_addresses() {
        let lan: OnNetwork = "lan:ip=192.0.2.9,mac=02:00:00:00:00:09".parse().expect("lan");
        assert_eq!((lan.mode, lan.name.as_deref()), (NetworkMode::Bridge, Some("lan")));
        assert_eq!(lan.ip, "192.0.2.9".parse().ok());
        assert!(lan.mac.is_some() && lan.ip6.is_none());
        assert_eq!("host".parse::<OnNetwork>().expect("host").mode, NetworkMode::Host);
        for bad in ["", "lan:ip=x", "lan:alias=web", ":ip=192.0.2.9"] {
            assert!(bad.parse::<OnNetwork>().is_err(), "{bad}");
        }
    }

    #[test]
    fn entry_points_in_both_forms() {
        assert_eq!(parse_entrypoint("/bin/sh"), ["/bin/sh"]);
        assert_eq!(parse_entrypoint(r#"["sh","-c"]"#), ["sh", "-c"]);
        assert!(parse_entrypoint("").is_empty());
    }
}
