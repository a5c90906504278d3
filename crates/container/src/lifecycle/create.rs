//! `create`: from options and an image to a container that can be started.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use arctern_storage::StoreError;

use crate::config::{
    ContainerConfig, Device, HostEntry, Mac, NetworkMode, NetworkOptions, PortMapping, Tmpfs,
    Ulimit, short_id,
};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;
use crate::lock::Lock;
use crate::policy::{HealthCheck, Restart, RestartPolicy};
use crate::spec::{self, caps};
use crate::state::{Record, Status};
use crate::time::Timestamp;
use crate::volumes::{self, MountRequest};

/// What the user asks of a new container. What is None or empty comes from the image, or from the
/// defaults.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Image, by name or id.
    pub image: String,
    /// Id of the image that was found under the name; None looks for it.
    pub image_id: Option<String>,
    /// Name; None generates one.
    pub name: Option<String>,
    /// Remove a container that has the name.
    pub replace: bool,
    /// Command and its arguments, in place of the image's.
    pub command: Vec<String>,
    /// Entry point, in place of the image's; an empty list means none.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=VALUE`, or `NAME` to take the value from this process.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Host name; the short id by default.
    pub hostname: Option<String>,
    /// Network.
    pub network: NetworkMode,
    /// A network that the user made, in place of the default one.
    pub network_name: Option<String>,
    /// Address on the network.
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address on the network.
    pub ip6: Option<Ipv6Addr>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to take.
    pub cap_drop: Vec<String>,
    /// Everything allowed.
    pub privileged: bool,
    /// Read-only root.
    pub read_only: bool,
    /// tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Bind mounts, volumes and more of tmpfs.
    pub mounts: Vec<MountRequest>,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// CPU limit in thousandths.
    pub milli_cpus: Option<u64>,
    /// Limit of tasks.
    pub pids_limit: Option<i64>,
    /// Process limits.
    pub ulimits: Vec<Ulimit>,
    /// Labels, `NAME=VALUE`.
    pub labels: Vec<String>,
    /// Signal that stops it, by name or number.
    pub stop_signal: Option<String>,
    /// Seconds until it is killed.
    pub stop_timeout: Option<u32>,
    /// Keep standard input open.
    pub stdin: bool,
    /// Terminal.
    pub terminal: bool,
    /// Remove at the end.
    pub auto_remove: bool,
    /// When it is started again.
    pub restart: Restart,
    /// How its health is checked.
    pub healthcheck: Option<HealthCheck>,
    /// A program of the host is pid 1.
    pub init: bool,
    /// Which one; the first that is there by default.
    pub init_path: Option<PathBuf>,
    /// Annotations, `NAME=VALUE`.
    pub annotations: Vec<String>,
    /// Lines of /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
    /// Domains that names are looked for in.
    pub dns_search: Vec<String>,
    /// Options of the resolver.
    pub dns_options: Vec<String>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Kernel settings, name and value.
    pub sysctls: Vec<(String, String)>,
    /// File for the pid of its init.
    pub pid_file: Option<PathBuf>,
    /// The command line, for the record.
    pub create_command: Vec<String>,
}

impl Host {
    /// Creates a container. When it fails nothing of it is left.
    pub fn create(&mut self, options: CreateOptions) -> Result<Record> {
        let replace = options.replace;
        let config = self.configure(options)?;
        if replace && let Ok(id) = self.store.resolve(&config.name) {
            let old = self.store.get(&id)?;
            if old.is_some_and(|r| r.config.name == config.name) {
                self.remove(&id, true)?;
            }
        }
        self.create_from(Record::new(config)).map(|(record, _lock)| record)
    }

    /// Makes the row and the root file system of a configured container, which is locked until the
    /// lock is dropped.
    pub(crate) fn create_from(&mut self, record: Record) -> Result<(Record, Lock)> {
        let lock = self.bear(&record)?;
        let (id, image) = (record.id(), record.config.image_id.as_str());
        let root = self.images.create_root(id, image).map_err(Error::storage);
        let made = root.and_then(|_| match record.status {
            // They come with the archive.
            Status::Restoring => Ok(()),
            _ => self.make_volumes(&record.config),
        });
        match made {
            Ok(()) => Ok((record, lock)),
            Err(error) => {
                if let Err(cleanup) = self.remove_files(id) {
                    tracing::error!("while cleaning up {id}: {}", cleanup.chain());
                }
                Err(error)
            }
        }
    }

