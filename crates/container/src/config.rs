//! What the user asked of a container: fixed at `create`, kept in the database and, as
//! `config.dump`, in every checkpoint archive.
//!
//! Field names are those of Podman's container config where it has the field, so that tools which
//! read its archives read ours.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use arctern_net::DEFAULT_NETWORK;
pub use arctern_net::{BadPort, Mac, PortMapping, Protocol};
use serde::{Deserialize, Serialize};

pub use crate::extras::{Device, HostEntry};
use crate::policy::{HealthCheck, RestartPolicy};
pub use crate::volumes::NamedVolume;

/// How the container is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Own network namespace with an address on the bridge.
    #[default]
    Bridge,
    /// Own network namespace with a loopback device only.
    None,
    /// The network of the host.
    Host,
}

impl NetworkMode {
    /// The name as given to `--network`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            NetworkMode::Bridge => "bridge",
            NetworkMode::None => "none",
            NetworkMode::Host => "host",
        }
    }
}

impl FromStr for NetworkMode {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bridge" | "private" => Ok(NetworkMode::Bridge),
            "none" => Ok(NetworkMode::None),
            "host" => Ok(NetworkMode::Host),
            _ => Err(InvalidOption::new("network", text, "bridge, none or host")),
        }
    }
}

/// What a container asks of a network, as Podman writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOptions {
    /// Addresses of both kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_ips: Option<Vec<IpAddr>>,
    /// Hardware address; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub static_mac: String,
    /// Name of the interface in the container.
    #[serde(default)]
    pub interface_name: String,
}

impl NetworkOptions {
    /// The IPv4 address asked for.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.static_ips.iter().flatten().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
    }

    /// The IPv6 address asked for.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.static_ips.iter().flatten().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        })
    }

    /// The hardware address asked for.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        self.static_mac.parse().ok()
    }
}

/// An option's value that is not of its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is no valid {option}: expected {expected}")]
pub struct InvalidOption {
    /// What is being set.
    pub option: &'static str,
    /// What was given.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl InvalidOption {
    pub(crate) fn new(option: &'static str, value: &str, expected: &'static str) -> InvalidOption {
        InvalidOption { option, value: value.to_owned(), expected }
    }
}

/// A bind mount (`-v SOURCE:DESTINATION[:OPTIONS]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// Mount options (`ro`, `rw`, `noexec`, …).
    #[serde(default)]
    pub options: Vec<String>,
}

/// A tmpfs in the container (`--tmpfs PATH[:OPTIONS]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Path in the container.
    pub destination: PathBuf,
    /// Mount options (`size=64m`, `mode=1777`, `noexec`, …).
    #[serde(default)]
    pub options: Vec<String>,
}

impl FromStr for Tmpfs {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/') || path == "/" {
            return Err(InvalidOption::new("tmpfs", text, "/PATH[:OPTION,…]"));
        }
        Ok(Tmpfs {
            destination: PathBuf::from(path),
            options: options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect(),
        })
    }
}

/// A resource limit of the container's processes (`--ulimit NAME=SOFT[:HARD]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Name without `RLIMIT_`, in lower case.
    pub name: String,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

const ULIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            || InvalidOption::new("ulimit", text, "NAME=SOFT[:HARD], for example nofile=1024:2048");
        let value = |v: &str| match v {
            "-1" | "unlimited" => Some(u64::MAX),
            _ => v.parse().ok(),
        };
        let (name, limits) = text.split_once('=').ok_or_else(bad)?;
        if !ULIMITS.contains(&name) {
            return Err(bad());
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (value(soft).ok_or_else(bad)?, value(hard).ok_or_else(bad)?);
        if soft > hard {
            return Err(bad());
        }
        Ok(Ulimit { name: name.to_owned(), soft, hard })
    }
}

