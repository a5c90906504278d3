//! Published ports: how they are written, and whether a host port is free.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

/// Transport protocol of a published port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports of the host that lead to ports of a container. Field names are Podman's, whose
/// `newPortMappings` this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Address of the host; empty or `None` for all.
    #[serde(default, with = "host_ip")]
    pub host_ip: Option<Ipv4Addr>,
    /// First port of the container.
    pub container_port: u16,
    /// First port of the host; 0 lets [`crate::Network::publish`] choose a free one.
    #[serde(default)]
    pub host_port: u16,
    /// How many consecutive ports.
    #[serde(default = "one")]
    pub range: u16,
    /// Protocol.
    pub protocol: Protocol,
}

fn one() -> u16 {
    1
}

/// Podman writes «all addresses» as an empty string.
mod host_ip {
    use super::Ipv4Addr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ip: &Option<Ipv4Addr>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&ip.map(|ip| ip.to_string()).unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Ipv4Addr>, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        match text.as_str() {
            "" | "0.0.0.0" => Ok(None),
            ip => ip.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// A published port is not written as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {text:?}: {reason}; the form is [[IP:][HOSTPORT]:]PORT[/tcp|udp], ports may be ranges"
)]
pub struct BadPort {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for PortMapping {
    type Err = BadPort;

    /// `80`, `8080:80`, `8000-8009:80-89`, `127.0.0.1:8080:80/udp`, `127.0.0.1::80`.
    fn from_str(text: &str) -> Result<Self, BadPort> {
        let bad = |reason| BadPort { text: text.to_owned(), reason };
        let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(bad("the protocol must be tcp or udp")),
        };
        let parts: Vec<&str> = rest.split(':').collect();
        let (ip, host, container) = match parts[..] {
            [container] => ("", "", container),
            [host, container] => ("", host, container),
            [ip, host, container] => (ip, host, container),
            _ => return Err(bad("it has too many parts (IPv6 addresses cannot be published yet)")),
        };
        let host_ip = match ip {
            "" | "0.0.0.0" => None,
            ip => Some(ip.parse().map_err(|_| bad("the address is no IPv4 address"))?),
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let first: u16 = first.parse().ok().filter(|p| *p > 0)?;
            let last: u16 = last.parse().ok()?;
            Some((first, last.checked_sub(first)?.checked_add(1)?))
        };
        let wrong = "a port must be a number from 1 to 65535";
        let (container_port, count) = range(container).ok_or(bad(wrong))?;
        let host_port = match host {
            "" => 0,
            host => {
                let (first, host_count) = range(host).ok_or(bad(wrong))?;
                if host_count != count {
                    return Err(bad("both ranges must have the same length"));
                }
                first
            }
        };
        Ok(PortMapping { host_ip, container_port, host_port, range: count, protocol })
    }
}

impl PortMapping {
    /// Every single (host port, container port) of the mapping.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        (0..self.range.max(1)).filter_map(|i| {
            Some((self.host_port.checked_add(i)?, self.container_port.checked_add(i)?))
        })
    }

    /// Whether both claim the same port of the same host address.
    pub fn conflicts_with(&self, other: &PortMapping) -> Option<u16> {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if !same_address || self.protocol != other.protocol {
            return None;
        }
        let theirs =
            u32::from(other.host_port)..u32::from(other.host_port) + u32::from(other.range.max(1));
        self.pairs().map(|(host, _)| host).find(|host| theirs.contains(&u32::from(*host)))
    }
}

impl fmt::Display for PortMapping {
    /// As `podman ps` shows it: `0.0.0.0:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let last = |first: u16| u32::from(first) + u32::from(self.range.max(1)) - 1;
        let (host, container) = (self.host_port, self.container_port);
        match self.range {
            0 | 1 => write!(f, "{ip}:{host}->{container}/{}", self.protocol),
            _ => write!(
                f,
                "{ip}:{host}-{}->{container}-{}/{}",
                last(host),
                last(container),
                self.protocol
            ),
        }
    }
}

