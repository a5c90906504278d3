//! What is in the way of containers that are to come.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use arctern_image::manifest::HostFacts;

use super::arrive::options;
use super::{Blocker, Offer};
use crate::cgroup::Hierarchies;
use crate::config::{NetworkMode, PortMapping, Protocol, short_id};
use crate::error::{Error, Result};
use crate::host::Host;

impl Host {
    /// Everything that stands in the way of containers that are to come together, at once. Nothing is
    /// touched.
    pub fn blockers(&mut self, offers: &[Offer]) -> Result<Vec<Blocker>> {
        let mut found: Vec<(Blocker, Vec<&str>)> = Vec::new();
        for offer in offers {
            for blocker in self.blockers_of(offer)? {
                match found.iter_mut().find(|(known, _)| *known == blocker) {
                    Some((_, names)) => names.push(&offer.config.name),
                    None => found.push((blocker, vec![&offer.config.name])),
                }
            }
        }
        let mut list = Vec::new();
        for (blocker, names) in found {
            // What is said of all needs no name.
            let cause = match names.len() == offers.len() {
                true => blocker.cause,
                false => format!("`{}`: {}", names.join("`, `"), blocker.cause),
            };
            list.push(Blocker { cause, ..blocker });
        }
        list.extend(rivals(offers));
        list.extend(self.room_for_arrivals(offers)?);
        Ok(list)
    }

    fn blockers_of(&mut self, offer: &Offer) -> Result<Vec<Blocker>> {
        let mut list = Vec::new();
        let mut note = |cause: String, remedy: &str| {
            list.push(Blocker { cause, remedy: remedy.to_owned() });
        };
        let config = &offer.config;
        let here = HostFacts::gather().map_err(Error::system("read the facts of this machine"))?;
        let there = &offer.facts;
        if there.architecture != here.architecture || there.page_size != here.page_size {
            note(
                format!(
                    "the container runs on a {} machine with pages of {} bytes, this is {} with {}",
                    there.architecture, there.page_size, here.architecture, here.page_size
                ),
                "choose a destination of the same architecture",
            );
        }
        let missing = there.features_missing_on(&here);
        if !missing.is_empty() {
            note(
                format!("the CPU lacks {}", missing.join(", ")),
                "choose a destination whose CPU has them: programs may use them at any instruction",
            );
        }
        let groups = Hierarchies::of(&self.paths)?;
        if let Err(error) = groups.check(config) {
            note(error.chain(), &error.hint().unwrap_or_default());
        }
        for record in self.list()? {
            if record.name() == config.name {
                note(
                    format!(
                        "the name `{}` is used by container {}",
                        config.name,
                        short_id(record.id())
                    ),
                    "rename or remove that one",
                );
            } else if record.id() == config.id {
                note(
                    format!("container `{}` has the same id", record.name()),
                    "remove it: it is an earlier copy",
                );
            }
        }
        for port in &config.ports {
            for taken in taken(port) {
                note(
                    format!("port {taken} of the host is in use"),
                    "stop what listens there, or restart the container with another port",
                );
            }
        }
        if let Some(cause) = self.address_taken(offer)? {
            note(cause, "give the other container another address");
        }
        if let Err(error) = crate::checkpoint::volumes::check(self, config, &options(&offer.shared))
        {
            note(error.chain(), &error.hint().unwrap_or_default());
        }
        for volume in &config.volumes {
            if !volume.source.exists() {
                note(
                    format!("there is no {} to bind", volume.source.display()),
                    "create it, or share it between the hosts",
                );
            }
        }
        Ok(list)
    }

    fn address_taken(&self, offer: &Offer) -> Result<Option<String>> {
        if offer.config.network != NetworkMode::Bridge {
            return Ok(None);
        }
        let network = match crate::network::of(&self.paths, &offer.config) {
            Ok(network) => network,
            Err(error) => return Ok(Some(error.chain())),
        };
        let Some(status) = crate::network::parse_status(offer.network.as_deref()) else {
            return Ok(None);
        };
        let leases = network.leases().map_err(Error::network)?;
        let other =
            leases.iter().find(|(id, lease)| lease.ip == status.ip && **id != offer.config.id);
        Ok(other.map(|(id, _)| format!("container {} has the address {}", short_id(id), status.ip)))
    }
}

/// What containers of one offer would take from each other.
fn rivals(offers: &[Offer]) -> Vec<Blocker> {
    let mut list = Vec::new();
    let address = |offer: &Offer| {
        let status = crate::network::parse_status(offer.network.as_deref())?;
        Some((offer.config.network_name().map(str::to_owned), status.ip))
    };
    for (at, one) in offers.iter().enumerate() {
        for other in &offers[at + 1..] {
            let mut both = |what: String| {
                let (one, other) = (&one.config.name, &other.config.name);
                list.push(Blocker {
                    cause: format!("`{one}` and `{other}` both {what}"),
                    remedy: "move them one by one, to different hosts".to_owned(),
                });
            };
            if one.config.id == other.config.id || one.config.name == other.config.name {
                both("have the same name or id".to_owned());
            }
            if let (Some(mine), Some(theirs)) = (address(one), address(other))
                && mine == theirs
            {
                both(format!("have the address {}", mine.1));
            }
            let pairs = one.config.ports.iter().flat_map(|mine| {
                other.config.ports.iter().filter_map(|theirs| mine.conflicts_with(theirs))
            });
            pairs.for_each(|port| both(format!("publish port {port} of the host")));
        }
    }
    list
}

/// Host ports of a mapping that somebody listens at.
fn taken(mapping: &PortMapping) -> Vec<u16> {
    let ip = mapping.host_ip.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::from);
    let free = |port: u16| match mapping.protocol {
        Protocol::Tcp => TcpListener::bind(SocketAddr::new(ip, port)).is_ok(),
        Protocol::Udp => UdpSocket::bind(SocketAddr::new(ip, port)).is_ok(),
    };
    mapping.pairs().map(|(host, _)| host).filter(|&port| port != 0 && !free(port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerConfig;

    fn offer(name: &str, port: &str) -> Offer {
        let config = serde_json::json!({ "id": name.repeat(64), "name": name });
        let mut config: ContainerConfig = serde_json::from_value(config).expect("config");
        config.ports.push(port.parse().expect("port"));
        Offer {
            transfer: "ab".repeat(32),
            config,
            network: None,
            facts: HostFacts::gather().expect("facts"),
            memory: 0,
            images: 0,
            changed: 0,
            layers: Vec::new(),
            shared: Vec::new(),
        }
    }

    #[test]
    fn what_two_would_take_from_each_other_is_in_the_way() {
        let between = |one, other| rivals(&[one, other]);
        assert_eq!(between(offer("a", "127.0.0.1:80:80"), offer("b", "127.0.0.2:80:80")), []);
        let same = between(offer("a", "80:80"), offer("b", "127.0.0.2:80:80"));
        assert_eq!(same[0].cause, "`a` and `b` both publish port 80 of the host");
        let twice = between(offer("a", "80:80"), offer("a", "81:80"));
        assert_eq!(twice[0].cause, "`a` and `a` both have the same name or id");
    }
}