/// Bytes as people write them: `64m`, `1g`, `512k`, `4096`, `1GiB`.
pub fn parse_size(text: &str) -> Result<u64, InvalidOption> {
    let bad = || InvalidOption::new("size", text, "a number with an optional unit b, k, m, g or t");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().map_err(|_| bad())?;
    let shift = match &lower[digits..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Everything that was asked of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Container id, 64 hexadecimal digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// Id of the image that the root file system is made from.
    #[serde(rename = "rootfsImageID", default)]
    pub image_id: String,
    /// Full name of the image.
    #[serde(rename = "rootfsImageName", default)]
    pub image_name: String,
    /// Where registries have the image, `REGISTRY/PATH@sha256:HEX`; only in archives.
    #[serde(rename = "rootfsImageRef", default, skip_serializing_if = "String::is_empty")]
    pub image_ref: String,
    /// The image as the user named it.
    #[serde(rename = "RawImageName", default)]
    pub raw_image_name: String,
    /// OCI runtime that the archive claims to be made with. Podman insists on the same one at
    /// restore; our containers are set up as runc's.
    #[serde(default = "runtime_name")]
    pub runtime: String,
    /// When it was created, RFC 3339.
    #[serde(rename = "createdTime", default)]
    pub created: String,
    /// The command line that created it.
    #[serde(rename = "CreateCommand", default)]
    pub create_command: Vec<String>,
    /// What the user gave after the image, or the image's own command.
    #[serde(default)]
    pub command: Vec<String>,
    /// Entry point of the user or of the image.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Environment, `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory in the container.
    #[serde(rename = "workDir", default)]
    pub workdir: String,
    /// `-u` as given: user[:group], names or numbers.
    #[serde(default)]
    pub user: String,
    /// Host name.
    #[serde(default)]
    pub hostname: String,
    /// Network.
    #[serde(rename = "networkMode", default)]
    pub network: NetworkMode,
    /// Address asked for.
    #[serde(rename = "staticIP", default, skip_serializing_if = "Option::is_none")]
    pub static_ip: Option<Ipv4Addr>,
    /// The networks it is on; the default one if there is none. One is all it can be on.
    #[serde(rename = "newNetworks", default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeMap<String, NetworkOptions>>,
    /// Published ports.
    #[serde(rename = "newPortMappings", default)]
    pub ports: Vec<PortMapping>,
    /// Whether the container has its own network namespace made by us.
    #[serde(rename = "createNetNS", default)]
    pub create_netns: bool,
    /// Capabilities added to the default set (`CAP_…`).
    #[serde(rename = "capAdd", default)]
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    #[serde(rename = "capDrop", default)]
    pub cap_drop: Vec<String>,
    /// All capabilities, no seccomp filter, nothing masked.
    #[serde(default)]
    pub privileged: bool,
    /// Root file system is read-only.
    #[serde(rename = "readOnly", default)]
    pub read_only: bool,
    /// tmpfs mounts.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Bind mounts.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Volumes of the store.
    #[serde(rename = "namedVolumes", default, skip_serializing_if = "Vec::is_empty")]
    pub named_volumes: Vec<NamedVolume>,
    /// Memory limit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// CPU time, in thousandths of a CPU.
    #[serde(rename = "milliCPUs", default, skip_serializing_if = "Option::is_none")]
    pub milli_cpus: Option<u64>,
    /// Limit of processes and threads.
    #[serde(rename = "pidsLimit", default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// Limits of the processes.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the container to stop.
    #[serde(rename = "stopSignal", default = "sigterm")]
    pub stop_signal: i32,
    /// Seconds from that signal to SIGKILL.
    #[serde(rename = "stopTimeout", default = "ten")]
    pub stop_timeout: u32,
    /// Keep standard input open.
    #[serde(default)]
    pub stdin: bool,
    /// Give the container a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Remove the container when it ends.
    #[serde(rename = "autoRemove", default)]
    pub auto_remove: bool,
    /// When it is started again after its end.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// How often at most, with `on-failure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_retries: Option<u32>,
    /// How its health is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthCheck>,
    /// A program on the host that is pid 1 of the container and starts the command.
    #[serde(rename = "initPath", default, skip_serializing_if = "Option::is_none")]
    pub init_path: Option<PathBuf>,
    /// Annotations of the runtime spec.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Lines of /etc/hosts, `NAME:ADDRESS`.
    #[serde(rename = "hostAdd", default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostEntry>,
    /// Name servers in place of the host's.
    #[serde(rename = "dnsServer", default, skip_serializing_if = "Vec::is_empty")]
    pub dns_servers: Vec<IpAddr>,
    /// Domains that names are looked for in.
    #[serde(rename = "dnsSearch", default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Options of the resolver.
    #[serde(rename = "dnsOption", default, skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// Devices of the host.
    #[serde(rename = "hostDevices", default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Kernel settings of its namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// File that holds the pid of its init while it runs.
    #[serde(rename = "pidFile", default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// Log driver; its file goes into checkpoint archives.
    #[serde(rename = "logDriver", default = "log_driver")]
    pub log_driver: String,
    /// The container has no /dev/shm owned by the engine: it is a tmpfs of the container itself.
    #[serde(rename = "NoShm", default)]
    pub no_shm: bool,
}

fn runtime_name() -> String {
    "runc".to_owned()
}

fn log_driver() -> String {
    "k8s-file".to_owned()
}

fn sigterm() -> i32 {
    15
}

fn ten() -> u32 {
    10
}

impl ContainerConfig {
    /// Entry point and command together: what the container executes.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.command).cloned().collect()
    }

    /// The network that the user made and the container is on; `None` for the default one.
    #[must_use]
    pub fn network_name(&self) -> Option<&str> {
        let name = self.networks.as_ref()?.keys().next()?.as_str();
        Some(name).filter(|name| *name != DEFAULT_NETWORK)
    }

    /// What it asks of its network.
    #[must_use]
    pub fn statics(&self) -> Option<&NetworkOptions> {
        self.networks.as_ref()?.values().next()
    }

    /// Asks for no address any more: any will do, or the one it had.
    pub fn forget_statics(&mut self, ip: bool, mac: bool) {
        let options = self.networks.iter_mut().flat_map(BTreeMap::values_mut);
        for options in options {
            if ip {
                options.static_ips = None;
            }
            if mac {
                options.static_mac.clear();
            }
        }
        if ip {
            self.static_ip = None;
        }
    }

    /// The first 12 digits of the id, as lists show it.
    #[must_use]
    pub fn short_id(&self) -> &str {
        short_id(&self.id)
    }
}

/// The first 12 characters of an id.
#[must_use]
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64m"), Ok(64 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("m").is_err());
        assert!(parse_size("99999999999t").is_err());
    }

    #[test]
    fn limits() {
        let l: Ulimit = "nofile=1024:2048".parse().expect("ulimit");
        assert_eq!((l.soft, l.hard), (1024, 2048));
        assert!("nofile=2:1".parse::<Ulimit>().is_err());
        assert!("bogus=1".parse::<Ulimit>().is_err());
    }
}