/// Whether a host port can be had: no socket of this network namespace listens on it.
///
/// # Errors
/// Those of `socket(2)` and `bind(2)` other than `EADDRINUSE`, for example `EADDRNOTAVAIL` for an
/// address that the host does not have.
pub(crate) fn is_free(ip: Option<Ipv4Addr>, port: u16, protocol: Protocol) -> io::Result<bool> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    if protocol == Protocol::Tcp {
        // With it only a listener is in the way, not a connection that waits for its end.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    let address = SocketAddrV4::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    match rustix::net::bind(&socket, &address) {
        Ok(()) => Ok(true),
        Err(Errno::ADDRINUSE) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A port that was free a moment ago.
///
/// # Errors
/// Those of `socket(2)` and `bind(2)`.
pub(crate) fn any_free(ip: Option<Ipv4Addr>, protocol: Protocol) -> io::Result<u16> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrV4::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED), 0);
    rustix::net::bind(&socket, &address)?;
    let bound: SocketAddrV4 = rustix::net::getsockname(&socket)?.try_into()?;
    Ok(bound.port())
}

/// The process that holds a listening or bound port of this network namespace, as `PID (comm)`, if
/// it can be found: for messages only.
pub(crate) fn holder(port: u16, protocol: Protocol) -> Option<String> {
    let inodes: Vec<String> = ["", "6"]
        .iter()
        .filter_map(|v| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}{v}")).ok()
        })
        .flat_map(|table| sockets_on(&table, port))
        .collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(link) = std::fs::read_link(fd.path()) else { continue };
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']'));
            if inode.is_some_and(|i| inodes.iter().any(|have| have == i)) {
                let comm = std::fs::read_to_string(process.path().join("comm")).ok()?;
                return Some(format!("{pid} ({})", comm.trim_end()));
            }
        }
    }
    None
}

/// Inodes of the unconnected sockets on a local port in a `/proc/net/{tcp,udp}` table.
fn sockets_on(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|f| f.get(1).is_some_and(|local| local.ends_with(&wanted)))
        .filter(|f| f.get(2).is_some_and(|remote| remote.ends_with(":0000")))
        .filter_map(|f| f.get(9).map(|inode| (*inode).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_podman_reads_them() {
        let port = |t: &str| t.parse::<PortMapping>();
        let expect = |ip: Option<[u8; 4]>, host, container, range, protocol| {
            Ok(PortMapping {
                host_ip: ip.map(Ipv4Addr::from),
                host_port: host,
                container_port: container,
                range,
                protocol,
            })
        };
        assert_eq!(port("80"), expect(None, 0, 80, 1, Protocol::Tcp));
        assert_eq!(port("8080:80"), expect(None, 8080, 80, 1, Protocol::Tcp));
        assert_eq!(port("8000-8009:80-89/udp"), expect(None, 8000, 80, 10, Protocol::Udp));
        let local = Some([127, 0, 0, 1]);
        assert_eq!(port("127.0.0.1:8080:80"), expect(local, 8080, 80, 1, Protocol::Tcp));
        assert_eq!(port("127.0.0.1::80"), expect(local, 0, 80, 1, Protocol::Tcp));
        for bad in
            ["", "0", "x:80", "8080:80/sctp", "1-3:1-2", "9-8", "70000", "::1:80:80", "1:2:3:4"]
        {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn conflicts_need_the_same_address_and_protocol() {
        let port = |t: &str| t.parse::<PortMapping>().expect("valid");
        assert_eq!(port("8080:80").conflicts_with(&port("127.0.0.1:8080:1")), Some(8080));
        assert_eq!(port("8000-8010:1-11").conflicts_with(&port("8010:1")), Some(8010));
        assert_eq!(port("8080:80").conflicts_with(&port("8080:80/udp")), None);
        assert_eq!(port("127.0.0.1:1:1").conflicts_with(&port("127.0.0.2:1:1")), None);
    }

    #[test]
    fn podmans_json_is_read_and_written() {
        let json =
            r#"{"host_ip":"","container_port":80,"host_port":8080,"range":1,"protocol":"tcp"}"#;
        let port: PortMapping = serde_json::from_str(json).expect("read");
        assert_eq!(port, "8080:80".parse().expect("valid"));
        assert_eq!(serde_json::to_string(&port).expect("written"), json);
    }

    #[test]
    fn listeners_are_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n   1: 0100007F:1F90 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n";
        assert_eq!(sockets_on(table, 8080), ["4242"]);
    }
}
