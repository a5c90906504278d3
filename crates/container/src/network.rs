//! The container's side of the network crate: what a container's options mean for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use arctern_net::{
    ArchivedStatus, AttachSpec, DEFAULT_BRIDGE, InsideLock, Ipv4Net, Mac, Means, Network,
    NetworkConfig, NetworkError, NetworkStatus, NetworkStore, netns,
};

use crate::config::{ContainerConfig, NetworkMode, PortMapping};
use crate::error::{Error, Result};
use crate::keeper;
use crate::paths::Paths;

/// What a container got.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// Network namespace that its processes join; None for the host's.
    pub netns: Option<PathBuf>,
    /// How it is attached to the bridge, if it is.
    pub status: Option<NetworkStatus>,
    /// Its published ports, with the host ports that were chosen.
    pub ports: Vec<PortMapping>,
}

/// The networks that the user made.
#[must_use]
pub fn store(paths: &Paths) -> NetworkStore {
    NetworkStore::new(&paths.root.join("networks/config"))
}

/// Where who has which address of a network is kept.
pub(crate) fn leases(paths: &Paths) -> PathBuf {
    paths.root.join("networks/leases")
}

/// The network of a container.
pub(crate) fn of(paths: &Paths, config: &ContainerConfig) -> Result<Network> {
    let Some(name) = config.network_name() else { return bridge(paths) };
    match store(paths).get(name).map_err(Error::network)? {
        Some(network) => Network::of(&leases(paths), &network).map_err(Error::network),
        None => Err(Error::NoSuchNetwork(name.to_owned())),
    }
}

/// The default network of a host. Hosts with other roots on the same machine have bridges of their
/// own: they know nothing of each other's addresses.
pub(crate) fn bridge(paths: &Paths) -> Result<Network> {
    let name = paths.tag().map_or_else(|| DEFAULT_BRIDGE.to_owned(), |tag| format!("arc{tag}"));
    Network::open(&paths.root.join("networks"), &name, None).map_err(Error::network)
}

/// The default network's bridge, and its subnet and gateway if they are known.
pub(crate) fn default_bridge(paths: &Paths) -> Result<(String, Option<(Ipv4Net, Ipv4Addr)>)> {
    let network = bridge(paths)?;
    Ok((network.link_name().to_owned(), network.subnet().map_err(Error::network)?))
}

/// How a container comes to its network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// It is restored: a lock that is kept for its address goes on, until the restore opens it.
    pub resumes: bool,
    /// It is locked from the beginning.
    pub locked: bool,
}

impl Arrival {
    fn lock(self) -> Option<Means> {
        self.locked.then_some(Means::Hold)
    }
}

/// What a container's interface shall have; what is not given is chosen.
#[derive(Clone, Copy, Debug, Default)]
struct Address {
    ip: Option<Ipv4Addr>,
    ip6: Option<std::net::Ipv6Addr>,
    mac: Option<Mac>,
}

impl Address {
    /// As the user asked.
    fn wanted(config: &ContainerConfig) -> Self {
        let statics = config.statics();
        Address {
            ip: config.static_ip.or_else(|| statics?.ipv4()),
            ip6: statics.and_then(|s| s.ipv6()),
            mac: statics.and_then(|s| s.mac()),
        }
    }

    /// What is not given, as it was.
    fn or(self, had: &NetworkStatus) -> Self {
        Address {
            ip: self.ip.or(Some(had.ip).filter(|ip| !ip.is_unspecified())),
            ip6: self.ip6.or(had.ip6.map(|net| net.addr())),
            mac: self.mac.or(Some(had.mac)),
        }
    }
}