    /// The container's networks as its configuration has them, after a look whether they can be.
    fn on_network(
        &self,
        options: &CreateOptions,
    ) -> Result<Option<BTreeMap<String, NetworkOptions>>> {
        let statics = NetworkOptions {
            static_ips: options.ip6.map(|ip6| {
                options.ip.map(IpAddr::from).into_iter().chain([IpAddr::from(ip6)]).collect()
            }),
            static_mac: options.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            interface_name: "eth0".to_owned(),
        };
        let Some(name) = &options.network_name else {
            if options.ip6.is_some() {
                return Err(Error::Invalid("the default network has no IPv6 addresses".to_owned()));
            }
            let default = arctern_net::DEFAULT_NETWORK.to_owned();
            return Ok(options.mac.map(|_| BTreeMap::from([(default, statics)])));
        };
        let network = self.network(name)?;
        if network.is_lan() && !options.ports.is_empty() {
            return Err(Error::network(arctern_net::NetworkError::NoPorts(network.name)));
        }
        Ok(Some(BTreeMap::from([(network.name, statics)])))
    }

    fn configure(&mut self, options: CreateOptions) -> Result<ContainerConfig> {
        let fail = "read random bytes";
        let id = ids::new_id().map_err(Error::system(fail))?;
        let networks = self.on_network(&options)?;
        let name = match options.name {
            Some(name) if ids::is_valid_name(&name) => name,
            Some(name) => return Err(Error::InvalidName(name)),
            None => self.free_name()?,
        };
        if options.network != NetworkMode::Bridge {
            let mode = options.network.as_str();
            if !options.ports.is_empty() {
                return Err(Error::Invalid(format!(
                    "--publish needs the bridge, not --network {mode}"
                )));
            }
            if options.ip.is_some() || options.ip6.is_some() || options.mac.is_some() {
                return Err(Error::Invalid(format!(
                    "--ip, --ip6 and --mac-address need a network with addresses, not --network {mode}"
                )));
            }
        }
        caps::bounding(&options.cap_add, &options.cap_drop, options.privileged)?;
        let missing = volumes::missing_sources(&options.mounts);
        if !missing.is_empty() {
            return Err(Error::Invalid(format!("volume source {missing} does not exist")));
        }
        if options.auto_remove && options.restart.policy != RestartPolicy::No {
            let policy = options.restart.policy.as_str();
            return Err(Error::Invalid(format!(
                "--rm removes the container at its end, --restart {policy} starts it again: choose one"
            )));
        }
        if options.network == NetworkMode::Host
            && let Some((name, _)) =
                options.sysctls.iter().find(|(name, _)| name.starts_with("net."))
        {
            return Err(Error::Invalid(format!(
                "--sysctl {name} would be set for the whole host with --network host"
            )));
        }
        // Found out now rather than at the start.
        for device in &options.devices {
            std::fs::metadata(&device.host).map_err(Error::io("inspect", &device.host))?;
        }
        let init_path = match options.init || options.init_path.is_some() {
            true => Some(spec::extras::find_init(options.init_path)?),
            false => None,
        };
        let found = options.image_id.as_ref().unwrap_or(&options.image);
        let image = self.images.resolve(found).map_err(Error::storage)?;
        if !image.checkpoint.is_empty() {
            return Err(Error::storage(StoreError::IsCheckpoint(options.image)));
        }
        let image_config = self.images.config(&image.id).map_err(Error::storage)?;
        let from_image = image_config.config().clone().unwrap_or_default();

        let own_entrypoint = options.entrypoint.is_some();
        let entrypoint =
            options.entrypoint.or_else(|| from_image.entrypoint().clone()).unwrap_or_default();
        let command = if !options.command.is_empty() {
            options.command
        } else if own_entrypoint {
            // The image's command is arguments for the image's entry point.
            Vec::new()
        } else {
            from_image.cmd().clone().unwrap_or_default()
        };
        if entrypoint.is_empty() && command.is_empty() {
            let image = options.image;
            return Err(Error::Invalid(format!(
                "image `{image}` has no command: give one after its name"
            )));
        }
        let stop_signal = match options.stop_signal.as_ref().or(from_image.stop_signal().as_ref()) {
            Some(signal) => crate::signal::parse(signal)?,
            None => 15,
        };
        let mut labels: BTreeMap<String, String> =
            from_image.labels().clone().unwrap_or_default().into_iter().collect();
        labels.extend(pairs(&options.labels));
        let mut config = ContainerConfig {
            hostname: options.hostname.unwrap_or_else(|| short_id(&id).to_owned()),
            name,
            image_id: image.id.clone(),
            image_name: image
                .name_meant(&options.image)
                .or_else(|| image.names.first().cloned())
                .unwrap_or_default(),
            image_ref: String::new(),
            raw_image_name: options.image,
            runtime: "runc".to_owned(),
            created: Timestamp::now().rfc3339(),
            create_command: options.create_command,
            command,
            entrypoint,
            env: environment(from_image.env().clone().unwrap_or_default(), options.env),
            workdir: options
                .workdir
                .or_else(|| from_image.working_dir().clone())
                .unwrap_or_default(),
            user: options.user.or_else(|| from_image.user().clone()).unwrap_or_default(),
            create_netns: options.network != NetworkMode::Host,
            network: options.network,
            static_ip: options.ip,
            networks,
            ports: options.ports,
            cap_add: options.cap_add,
            cap_drop: options.cap_drop,
            privileged: options.privileged,
            read_only: options.read_only,
            tmpfs: options.tmpfs,
            volumes: Vec::new(),
            named_volumes: Vec::new(),
            memory: options.memory,
            milli_cpus: options.milli_cpus,
            pids_limit: options.pids_limit,
            ulimits: options.ulimits,
            labels,
            stop_signal,
            stop_timeout: options.stop_timeout.unwrap_or(10),
            stdin: options.stdin,
            terminal: options.terminal,
            auto_remove: options.auto_remove,
            restart_policy: options.restart.policy,
            restart_retries: options.restart.retries,
            healthcheck: options.healthcheck,
            init_path,
            annotations: pairs(&options.annotations).collect(),
            hosts: options.hosts,
            dns_servers: options.dns_servers,
            dns_search: options.dns_search,
            dns_options: options.dns_options,
            devices: options.devices,
            sysctls: options.sysctls.into_iter().collect(),
            pid_file: options.pid_file,
            log_driver: "k8s-file".to_owned(),
            no_shm: true,
            id,
        };
        let of_image = from_image.volumes().as_deref().unwrap_or_default();
        volumes::sort(options.mounts, of_image, &mut config)?;
        Ok(config)
    }

