//! Archives that Podman made: its configuration of the container as ours, and its shared memory
//! mount as one of the container itself.
//!
//! Podman's `config.dump` says what was asked of the container, and `spec.dump` what came of it;
//! where both say something, the second one counts. What Podman sets up for every container (files of
//! /etc, `/run/.containerenv`) is set up anew here. What a container of ours cannot be is refused, all
//! of it at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{Fstype, MntEntry};
use arctern_net::DEFAULT_NETWORK;
use oci_spec::runtime::{Capability, LinuxResources, Mount, Process, Spec};
use serde::Deserialize;
use serde_json::Value;

use super::{CONFIG, MASK, SPEC};
use crate::config::{
    ContainerConfig, NamedVolume, NetworkMode, NetworkOptions, PortMapping, Tmpfs, Ulimit, Volume,
};
use crate::error::{Error, Result};
use crate::ids;
use crate::spec::{caps, mounts};

/// Podman's archive of what was in /dev/shm.
const DEVSHM: &str = "devshm-checkpoint.tar";

/// Where shared memory is in a container.
const SHM: &str = "/dev/shm";

/// Podman's note that a container was started with `--rm`.
const AUTO_REMOVE: &str = "io.podman.annotations.autoremove";

/// The fields of Podman's configuration that ours does not take as they are.
#[derive(Deserialize)]
struct PodmanConfig {
    id: String,
    name: String,
    #[serde(rename = "rootfsImageID", default)]
    image_id: String,
    #[serde(rename = "rootfsImageName", default)]
    image_name: String,
    #[serde(rename = "RawImageName", default)]
    raw_image_name: String,
    #[serde(rename = "createdTime", default)]
    created: String,
    #[serde(rename = "CreateCommand", default)]
    create_command: Option<Vec<String>>,
    #[serde(default)]
    user: Option<String>,
    #[serde(rename = "networkMode", default)]
    network_mode: String,
    #[serde(rename = "newNetworks", default)]
    networks: Option<BTreeMap<String, NetworkOptions>>,
    #[serde(rename = "newPortMappings", default)]
    ports: Option<Vec<PortMapping>>,
    #[serde(default)]
    privileged: bool,
    #[serde(rename = "namedVolumes", default)]
    named_volumes: Option<Vec<NamedVolume>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "stopSignal", default)]
    stop_signal: Option<i32>,
    #[serde(rename = "stopTimeout", default)]
    stop_timeout: Option<u32>,
    #[serde(default)]
    stdin: bool,
    #[serde(default)]
    pod: String,
    #[serde(rename = "idMappingsOptions", default)]
    id_mappings: IdMappings,
    /// Everything else, for the namespaces of other containers.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
struct IdMappings {
    #[serde(rename = "UIDMap", default)]
    uids: Option<Vec<Value>>,
    #[serde(rename = "GIDMap", default)]
    gids: Option<Vec<Value>>,
}

/// Where Podman keeps the volumes of root.
const PODMAN_VOLUMES: &str = "/var/lib/containers/storage/volumes";

/// The configuration as an archive has it: Podman connects a container to the networks that are named
/// there, the default one included.
pub(super) fn config_for_podman(config: &ContainerConfig) -> ContainerConfig {
    let mut config = config.clone();
    if config.network == NetworkMode::Bridge && config.networks.is_none() {
        let interface = NetworkOptions { interface_name: "eth0".to_owned(), ..Default::default() };
        config.networks = Some(BTreeMap::from([(DEFAULT_NETWORK.to_owned(), interface)]));
    }
    config
}

