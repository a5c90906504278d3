//! The networks that the user made, one JSON file each, and the making of new ones.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{BadNetwork, Driver, Kind, LeaseRange, NetworkConfig, Subnet};
use crate::error::{Doing, NetworkError};
use crate::network::Network;
use crate::route::Route;

/// Names that mean something else.
const RESERVED: &[&str] =
    &["bridge", "container", "default", "host", "none", "ns", "pasta", "podman", "private"];

/// What a new network is to be like.
#[derive(Clone, Debug, Default)]
pub struct CreateNetwork {
    /// Its name.
    pub name: String,
    /// How containers are connected.
    pub driver: Driver,
    /// The bridge's name; for macvlan the shared device.
    pub interface: Option<String>,
    /// Subnets; without one of IPv4 a free one is chosen, if the network is ours.
    pub subnets: Vec<IpNet>,
    /// Gateways, each in one of the subnets; the first address without one.
    pub gateways: Vec<IpAddr>,
    /// Where free addresses are taken from, each in one of the subnets.
    pub ranges: Vec<AddressRange>,
    /// Whether containers get IPv6 addresses; an IPv6 subnet means so too.
    pub ipv6: bool,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it is made, RFC 3339.
    pub created: String,
}

/// A range of addresses as the user writes it: `ADDRESS-ADDRESS` or `SUBNET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange(pub LeaseRange);

impl FromStr for AddressRange {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork::new(format!("{text} is no FIRST-LAST and no subnet"));
        let (start_ip, end_ip) = match text.split_once('-') {
            Some((first, last)) => {
                (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?)
            }
            None => {
                let net: IpNet = text.parse().map_err(|_| bad())?;
                (net.network(), net.broadcast())
            }
        };
        match start_ip.is_ipv4() == end_ip.is_ipv4() && start_ip <= end_ip {
            true => Ok(AddressRange(LeaseRange { start_ip, end_ip })),
            false => Err(bad()),
        }
    }
}

/// The networks of a host.
#[derive(Clone, Debug)]
pub struct NetworkStore {
    dir: PathBuf,
}