/// Makes the network of a container as far as nobody notices it; [`appear`] is the rest. The address is
/// the one asked for, the one it had, or a free one.
pub fn lay(
    paths: &Paths,
    config: &ContainerConfig,
    had: Option<&NetworkStatus>,
    arrival: Arrival,
) -> Result<Attachment> {
    if config.network == NetworkMode::Host {
        return Ok(Attachment::default());
    }
    let path = paths.container(&config.id).netns;
    // What a killed command may have left.
    netns::delete(&path).map_err(Error::network)?;
    let namespace = netns::create(&path).map_err(Error::network)?;
    if config.network == NetworkMode::None {
        arctern_net::bring_up_loopback(namespace.as_fd()).map_err(Error::network)?;
        return Ok(Attachment { netns: Some(path), ..Attachment::default() });
    }
    let network = of(paths, config)?;
    if !arrival.resumes {
        end_lock(paths, config)?;
    }
    let attach = |address: Address| {
        let spec = AttachSpec {
            ip: address.ip,
            ip6: address.ip6,
            mac: address.mac,
            hostname: config.hostname.clone(),
            resumes: arrival.resumes,
            lock: arrival.lock(),
            ..AttachSpec::default()
        };
        network.attach_hidden(namespace.as_fd(), &config.id, &spec)
    };
    let wanted = Address::wanted(config);
    let status = match had {
        Some(had) if wanted.ip.is_none() => match attach(wanted.or(had)) {
            // Taken meanwhile, or of another subnet: any address will do.
            Err(
                NetworkError::AddressInUse { .. }
                | NetworkError::AddressOutside { .. }
                | NetworkError::NoIpv6(_),
            ) => attach(wanted),
            other => other,
        },
        Some(had) if wanted.ip == Some(had.ip) && arrival.resumes => attach(wanted.or(had)),
        _ => attach(wanted),
    }
    .map_err(Error::network)?;
    Ok(Attachment { netns: Some(path), status: Some(status), ports: Vec::new() })
}

/// Packets for a container whose network was laid are its own, or its lock's, from here on.
pub fn appear(
    paths: &Paths,
    config: &ContainerConfig,
    arrival: Arrival,
    attachment: &mut Attachment,
) -> Result<()> {
    let Attachment { netns: Some(path), status: Some(_), ports } = attachment else {
        return Ok(());
    };
    let network = of(paths, config)?;
    let namespace = netns::open(path).map_err(Error::network)?;
    network.appear(namespace.as_fd(), &config.id, arrival.lock()).map_err(Error::network)?;
    if !config.ports.is_empty() {
        *ports = network.publish(&config.id, &config.ports).map_err(Error::network)?;
    }
    Ok(())
}

/// Tells the segment that a container is here, which may have been announced on another host: a switch
/// that believes that leads nothing here until the container sends something by itself.
pub fn announce(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    if config.network != NetworkMode::Bridge {
        return Ok(());
    }
    let network = of(paths, config)?;
    if !network.is_lan() {
        return Ok(());
    }
    let namespace = netns::open(&paths.container(&config.id).netns).map_err(Error::network)?;
    network.announce(namespace.as_fd(), &config.id).map_err(Error::network)
}

/// Removes the network of a container; what is gone already is no error.
pub fn teardown(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    let path = paths.container(&config.id).netns;
    let attached = match config.network {
        NetworkMode::Bridge => match of(paths, config) {
            Ok(network) => {
                let namespace = netns::open(&path).ok();
                let namespace = namespace.as_ref().map(AsFd::as_fd);
                network.disconnect(&config.id, namespace).map_err(Error::network)
            }
            // It was removed with everything on it.
            Err(Error::NoSuchNetwork(_)) => Ok(()),
            Err(error) => Err(error),
        },
        NetworkMode::None | NetworkMode::Host => Ok(()),
    };
    netns::delete(&path).map_err(Error::network)?;
    attached
}

/// All networks: the default one, and those that the user made.
pub(crate) fn all(paths: &Paths) -> Result<Vec<Network>> {
    let mut networks = vec![bridge(paths)?];
    for config in store(paths).list().map_err(Error::network)? {
        networks.push(Network::of(&leases(paths), &config).map_err(Error::network)?);
    }
    Ok(networks)
}

/// The locks of all networks, by address.
pub fn locks(paths: &Paths) -> Result<BTreeMap<Ipv4Addr, arctern_net::Lock>> {
    let mut locks = BTreeMap::new();
    for network in all(paths)? {
        locks.extend(network.locks().map_err(Error::network)?);
    }
    Ok(locks)
}

/// Gives up the lock of a container, if it has one.
pub fn end_lock(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    if config.network != NetworkMode::Bridge {
        return Ok(());
    }
    let network = match of(paths, config) {
        // It was removed with everything on it.
        Err(Error::NoSuchNetwork(_)) => return Ok(()),
        other => other?,
    };
    if network.locks_inside() {
        return match netns::open(&paths.container(&config.id).netns) {
            Ok(namespace) => InsideLock::new(namespace).unlock().map_err(Error::network),
            Err(_) => Ok(()),
        };
    }
    if network.locks().map_err(Error::network)?.is_empty() {
        return Ok(());
    }
    let ended = network.end_lock(&config.id).map_err(Error::network)?;
    ended.iter().for_each(keeper::dismiss);
    Ok(())
}

