//! The files of /etc that a container gets from us: `hosts`, `hostname` and `resolv.conf`.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::config::{ContainerConfig, NetworkMode};
use crate::error::{Error, Result};

/// Writes the files into `dir`.
pub fn write(dir: &Path, config: &ContainerConfig, address: Option<Ipv4Addr>) -> Result<()> {
    let host_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let own_network = config.network != NetworkMode::Host;
    let files = [
        ("hosts", hosts(config, address)),
        ("hostname", format!("{}\n", config.hostname)),
        ("resolv.conf", resolv(&host_resolv, own_network)),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, mode).map_err(Error::io("set the mode of", &path))?;
    }
    Ok(())
}

fn hosts(config: &ContainerConfig, address: Option<Ipv4Addr>) -> String {
    let mut text =
        "127.0.0.1\tlocalhost localhost.localdomain\n::1\tlocalhost ip6-localhost\n".to_owned();
    let address = address.unwrap_or(Ipv4Addr::LOCALHOST);
    let _ = writeln!(text, "{address}\t{} {}", config.hostname, config.name);
    text
}

/// The host's resolvers; those on its loopback cannot be reached from another network.
fn resolv(host: &str, own_network: bool) -> String {
    let reachable = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            (Some("nameserver"), Some(address)) if own_network => {
                address.parse::<IpAddr>().is_ok_and(|a| !a.is_loopback())
            }
            (Some("nameserver" | "search" | "options" | "domain"), Some(_)) => true,
            _ => false,
        }
    };
    host.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_resolvers_are_left_out() {
        let host = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch lan\n";
        assert_eq!(resolv(host, true), "nameserver 10.0.0.1\nsearch lan\n");
        assert_eq!(resolv(host, false), "nameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch lan\n");
    }
}