impl NetworkStore {
    /// The networks that are described in `dir`, which need not exist.
    pub fn new(dir: &Path) -> Self {
        NetworkStore { dir: dir.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// All networks by name.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when a description cannot be read.
    pub fn list(&self) -> Result<Vec<NetworkConfig>, NetworkError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).doing("list", self.dir.display()),
        };
        let mut networks = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".json") {
                networks.extend(self.get(name)?);
            }
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// A network by name; `None` when there is none.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when its description cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<NetworkConfig>, NetworkError> {
        if !is_valid_name(name) {
            return Ok(None);
        }
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(io::Error::from)
                .doing("read", path.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).doing("read", path.display()),
        }
    }

    /// Makes a network: chooses what was left open, and writes the description. The kernel is
    /// touched when the first container is attached.
    ///
    /// # Errors
    /// [`NetworkError::Bad`], [`NetworkError::NoFreeSubnet`], [`NetworkError::Kernel`].
    pub fn create(&self, wanted: CreateNetwork) -> Result<NetworkConfig, NetworkError> {
        if !is_valid_name(&wanted.name) || RESERVED.contains(&wanted.name.as_str()) {
            return Err(BadNetwork::new(format!(
                "{:?} cannot be the name of a network",
                wanted.name
            ))
            .into());
        }
        let exists =
            || NetworkError::from(BadNetwork::new(format!("network {} exists", wanted.name)));
        if self.get(&wanted.name)?.is_some() {
            return Err(exists());
        }
        let mut route = Route::open().doing("open", "a route netlink socket")?;
        let others = self.list()?;
        let mut config = NetworkConfig {
            id: NetworkConfig::id_of(&wanted.name),
            name: wanted.name.clone(),
            driver: wanted.driver,
            network_interface: String::new(),
            created: wanted.created.clone(),
            subnets: Vec::new(),
            ipv6_enabled: wanted.ipv6 || wanted.subnets.iter().any(|s| matches!(s, IpNet::V6(_))),
            internal: false,
            dns_enabled: false,
            labels: wanted.labels.clone(),
            options: wanted.options.clone(),
            ipam_options: BTreeMap::from([("driver".into(), "host-local".into())]),
        };
        let kind = config.kind()?;
        config.network_interface = self.interface(&wanted, kind, &mut route)?;
        let taken: Vec<IpNet> =
            others.iter().flat_map(|other| other.subnets.iter().map(|s| s.subnet)).collect();
        let mut nets = wanted.subnets.clone();
        if !nets.iter().any(|net| matches!(net, IpNet::V4(_))) {
            if kind != Kind::Managed {
                let text = "a network on a segment needs --subnet: its addresses are not asked for";
                return Err(BadNetwork::new(text).into());
            }
            let routes = route.destinations().doing("read", "the routes of this host")?;
            let taken = taken.iter().filter_map(|net| match net {
                IpNet::V4(net) => Some(*net),
                IpNet::V6(_) => None,
            });
            let taken: Vec<Ipv4Net> = taken.chain(routes).collect();
            nets.insert(0, free_subnet(&taken).ok_or(NetworkError::NoFreeSubnet)?.into());
        }
        if config.ipv6_enabled && !nets.iter().any(|net| matches!(net, IpNet::V6(_))) {
            nets.push(unique_local(&config.id).into());
        }
        config.subnets = nets.iter().map(|net| subnet(net.trunc(), &wanted)).collect();
        for gateway in &wanted.gateways {
            if !config.subnets.iter().any(|s| s.gateway == Some(*gateway)) {
                return Err(BadNetwork::new(format!("gateway {gateway} is in no subnet")).into());
            }
        }
        for AddressRange(range) in &wanted.ranges {
            if !config.subnets.iter().any(|s| s.lease_range == Some(*range)) {
                let (first, last) = (range.start_ip, range.end_ip);
                return Err(BadNetwork::new(format!("range {first}-{last} is in no subnet")).into());
            }
        }
        config.plan()?;
        self.write(&config).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(),
            _ => NetworkError::Kernel {
                action: "write",
                object: self.path(&config.name).display().to_string(),
                source: error,
            },
        })?;
        Ok(config)
    }

    fn write(&self, config: &NetworkConfig) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let text = serde_json::to_vec_pretty(config)?;
        let new = self.dir.join(format!(".{}.new.{}", config.name, std::process::id()));
        // On disk before it has its name: an empty description would stop every command.
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        // A link, not a rename: of two commands at a time one finds the name taken.
        let made = std::fs::hard_link(&new, self.path(&config.name));
        std::fs::remove_file(&new)?;
        made?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    /// The bridge or the device that is shared.
    fn interface(
        &self,
        wanted: &CreateNetwork,
        kind: Kind,
        route: &mut Route,
    ) -> Result<String, NetworkError> {
        let name = match kind {
            Kind::Managed => {
                let unique = format!("{}/{}", self.dir.display(), wanted.name);
                let id = NetworkConfig::id_of(&unique);
                wanted.interface.clone().unwrap_or_else(|| format!("arc{}", &id[..8]))
            }
            Kind::Plain => wanted.interface.clone().ok_or_else(|| {
                BadNetwork::new("mode=unmanaged needs --interface-name: the bridge that is there")
            })?,
            Kind::Macvlan(_) => {
                let given = wanted.options.get("parent").or(wanted.interface.as_ref()).cloned();
                let found = match given {
                    Some(name) => Some(name),
                    None => route
                        .default_device()
                        .doing("read", "the default route of this host")?
                        .map(|link| link.name),
                };
                let parent = found.ok_or_else(|| {
                    BadNetwork::new("macvlan needs -o parent=DEVICE: there is no default route")
                })?;
                if route.link(&parent).doing("look up", &parent)?.is_none() {
                    return Err(BadNetwork::new(format!("there is no device {parent}")).into());
                }
                parent
            }
        };
        // IFNAMSIZ, and what the kernel refuses (dev_valid_name).
        let refused = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if name.is_empty() || name.len() > 15 || name.contains(refused) || name.starts_with('.') {
            return Err(BadNetwork::new(format!("{name:?} cannot be a device's name")).into());
        }
        Ok(name)
    }

    /// Removes a network whose state is kept in `state`: its description, and its bridge if it is
    /// ours. Says whether it was there.
    ///
    /// # Errors
    /// [`NetworkError::AddressInUse`] while a container is attached.
    pub fn remove(&self, name: &str, state: &Path) -> Result<bool, NetworkError> {
        let Some(config) = self.get(name)? else { return Ok(false) };
        Network::of(state, &config)?.remove()?;
        let path = self.path(name);
        std::fs::remove_file(&path).doing("remove", path.display())?;
        for ending in ["json", "lock"] {
            let _ = std::fs::remove_file(state.join(format!("{name}.{ending}")));
        }
        Ok(true)
    }
}

