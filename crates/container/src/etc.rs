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
    let hosts = files::hosts(&Hosts {
        base: "",
        ip: network.status.as_ref().map(|s| s.ip),
        hostname: &config.hostname,
        name: &config.name,
        gateway: network.status.as_ref().and_then(|s| s.gateway),
        extra: &[],
    });
    let isolated = config.network != NetworkMode::Host;
    let files = [
        ("hosts", hosts),
        ("hostname", files::hostname(&config.hostname)),
        ("resolv.conf", files::resolv_conf(&files::host_resolv_conf(), isolated)),
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
