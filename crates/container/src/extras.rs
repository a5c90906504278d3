//! Values of options that only some containers have: lines of /etc/hosts, devices, and times.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::InvalidOption;

/// A line of /etc/hosts (`--add-host NAME:ADDRESS`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// Its address; None for the host's on the container's network (`host-gateway`).
    pub address: Option<IpAddr>,
}

impl FromStr for HostEntry {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || InvalidOption::new("entry of /etc/hosts", text, "NAME:ADDRESS");
        let (name, address) = text.split_once(':').ok_or_else(bad)?;
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '#') {
            return Err(bad());
        }
        let plain = address.trim_start_matches('[').trim_end_matches(']');
        let address = match plain {
            "host-gateway" => None,
            plain => Some(plain.parse().map_err(|_| bad())?),
        };
        Ok(HostEntry { name: name.to_owned(), address })
    }
}

impl TryFrom<String> for HostEntry {
    type Error = InvalidOption;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostEntry> for String {
    fn from(entry: HostEntry) -> String {
        match entry.address {
            Some(address) => format!("{}:{address}", entry.name),
            None => format!("{}:host-gateway", entry.name),
        }
    }
}

/// A device of the host (`--device HOST[:CONTAINER][:PERMISSIONS]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub container: PathBuf,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

impl FromStr for Device {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "/dev/HOST[:/dev/CONTAINER][:rwm]";
        let bad = || InvalidOption::new("device", text, FORM);
        let allowed =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
        let mut parts = text.split(':');
        let host = parts.next().filter(|path| path.starts_with('/')).ok_or_else(bad)?;
        let rest: Vec<&str> = parts.collect();
        let (container, permissions) = match rest.as_slice() {
            [] => (host, "rwm"),
            [path] if path.starts_with('/') => (*path, "rwm"),
            [permissions] if allowed(permissions) => (host, *permissions),
            [path, permissions] if path.starts_with('/') && allowed(permissions) => {
                (*path, *permissions)
            }
            _ => return Err(bad()),
        };
        Ok(Device {
            host: PathBuf::from(host),
            container: PathBuf::from(container),
            permissions: permissions.to_owned(),
        })
    }
}

/// Times as people write them: `90`, `30s`, `1h30m`, `250ms`; a number alone is in seconds.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidOption> {
    const FORM: &str = "a number of seconds, or numbers with ms, s, m, h or d, as 1h30m";
    let bad = || InvalidOption::new("time", text, FORM);
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Duration::from_secs(text.parse().map_err(|_| bad())?));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let after = &rest[digits..];
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let millis = match &after[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let part = Duration::from_millis(number.checked_mul(millis).ok_or_else(bad)?);
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = &after[letters..];
    }
    Ok(total)
}

/// A kernel setting of a namespace (`--sysctl NAME=VALUE`). Settings of the whole machine are
/// refused.
pub fn parse_sysctl(text: &str) -> Result<(String, String), InvalidOption> {
    const FORM: &str =
        "NAME=VALUE with a name below net, kernel.msg, kernel.sem, kernel.shm or fs.mqueue";
    const IPC: &[&str] = &["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."];
    let bad = || InvalidOption::new("kernel setting", text, FORM);
    let (name, value) = text.split_once('=').ok_or_else(bad)?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let own = name.starts_with("net.") || IPC.iter().any(|prefix| name.starts_with(prefix));
    if !plain || name.contains("..") || !own {
        return Err(bad());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_hosts() {
        let entry: HostEntry = "db:10.0.0.9".parse().expect("entry");
        assert_eq!((entry.name.as_str(), entry.address), ("db", "10.0.0.9".parse().ok()));
        assert_eq!("h:host-gateway".parse::<HostEntry>().expect("gateway").address, None);
        let v6: HostEntry = "six:[fd00::1]".parse().expect("v6");
        assert_eq!(String::from(v6.clone()).parse::<HostEntry>(), Ok(v6));
        for bad in ["db", ":1.2.3.4", "a b:1.2.3.4", "db:x", "a\n:1.2.3.4"] {
            assert!(bad.parse::<HostEntry>().is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_in_every_form() {
        let parse = |text: &str| text.parse::<Device>();
        let all = parse("/dev/fuse").expect("path alone");
        assert_eq!(
            (all.container.as_path(), all.permissions.as_str()),
            (all.host.as_path(), "rwm")
        );
        assert_eq!(parse("/dev/fuse:r").expect("permissions").permissions, "r");
        let moved = parse("/dev/zero:/dev/nil:rw").expect("both");
        assert_eq!(moved.container, PathBuf::from("/dev/nil"));
        for bad in ["fuse", "/dev/a:x", "/dev/a:/b:", "/dev/a:/b:rw:c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_with_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["s", "1x", "-1", "1h30", "99999999999999999999"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_settings_of_namespaces() {
        assert!(parse_sysctl("net.core.somaxconn=99").is_ok());
        assert!(parse_sysctl("kernel.shmmax=1").is_ok());
        for bad in ["kernel.panic=1", "net.core", "net/../kernel/panic=1", "vm.swappiness=1"] {
            assert!(parse_sysctl(bad).is_err(), "{bad}");
        }
    }
}