fn is_valid_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    name.len() <= 100
        && name.bytes().all(allowed)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// A subnet with the gateway and the range that lie in it.
fn subnet(net: IpNet, wanted: &CreateNetwork) -> Subnet {
    let first = match net.network() {
        IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from(u32::from(ip).saturating_add(1))),
        IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from(u128::from(ip).saturating_add(1))),
    };
    let gateway = wanted.gateways.iter().find(|gateway| net.contains(*gateway));
    let range = wanted
        .ranges
        .iter()
        .map(|range| range.0)
        .find(|range| net.contains(&range.start_ip) && net.contains(&range.end_ip));
    Subnet { subnet: net, gateway: Some(*gateway.unwrap_or(&first)), lease_range: range }
}

/// An IPv4 subnet that overlaps none of these.
pub(crate) fn free_subnet(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let overlaps = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    let candidates = (88..=255u8)
        .filter_map(|n| Ipv4Net::new(Ipv4Addr::new(10, n, 0, 0), 16).ok())
        .chain((16..=31u8).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(172, n, 0, 0), 16).ok()))
        .chain((0..=255u8).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(192, 168, n, 0), 24).ok()));
    candidates.into_iter().find(|candidate| !taken.iter().any(|t| overlaps(candidate, t)))
}

/// An IPv6 subnet of the unique local range (RFC 4193) whose 40 bits come from the network's id:
/// hosts on which networks of one name are made have the same one.
fn unique_local(id: &str) -> Ipv6Net {
    let bits = u64::from_str_radix(&id[..10], 16).unwrap_or(1);
    let address = (0xfdu128 << 120) | (u128::from(bits) << 80);
    Ipv6Net::new(Ipv6Addr::from(address), 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, NetworkStore) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = NetworkStore::new(&dir.path().join("networks"));
        (dir, store)
    }

    #[test]
    fn what_is_left_open_is_chosen() {
        let (dir, store) = store();
        let named =
            |name: &str| CreateNetwork { name: name.into(), ipv6: true, ..Default::default() };
        let one = store.create(named("one")).expect("one");
        let two = store.create(named("two")).expect("two");
        assert_ne!(one.subnets[0].subnet, two.subnets[0].subnet);
        assert_ne!(one.subnets[1].subnet, two.subnets[1].subnet);
        assert!(one.subnets[1].subnet.to_string().starts_with("fd"));
        assert_ne!(one.network_interface, two.network_interface);
        assert!(store.create(named("one")).is_err(), "the name is taken");
        assert!(store.create(named("host")).is_err(), "it means something else");
        assert_eq!(store.list().expect("list").len(), 2);
        if rustix::process::geteuid().is_root() {
            assert!(store.remove("one", dir.path()).expect("remove"));
            assert_eq!(store.get("one").expect("get"), None);
        }
    }

    #[test]
    fn gateways_and_ranges_find_their_subnets() {
        let (_dir, store) = store();
        let wanted = CreateNetwork {
            name: "lan".into(),
            interface: Some("br0".into()),
            subnets: vec![
                "192.0.2.0/24".parse().expect("net"),
                "fd00:2::/64".parse().expect("net"),
            ],
            gateways: vec!["192.0.2.254".parse().expect("ip")],
            ranges: vec!["192.0.2.32/28".parse().expect("range")],
            options: BTreeMap::from([("mode".into(), "unmanaged".into())]),
            ..Default::default()
        };
        let config = store.create(wanted.clone()).expect("create");
        assert!(config.is_lan() && config.ipv6_enabled);
        assert_eq!(config.subnets[0].gateway, "192.0.2.254".parse().ok());
        assert_eq!(config.subnets[1].gateway, "fd00:2::1".parse().ok());
        assert_eq!(config.subnets[0].lease_range.map(|r| r.end_ip), "192.0.2.47".parse().ok());
        for change in [
            |w: &mut CreateNetwork| w.gateways = vec!["10.0.0.1".parse().expect("ip")],
            |w: &mut CreateNetwork| w.interface = None,
            |w: &mut CreateNetwork| w.subnets.clear(),
        ] {
            let mut wrong = CreateNetwork { name: "wrong".into(), ..wanted.clone() };
            change(&mut wrong);
            assert!(store.create(wrong).is_err());
        }
        assert!("192.0.2.9-192.0.2.1".parse::<AddressRange>().is_err());
    }
}