/// The runtime specification as an archive has it: Podman takes the places of volumes from it, so they
/// are where Podman has them.
pub(super) fn spec_for_podman(spec: &[u8], config: &ContainerConfig) -> Result<Vec<u8>> {
    let mut spec: Value = serde_json::from_slice(spec).map_err(Error::json(SPEC))?;
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let destination = mount["destination"].as_str().map(Path::new);
        let mut volumes = config.named_volumes.iter();
        if let Some(volume) = volumes.find(|v| Some(v.destination.as_path()) == destination) {
            mount["source"] = format!("{PODMAN_VOLUMES}/{}/_data", volume.name).into();
        }
    }
    serde_json::to_vec(&spec).map_err(Error::json(SPEC))
}

/// Whether a `config.dump` is one of ours: no other program writes what was asked of capabilities.
pub(super) fn is_ours(config: &Value) -> bool {
    config.get("capAdd").is_some()
}

/// The configuration of a container that Podman checkpointed.
///
/// # Errors
/// What is there is no configuration, or one that a container of ours cannot have.
pub fn adopt(config: Value, spec: &[u8]) -> Result<ContainerConfig> {
    let podman: PodmanConfig = serde_json::from_value(config).map_err(Error::json(CONFIG))?;
    let spec: Spec = serde_json::from_slice(spec).map_err(Error::json(SPEC))?;
    let mut refused = Vec::new();
    refuse_dependencies(&podman, &mut refused);
    let network = match podman.network_mode.as_str() {
        "" | "bridge" | "private" => NetworkMode::Bridge,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        other => {
            refused.push(format!("it uses the network mode `{other}`"));
            NetworkMode::None
        }
    };
    let networks = podman.networks.filter(|networks| !networks.is_empty());
    if networks.as_ref().is_some_and(|networks| networks.len() > 1) {
        refused.push("it is on several networks".to_owned());
    }
    let Some(process) = spec.process() else {
        return Err(Error::Invalid(format!("{SPEC} names no process")));
    };
    let mut named = podman.named_volumes.unwrap_or_default();
    for volume in &mut named {
        // Podman does not say it here; its generated names do.
        volume.anonymous |= ids::is_id(&volume.name);
    }
    let mut asked = Asked::default();
    for mount in spec.mounts().iter().flatten() {
        asked.take(mount, &named, &mut refused);
    }
    if !refused.is_empty() {
        return Err(Error::Invalid(format!(
            "the container in the archive cannot be one of ours: {}",
            refused.join("; ")
        )));
    }
    let privileged = podman.privileged;
    let (cap_add, cap_drop) = capabilities(process, privileged)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let limits = Limits::of(resources.as_ref());
    let owner = process.user();
    let annotations = spec.annotations().clone().unwrap_or_default();
    Ok(ContainerConfig {
        image_id: podman.image_id,
        image_ref: String::new(),
        image_name: podman.image_name,
        raw_image_name: podman.raw_image_name,
        runtime: "runc".to_owned(),
        created: podman.created,
        create_command: podman.create_command.unwrap_or_default(),
        command: process.args().clone().unwrap_or_default(),
        entrypoint: Vec::new(),
        env: process.env().clone().unwrap_or_default(),
        workdir: process.cwd().display().to_string(),
        user: podman.user.unwrap_or_else(|| format!("{}:{}", owner.uid(), owner.gid())),
        hostname: spec.hostname().clone().unwrap_or_default(),
        network,
        static_ip: None,
        networks,
        ports: podman.ports.unwrap_or_default(),
        create_netns: network != NetworkMode::Host,
        cap_add,
        cap_drop,
        privileged,
        read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        tmpfs: asked.tmpfs,
        volumes: asked.volumes,
        named_volumes: named,
        memory: limits.memory,
        milli_cpus: limits.milli_cpus,
        pids_limit: limits.pids,
        ulimits: ulimits(process),
        labels: podman.labels.unwrap_or_default(),
        stop_signal: podman.stop_signal.filter(|signal| *signal != 0).unwrap_or(15),
        stop_timeout: podman.stop_timeout.unwrap_or(10),
        stdin: podman.stdin,
        terminal: process.terminal().unwrap_or(false),
        auto_remove: annotations.get(AUTO_REMOVE).is_some_and(|value| value == "TRUE"),
        restart_policy: field(&podman.rest, "restart_policy").unwrap_or_default(),
        restart_retries: field(&podman.rest, "restart_retries"),
        healthcheck: field(&podman.rest, "healthcheck"),
        // What Podman mounts for `--init` is among its mounts, and its program in its command.
        init_path: None,
        annotations: BTreeMap::new(),
        hosts: field(&podman.rest, "hostAdd").unwrap_or_default(),
        dns_servers: field(&podman.rest, "dnsServer").unwrap_or_default(),
        dns_search: field(&podman.rest, "dnsSearch").unwrap_or_default(),
        dns_options: field(&podman.rest, "dnsOption").unwrap_or_default(),
        devices: Vec::new(),
        sysctls: BTreeMap::new(),
        pid_file: None,
        log_driver: "k8s-file".to_owned(),
        no_shm: true,
        id: podman.id,
        name: podman.name,
    })
}