/// Nothing of a container is returned to hosts that it came from any more, unless it goes on from here.
pub(crate) fn end_backs(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    if config.network != NetworkMode::Bridge {
        return Ok(());
    }
    match of(paths, config) {
        // It was removed with everything on it.
        Err(Error::NoSuchNetwork(_)) => Ok(()),
        Err(error) => Err(error),
        Ok(network) => {
            let ended = network.end_backs(&config.id).map_err(Error::network)?;
            ended.iter().for_each(|back| keeper::dismiss_process(back.keeper));
            Ok(())
        }
    }
}

/// Removes what a command that was killed has left of a lock that it had not made yet. The caller
/// has the lock of the container.
pub(crate) fn sweep(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    match config.network {
        NetworkMode::Bridge => of(paths, config)?.sweep(&config.id).map_err(Error::network),
        NetworkMode::None | NetworkMode::Host => Ok(()),
    }
}

/// A restored container runs: if it had gone to another host, it has come back.
pub(crate) fn returned(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    if config.network == NetworkMode::Bridge {
        let reservation = of(paths, config)?.returned(&config.id).map_err(Error::network)?;
        reservation.iter().for_each(keeper::dismiss);
    }
    Ok(())
}

/// Gives up every lock of a network that the user made.
pub(crate) fn end_locks(paths: &Paths, config: &NetworkConfig) -> Result<()> {
    let network = Network::of(&leases(paths), config).map_err(Error::network)?;
    for lock in network.locks().map_err(Error::network)?.values() {
        let ended = network.end_lock(&lock.container).map_err(Error::network)?;
        ended.iter().for_each(keeper::dismiss);
    }
    for back in network.backs().map_err(Error::network)? {
        let ended = network.give_up_backs(&back.container).map_err(Error::network)?;
        ended.iter().for_each(|back| keeper::dismiss_process(back.keeper));
    }
    Ok(())
}

/// Gives up the locks whose time is over.
pub fn end_expired_locks(paths: &Paths) -> Result<()> {
    all(paths)?.iter().try_for_each(|n| n.end_expired_locks().map_err(Error::network))
}

/// Removes the bridge, when no container is left that could use it.
pub fn remove_unused(paths: &Paths) -> Result<()> {
    match bridge(paths)?.remove() {
        Ok(()) | Err(NetworkError::AddressInUse { .. }) => Ok(()),
        Err(error) => Err(Error::network(error)),
    }
}

/// A status as the database has it.
pub fn parse_status(text: Option<&str>) -> Option<NetworkStatus> {
    serde_json::from_str(text?).ok()
}

/// The status that the database shall have, from an archive's `network.status`: the first network's
/// addresses are asked for again, except those that the caller wants new.
pub fn from_archive(text: &str, new_ip: bool, new_mac: Option<Mac>) -> Result<Option<String>> {
    let archived = ArchivedStatus::from_podman(text).map_err(Error::network)?;
    let Some(first) = archived.into_iter().next() else { return Ok(None) };
    let (Some(address), Some(mac)) = (first.address, new_mac.or(first.mac)) else {
        return Ok(None);
    };
    let status = NetworkStatus {
        ip: if new_ip { Ipv4Addr::UNSPECIFIED } else { address.addr() },
        prefix: address.prefix_len(),
        gateway: first.gateway,
        ip6: first.address6.filter(|_| !new_ip),
        gateway6: None,
        mac,
        ifname: first.ifname,
        host_veth: String::new(),
        bridge: String::new(),
        network: first.network,
    };
    serde_json::to_string(&status).map(Some).map_err(Error::json("network.status"))
}

/// Sets what `--sysctl` asks of a network namespace, which a restore finds as it was made. Other
/// settings are carried by the images.
pub(crate) fn apply_sysctls(path: &Path, config: &ContainerConfig) -> Result<()> {
    let namespace = netns::open(path).map_err(Error::network)?;
    for (name, value) in config.sysctls.iter().filter(|(name, _)| name.starts_with("net.")) {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        netns::run_in(namespace.as_fd(), || std::fs::write(&path, value))
            .flatten()
            .map_err(Error::io("write", &path))?;
    }
    Ok(())
}
