//! The contents of `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of a container.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// What a container's `/etc/hosts` is made of.
#[derive(Clone, Debug, Default)]
pub struct Hosts<'a> {
    /// The file it begins with, usually the host's own; empty for none.
    pub base: &'a str,
    /// The container's own address; `None` without a network or in the host's.
    pub ip: Option<Ipv4Addr>,
    /// Its host name.
    pub hostname: &'a str,
    /// Its name, as other containers call it.
    pub name: &'a str,
    /// The host as containers see it: the bridge's address.
    pub gateway: Option<Ipv4Addr>,
    /// More entries (`--add-host`).
    pub extra: &'a [(String, IpAddr)],
}

/// `/etc/hosts`: the base without what we say better, loopback, the host, the container, extras.
/// Entries of the user win over those of the base.
pub fn hosts(with: &Hosts<'_>) -> String {
    let mut own: Vec<(IpAddr, Vec<&str>)> = Vec::new();
    for (name, ip) in with.extra {
        own.push((*ip, vec![name]));
    }
    if let Some(gateway) = with.gateway {
        own.push((gateway.into(), vec!["host.containers.internal", "host.docker.internal"]));
    }
    if let Some(ip) = with.ip {
        let mut names: Vec<&str> = Vec::new();
        for name in [with.hostname, with.name] {
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        own.push((ip.into(), names));
    }
    let ours = |name: &str| own.iter().any(|(_, names)| names.contains(&name));
    let mut text = String::new();
    let (mut has_v4, mut has_v6) = (false, false);
    for line in with.base.lines() {
        let entry = line.split('#').next().unwrap_or_default();
        let mut words = entry.split_whitespace();
        let Some(address) = words.next() else { continue };
        let names: Vec<&str> = words.filter(|name| !ours(name)).collect();
        if names.is_empty() {
            continue;
        }
        has_v4 |= address == "127.0.0.1" && names.contains(&"localhost");
        has_v6 |= address == "::1" && names.contains(&"localhost");
        push_entry(&mut text, address, &names);
    }
    if !has_v4 {
        push_entry(&mut text, "127.0.0.1", &["localhost", "localhost.localdomain"]);
    }
    if !has_v6 {
        push_entry(&mut text, "::1", &["localhost", "localhost.localdomain"]);
    }
    for (address, names) in &own {
        if !names.is_empty() {
            push_entry(&mut text, &address.to_string(), names);
        }
    }
    text
}

fn push_entry(text: &mut String, address: &str, names: &[&str]) {
    text.push_str(address);
    text.push('\t');
    text.push_str(&names.join(" "));
    text.push('\n');
}

/// Name servers to use when the host's are all on its loopback.
const FALLBACK_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// `/etc/resolv.conf` from the host's. In a network namespace of its own (`isolated`) a container
/// cannot reach name servers on the host's loopback: they are left out.
pub fn resolv_conf(host: &str, isolated: bool) -> String {
    let mut text = String::new();
    let mut servers = 0;
    for line in host.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") {
            let address = words.next().unwrap_or_default();
            // A zone (`fe80::1%eth0`) names an interface of the host.
            let plain = address.split('%').next().unwrap_or_default();
            let usable = match plain.parse::<IpAddr>() {
                Ok(ip) => !isolated || !(ip.is_loopback() || address.contains('%')),
                Err(_) => false,
            };
            if !usable {
                continue;
            }
            servers += 1;
        } else if line.trim_start().starts_with(['#', ';']) || line.trim().is_empty() {
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    if servers == 0 && isolated {
        for server in FALLBACK_SERVERS {
            text.push_str(&format!("nameserver {server}\n"));
        }
    }
    text
}

/// The host's `resolv.conf`, with real name servers: where the file only names systemd-resolved's
/// local listener, the list behind that one. Empty when there is none.
pub fn host_resolv_conf() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    let mut servers = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
    match servers.next().map(str::trim) == Some("127.0.0.53") && servers.next().is_none() {
        true => {
            let behind = read("/run/systemd/resolve/resolv.conf");
            if behind.is_empty() { text } else { behind }
        }
        false => text,
    }
}

/// `/etc/hostname`.
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_has_loopback_the_container_and_the_host() {
        let extra = [("db".to_owned(), IpAddr::from([10, 0, 0, 9]))];
        let text = hosts(&Hosts {
            base: "127.0.0.1 localhost\n# comment\n192.0.2.1 box db\n",
            ip: Some(Ipv4Addr::new(10, 88, 0, 5)),
            hostname: "c1d2",
            name: "web",
            gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
            extra: &extra,
        });
        assert_eq!(
            text,
            "127.0.0.1\tlocalhost\n192.0.2.1\tbox\n::1\tlocalhost localhost.localdomain\n\
             10.0.0.9\tdb\n10.88.0.1\thost.containers.internal host.docker.internal\n\
             10.88.0.5\tc1d2 web\n"
        );
    }

    #[test]
    fn loopback_name_servers_are_for_the_hosts_namespace_only() {
        let host = "# made by hand\nsearch lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n";
        assert_eq!(resolv_conf(host, true), "search lan\nnameserver 192.0.2.1\n");
        assert!(resolv_conf(host, false).contains("127.0.0.53"));
        assert!(resolv_conf("nameserver 127.0.0.1\n", true).contains("8.8.8.8"));
        assert_eq!(resolv_conf("nameserver evil\n", false), "");
    }
}