/// A field that both write in the same way; one of another shape is as none.
fn field<T: serde::de::DeserializeOwned>(
    fields: &BTreeMap<String, Value>,
    name: &str,
) -> Option<T> {
    serde_json::from_value(fields.get(name)?.clone()).ok()
}

/// Pods, namespaces of other containers, and id mappings.
fn refuse_dependencies(config: &PodmanConfig, refused: &mut Vec<String>) {
    if !config.pod.is_empty() {
        refused.push("it belongs to a pod".to_owned());
    }
    for (key, value) in &config.rest {
        let owner = value.as_str().filter(|owner| !owner.is_empty());
        if let (Some(kind), Some(owner)) = (key.strip_suffix("NsCtr"), owner) {
            refused.push(format!("its {kind} namespace is that of container {owner}"));
        }
    }
    let mapped = |map: &Option<Vec<Value>>| map.as_ref().is_some_and(|map| !map.is_empty());
    if mapped(&config.id_mappings.uids) || mapped(&config.id_mappings.gids) {
        refused.push("it has a user namespace".to_owned());
    }
}

/// The mounts that somebody asked for.
#[derive(Default)]
struct Asked {
    tmpfs: Vec<Tmpfs>,
    volumes: Vec<Volume>,
}

impl Asked {
    fn take(&mut self, mount: &Mount, named: &[NamedVolume], refused: &mut Vec<String>) {
        let destination = mount.destination();
        if mounts::is_own(destination)
            || mounts::is_kernels(destination)
            || named.iter().any(|volume| volume.destination == *destination)
        {
            return;
        }
        let options = mount.options().clone().unwrap_or_default();
        let source = mount.source().clone().unwrap_or_default();
        match mount.typ().as_deref() {
            Some("tmpfs") => {
                // What we would add by ourselves is not repeated; noexec is what we would add.
                let exec = !options.iter().any(|option| option == "noexec");
                let known = ["nosuid", "nodev", "noexec", "rprivate", "tmpcopyup"];
                let own = options.into_iter().filter(|option| !known.contains(&option.as_str()));
                let options = own.chain(exec.then(|| "exec".to_owned())).collect();
                self.tmpfs.push(Tmpfs { destination: destination.clone(), options });
            }
            Some("bind") if source.is_absolute() => {
                let options = options.into_iter().filter(|o| o != "bind" && o != "rbind").collect();
                let destination = destination.clone();
                self.volumes.push(Volume { source, destination, options });
            }
            kind => refused.push(format!(
                "it has a mount of type {} at {}",
                kind.unwrap_or("none"),
                destination.display()
            )),
        }
    }
}

