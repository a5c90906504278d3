//! The files that a container gets from us: `hosts`, `hostname` and `resolv.conf` in /etc, and
//! `/run/.containerenv`.

use std::fs;
use std::path::Path;

use arctern_net::files::{self, Hosts};

use crate::config::{ContainerConfig, NetworkMode};
use crate::error::{Error, Result};
use crate::network::Attachment;

/// The name of the file by which programs know that they run in a container, as Podman has it.
pub const CONTAINERENV: &str = ".containerenv";

/// Writes the files into `dir`.
pub fn write(dir: &Path, config: &ContainerConfig, network: &Attachment) -> Result<()> {
    let status = network.status.as_ref();
    let gateway = status.and_then(|s| s.gateway);
    let host = gateway.unwrap_or(std::net::Ipv4Addr::LOCALHOST);
    let extra: Vec<_> = config
        .hosts
        .iter()
        .map(|entry| (entry.name.clone(), entry.address.unwrap_or(host.into())))
        .collect();
    let hosts = files::hosts(&Hosts {
        base: "",
        ip: status.map(|s| s.ip),
        hostname: &config.hostname,
        name: &config.name,
        gateway,
        extra: &extra,
    });
    let isolated = config.network != NetworkMode::Host;
    let files = [
        ("hosts", hosts),
        ("hostname", files::hostname(&config.hostname)),
        (
            "resolv.conf",
            resolver(config, &files::resolv_conf(&files::host_resolv_conf(), isolated)),
        ),
        (CONTAINERENV, String::new()),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, mode).map_err(Error::io("set the mode of", &path))?;
    }
    Ok(())
}

/// What the user asked of the resolver, in place of the host's lines of the same kind.
fn resolver(config: &ContainerConfig, host: &str) -> String {
    let own = [
        ("search", config.dns_search.iter().map(|d| d.trim_end().to_owned()).collect::<Vec<_>>()),
        ("nameserver", config.dns_servers.iter().map(ToString::to_string).collect()),
        ("options", config.dns_options.clone()),
    ];
    let kept = host.lines().filter(|line| {
        let kind = line.split_whitespace().next().unwrap_or_default();
        !own.iter().any(|(name, values)| *name == kind && !values.is_empty())
    });
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    for (name, values) in &own {
        match (*name, values.as_slice()) {
            (_, []) => {}
            // One server a line; the others are one list.
            ("nameserver", servers) => {
                text.extend(servers.iter().map(|server| format!("nameserver {server}\n")));
            }
            // A lone dot: names are looked for as they are.
            ("search", [dot]) if dot == "." => {}
            (name, values) => text.push_str(&format!("{name} {}\n", values.join(" "))),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_the_hosts_but_for_what_was_asked() {
        let config = |extra: serde_json::Value| -> ContainerConfig {
            let mut all = serde_json::json!({ "id": "a", "name": "web" });
            let map = all.as_object_mut().expect("object");
            map.extend(extra.as_object().expect("object").clone());
            serde_json::from_value(all).expect("config")
        };
        let host = "search lan\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(resolver(&config(serde_json::json!({})), host), host);
        let asked = serde_json::json!({
            "dnsServer": ["192.0.2.9"], "dnsSearch": ["."], "dnsOption": ["ndots:2", "rotate"],
        });
        let text = "nameserver 192.0.2.9\noptions ndots:2 rotate\n";
        assert_eq!(resolver(&config(asked), host), text);
    }
}