    fn free_name(&self) -> Result<String> {
        // 3,600 names: a taken one is soon followed by a free one, and the insertion checks again.
        for _ in 0..64 {
            let name = ids::new_name().map_err(Error::system("read random bytes"))?;
            if self.store.resolve(&name).is_err() {
                return Ok(name);
            }
        }
        let id = ids::new_id().map_err(Error::system("read random bytes"))?;
        Ok(format!("tern_{}", short_id(&id)))
    }
}

/// `NAME=VALUE` taken apart; without a value it is empty.
fn pairs(list: &[String]) -> impl Iterator<Item = (String, String)> {
    list.iter().map(|entry| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        (name.to_owned(), value.to_owned())
    })
}

/// The image's environment with the user's on top.
fn environment(mut env: Vec<String>, options: Vec<String>) -> Vec<String> {
    for option in options {
        let entry = match option.split_once('=') {
            Some(_) => option,
            None => match std::env::var(&option) {
                Ok(value) => format!("{option}={value}"),
                Err(_) => continue,
            },
        };
        let prefix = &entry[..=entry.find('=').unwrap_or(entry.len() - 1)];
        match env.iter_mut().find(|e| e.starts_with(prefix)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_replace_the_images_variables() {
        let env = environment(
            vec!["A=1".to_owned(), "AB=2".to_owned()],
            vec!["A=3".to_owned(), "C=4=5".to_owned()],
        );
        assert_eq!(env, ["A=3", "AB=2", "C=4=5"]);
    }
}