/// What the container has beyond the default set of capabilities, and what of that it lacks.
fn capabilities(process: &Process, privileged: bool) -> Result<(Vec<String>, Vec<String>)> {
    let default = caps::bounding(&[], &[], privileged)?;
    let has: Vec<String> = process
        .capabilities()
        .iter()
        .filter_map(|set| set.bounding().as_ref())
        .flatten()
        .filter_map(|capability: &Capability| {
            Some(serde_json::to_value(capability).ok()?.as_str()?.to_owned())
        })
        .collect();
    let lacks = default.iter().filter(|name| !has.iter().any(|held| held == *name));
    let lacks = lacks.map(|name| (*name).to_owned()).collect();
    let more = has.into_iter().filter(|name| !privileged && !default.contains(name.as_str()));
    Ok((more.collect(), lacks))
}

#[derive(Default)]
struct Limits {
    memory: Option<u64>,
    milli_cpus: Option<u64>,
    pids: Option<i64>,
}

impl Limits {
    fn of(resources: Option<&LinuxResources>) -> Limits {
        let Some(resources) = resources else { return Limits::default() };
        let cpu = resources.cpu().as_ref().and_then(|cpu| {
            let quota = u64::try_from(cpu.quota()?).ok()?;
            quota.checked_mul(1000)?.checked_div(cpu.period().unwrap_or(100_000))
        });
        let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
        Limits {
            memory: memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
            milli_cpus: cpu.filter(|milli| *milli > 0),
            pids: resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit > 0),
        }
    }
}

fn ulimits(process: &Process) -> Vec<Ulimit> {
    let list = process.rlimits().iter().flatten();
    list.map(|limit| Ulimit {
        name: limit.typ().to_string().trim_start_matches("RLIMIT_").to_ascii_lowercase(),
        soft: limit.soft(),
        hard: limit.hard(),
    })
    .collect()
}

/// Makes what Podman keeps outside of the images, and what has its place in them, mounts of the
/// container itself: shared memory, whose contents are in an archive of their own in `dir`, and what
/// hides files, which is the container's own `/dev/null`.
pub(super) fn bring_mounts(images: &Path, dir: &Path) -> Result<()> {
    let images = ImageDir::open(images).map_err(Error::archive)?;
    for (kind, id) in images.list().map_err(Error::archive)? {
        if kind != ImageKind::Mountpoints {
            continue;
        }
        let mut entries: Vec<MntEntry> = images.read_all(kind, id).map_err(Error::archive)?;
        if !entries.iter().any(|entry| entry.ext_key.is_some()) {
            continue;
        }
        let is_tmpfs = |entry: &MntEntry| entry.fstype == Fstype::Tmpfs as u32;
        let devices: Vec<u32> = entries
            .iter()
            .filter(|entry| entry.mountpoint == "/dev" && is_tmpfs(entry))
            .map(|entry| entry.root_dev)
            .collect();
        let mut memory = None;
        for entry in &mut entries {
            let own = match entry.ext_key.as_deref() {
                Some(SHM) => entry.mountpoint == SHM && is_tmpfs(entry),
                Some(MASK) => entry.root == "/null" && devices.contains(&entry.root_dev),
                _ => false,
            };
            if own {
                entry.ext_key = None;
                entry.ext_mount = None;
                memory = memory.or((entry.mountpoint == SHM).then_some(entry.root_dev));
            }
        }
        images.write_all(kind, id, &entries).map_err(Error::archive)?;
        if let Some(device) = memory {
            fill(&images, device, &dir.join(DEVSHM))?;
        }
    }
    Ok(())
}

/// Gives a tmpfs the contents that the archive at `path` has, if it is there.
fn fill(images: &ImageDir, device: u32, path: &Path) -> Result<()> {
    let mut tar = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("open", path))?,
    };
    let content = images.create_file(ImageKind::TmpfsDev, device.into()).map_err(Error::archive)?;
    let mut packed = flate2::write::GzEncoder::new(content, flate2::Compression::fast());
    io::copy(&mut tar, &mut packed)
        .and_then(|_| packed.finish().map(drop))
        .map_err(Error::io("copy", path))
}
