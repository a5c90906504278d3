//! The container's side of the network crate: what a container's options mean for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use arctern_net::{
    ArchivedStatus, AttachSpec, DEFAULT_BRIDGE, Means, Network, NetworkError, NetworkStatus, netns,
};

use crate::config::{ContainerConfig, NetworkMode, PortMapping};
use crate::error::{Error, Result};
use crate::keeper;
use crate::paths::Paths;

/// The root whose containers are on the default bridge.
const DEFAULT_ROOT: &str = "/var/lib/arctern";

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

/// The bridge network of a host. Hosts with other roots on the same machine have bridges of their
/// own: they know nothing of each other's addresses.
pub(crate) fn bridge(paths: &Paths) -> Result<Network> {
    let name = if paths.root.as_os_str() == DEFAULT_ROOT {
        DEFAULT_BRIDGE.to_owned()
    } else {
        format!("arc{:08x}", fnv1a(paths.root.as_os_str().as_encoded_bytes()))
    };
    Network::open(&paths.root.join("networks"), &name, None).map_err(Error::network)
}

/// A short, stable name for a path.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// How a container comes to its network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// It is restored: a lock that is kept for its address goes on, until the restore opens it.
    pub resumes: bool,
    /// It is locked from the beginning.
    pub locked: bool,
}

/// Makes the network of a container. The address is the one asked for, the one it had, or a free
/// one.
pub fn setup(
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
    let network = bridge(paths)?;
    if !arrival.resumes {
        end_lock(paths, &config.id)?;
    }
    let attach = |ip: Option<Ipv4Addr>, mac| {
        let spec = AttachSpec {
            ip,
            mac,
            hostname: config.hostname.clone(),
            resumes: arrival.resumes,
            lock: arrival.locked.then_some(Means::Hold),
            ..AttachSpec::default()
        };
        network.attach(namespace.as_fd(), &config.id, &spec)
    };
    let status = match (config.static_ip, had) {
        (None, Some(had)) => match attach(Some(had.ip), Some(had.mac)) {
            // Taken meanwhile, or of another subnet: any address will do.
            Err(NetworkError::AddressInUse { .. } | NetworkError::AddressOutside { .. }) => {
                attach(None, None)
            }
            other => other,
        },
        (Some(ip), Some(had)) if had.ip == ip && arrival.resumes => attach(Some(ip), Some(had.mac)),
        (ip, _) => attach(ip, None),
    }
    .map_err(Error::network)?;
    let ports = if config.ports.is_empty() {
        Vec::new()
    } else {
        network.publish(&config.id, &config.ports).map_err(Error::network)?
    };
    Ok(Attachment { netns: Some(path), status: Some(status), ports })
}

/// Removes the network of a container; what is gone already is no error.
pub fn teardown(paths: &Paths, config: &ContainerConfig) -> Result<()> {
    let attached = match config.network {
        NetworkMode::Bridge => bridge(paths)?.disconnect(&config.id).map_err(Error::network),
        NetworkMode::None | NetworkMode::Host => Ok(()),
    };
    netns::delete(&paths.container(&config.id).netns).map_err(Error::network)?;
    attached
}

/// The locks of the bridge, by address.
pub fn locks(paths: &Paths) -> Result<BTreeMap<Ipv4Addr, arctern_net::Lock>> {
    bridge(paths)?.locks().map_err(Error::network)
}

/// Gives up the lock of a container, if it has one.
pub fn end_lock(paths: &Paths, id: &str) -> Result<()> {
    let network = bridge(paths)?;
    if network.locks().map_err(Error::network)?.is_empty() {
        return Ok(());
    }
    let lock = network.end_lock(id).map_err(Error::network)?;
    keeper::dismiss(lock.as_ref());
    Ok(())
}

/// Gives up the locks whose time is over.
pub fn end_expired_locks(paths: &Paths) -> Result<()> {
    bridge(paths)?.end_expired_locks().map_err(Error::network)
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
/// address is asked for again.
pub fn from_archive(text: &str) -> Result<Option<String>> {
    let archived = ArchivedStatus::from_podman(text).map_err(Error::network)?;
    let Some(first) = archived.into_iter().next() else { return Ok(None) };
    let (Some(address), Some(mac)) = (first.address, first.mac) else { return Ok(None) };
    let status = NetworkStatus {
        ip: address.addr(),
        prefix: address.prefix_len(),
        gateway: first.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED),
        mac,
        ifname: first.ifname,
        host_veth: String::new(),
        bridge: String::new(),
    };
    serde_json::to_string(&status).map(Some).map_err(Error::json("network.status"))
}
