//! What a checkpoint may ask for.
//!
//! An archive is input from anybody. What it brings itself (processes, memory, files of its own root)
//! is restored within the limits that a container has by default; what reaches beyond is refused,
//! all of it at once, unless it is repeated as an option of the restore or the archive is trusted.
//! docs/security.md has the list with the reasons.

use std::fmt;
use std::path::PathBuf;

use arctern_engine::confinement::{ConfinedMount, Confinement};
use oci_spec::runtime::Spec;

use super::NETNS_KEY;
use crate::config::{ContainerConfig, NetworkMode, Volume};
use crate::error::{Error, Result};
use crate::spec::{caps, extras, mounts, seccomp, seccomp_program};

/// What the user allows an archive to have.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Everything that it asks for.
    pub trust: bool,
    /// Bind mounts; one for a path of the container stands for the archive's.
    pub volumes: Vec<Volume>,
    /// Capabilities; `ALL` for every one.
    pub cap_add: Vec<String>,
    /// Privileged mode.
    pub privileged: bool,
    /// The network of the host.
    pub host_network: bool,
}

/// Something that an archive asks for and nobody allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What.
    pub what: String,
    /// The option that allows it.
    pub option: String,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.option)
    }
}

/// Compares what the configuration of an archive asks for with what is allowed, and puts the allowed
/// mounts in place of the archive's.
///
/// # Errors
/// [`Error::Untrusted`] with everything that is not allowed; an option allows what nobody asks for.
pub fn settle(config: &mut ContainerConfig, allowed: &Allowed) -> Result<()> {
    let mut asks = Vec::new();
    let mut ask = |what: String, option: String| asks.push(Ask { what, option });
    let added = caps::beyond_default(&config.cap_add)?;
    let mut granted = Vec::new();
    for name in &allowed.cap_add {
        granted.push(caps::normalize(name)?);
    }
    if config.privileged && !allowed.privileged {
        let what = "privileged mode: all capabilities, no system call filter, nothing hidden";
        ask(what.to_owned(), "--privileged".to_owned());
    }
    for name in added {
        let covered = config.privileged && allowed.privileged
            || granted.iter().any(|have| *have == name || have == "ALL");
        if !covered {
            let short = name.trim_start_matches("CAP_").to_owned();
            ask(format!("the capability {name}"), format!("--cap-add {short}"));
        }
    }
    if config.network == NetworkMode::Host && !allowed.host_network {
        ask("the network of the host".to_owned(), "--network host".to_owned());
    }
    for volume in &mut config.volumes {
        match allowed.volumes.iter().find(|v| v.destination == volume.destination) {
            Some(given) => *volume = given.clone(),
            None => ask(bind(volume), format!("-v {}", written(volume))),
        }
    }
    for device in &config.devices {
        let (path, permissions) = (device.host.display(), &device.permissions);
        ask(format!("the host's device {path} ({permissions})"), "--trust".to_owned());
    }
    for (name, value) in &config.sysctls {
        ask(format!("the kernel setting {name}={value}"), "--trust".to_owned());
    }
    if !allowed.trust {
        // Files of the host: the one is written, the other one is bound.
        config.pid_file = None;
        if config.init_path.is_some() {
            config.init_path = Some(extras::find_init(None)?);
        }
    }
    if !asks.is_empty() && !allowed.trust {
        return Err(Error::Untrusted(asks));
    }
    // What programs have open is a mount that they had: one more is of no use to them.
    let known = |path: &PathBuf| config.volumes.iter().any(|v| v.destination == *path);
    if let Some(new) = allowed.volumes.iter().find(|v| !known(&v.destination)) {
        return Err(Error::Invalid(format!(
            "the container has no mount at {}: a restore cannot add one",
            new.destination.display()
        )));
    }
    if let Some(missing) = config.volumes.iter().find(|v| !v.source.exists()) {
        return Err(Error::Invalid(format!(
            "volume source {} does not exist: make it, or give another one with -v {}",
            missing.source.display(),
            written(missing)
        )));
    }
    Ok(())
}

fn bind(volume: &Volume) -> String {
    format!("the host's {} at {}", volume.source.display(), volume.destination.display())
}

fn written(volume: &Volume) -> String {
    let mut text = format!("{}:{}", volume.source.display(), volume.destination.display());
    if !volume.options.is_empty() {
        text.push(':');
        text.push_str(&volume.options.join(","));
    }
    text
}

/// What the engine lets the images of a container have. `spec` is the one that the container is
/// restored with.
pub fn confinement(config: &ContainerConfig, spec: &Spec) -> Result<Confinement> {
    if config.privileged {
        return Ok(Confinement::trusting());
    }
    let names = caps::bounding(&config.cap_add, &config.cap_drop, false)?;
    let paths =
        |list: &[&str]| -> Vec<String> { list.iter().map(|&path| path.to_owned()).collect() };
    let filter = seccomp_program::compile(&seccomp::profile(&names)?)?;
    Ok(Confinement {
        capabilities: caps::bits(&names),
        filter: Some(filter),
        network: (config.network != NetworkMode::Host).then(|| NETNS_KEY.to_owned()),
        // What is hidden of /sys differs from engine to engine, and all of it is read-only.
        hidden: paths(mounts::MASKED)
            .into_iter()
            .filter(|path| path.starts_with("/proc/"))
            .collect(),
        read_only: paths(mounts::READONLY),
        mounts: confined_mounts(spec),
        limits: limits(config)?,
        trusted: false,
    })
}

fn confined_mounts(spec: &Spec) -> Vec<ConfinedMount> {
    let flags = |options: &[String]| {
        options.iter().fold(0, |flags, option| {
            flags
                | match option.as_str() {
                    "ro" => libc::MS_RDONLY,
                    "nosuid" => libc::MS_NOSUID,
                    "nodev" => libc::MS_NODEV,
                    "noexec" => libc::MS_NOEXEC,
                    _ => 0,
                }
        })
    };
    let all = spec.mounts().iter().flatten();
    all.filter(|mount| mount.typ().as_deref() == Some("bind"))
        .map(|mount| ConfinedMount {
            path: mount.destination().display().to_string(),
            flags: flags(mount.options().as_deref().unwrap_or_default()),
        })
        .collect()
}

/// Our own hard limits, and those that the configuration asks for.
fn limits(config: &ContainerConfig) -> Result<Vec<u64>> {
    let me = arctern_sys::Pid(i32::try_from(std::process::id()).unwrap_or(0));
    let own = arctern_sys::proc::limits::read(me).map_err(Error::system("read our limits"))?;
    let mut limits: Vec<u64> = own.iter().map(|limit| limit.hard).collect();
    for asked in &config.ulimits {
        if let Some(place) = limit_number(&asked.name).and_then(|number| limits.get_mut(number)) {
            *place = (*place).max(asked.hard);
        }
    }
    Ok(limits)
}

/// The number of a limit (`RLIMIT_…`).
fn limit_number(name: &str) -> Option<usize> {
    const NAMES: [&str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];
    NAMES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: serde_json::Value) -> ContainerConfig {
        let mut all = serde_json::json!({ "id": "a".repeat(64), "name": "web" });
        let map = all.as_object_mut().expect("object");
        map.extend(extra.as_object().expect("object").clone());
        serde_json::from_value(all).expect("config")
    }

    fn bound(destination: &str) -> Volume {
        Volume { source: "/tmp".into(), destination: destination.into(), options: Vec::new() }
    }

    fn greedy() -> ContainerConfig {
        config(serde_json::json!({
            "privileged": true, "capAdd": ["sys_admin", "CHOWN"], "networkMode": "host",
            "volumes": [{ "source": "/", "destination": "/host", "options": ["ro"] }],
        }))
    }

    #[test]
    fn everything_beyond_the_default_is_listed_at_once() {
        let Err(Error::Untrusted(asks)) = settle(&mut greedy(), &Allowed::default()) else {
            panic!("allowed");
        };
        let options: Vec<_> = asks.iter().map(|ask| ask.option.as_str()).collect();
        assert_eq!(
            options,
            ["--privileged", "--cap-add SYS_ADMIN", "--network host", "-v /:/host:ro"]
        );
        settle(&mut config(serde_json::json!({})), &Allowed::default()).expect("nothing asked");
    }

    #[test]
    fn repeated_options_and_trust_allow_it() {
        let volume: Volume = bound("/host");
        let mut allowed = Allowed {
            volumes: vec![volume.clone()],
            cap_add: vec!["sys_admin".to_owned()],
            privileged: true,
            host_network: true,
            trust: false,
        };
        let mut config = greedy();
        settle(&mut config, &allowed).expect("all repeated");
        assert_eq!(config.volumes, [volume], "the command line's takes its place");
        settle(&mut greedy(), &Allowed { trust: true, ..Allowed::default() }).expect("trusted");
        allowed.volumes.push(bound("/new"));
        let error = settle(&mut greedy(), &allowed).expect_err("a new mount");
        assert!(error.to_string().contains("/new"), "{error}");
    }

    #[test]
    fn a_file_of_the_host_is_not_written_because_an_archive_says_so() {
        let mut refused = config(serde_json::json!({}));
        refused.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        assert!(matches!(settle(&mut refused, &Allowed::default()), Err(Error::Untrusted(_))));
        let mut plain = config(serde_json::json!({}));
        plain.pid_file = Some("/etc/passwd".into());
        settle(&mut plain, &Allowed::default()).expect("nothing asked");
        assert_eq!(plain.pid_file, None);
    }

    #[test]
    fn a_mount_of_a_missing_directory_says_what_to_do() {
        let mut config = config(serde_json::json!({
            "volumes": [{ "source": "/nowhere", "destination": "/data" }],
        }));
        let allowed = Allowed { trust: true, ..Allowed::default() };
        let error = settle(&mut config, &allowed).expect_err("not there").to_string();
        assert!(error.contains("/nowhere") && error.contains("-v"), "{error}");
    }

    #[test]
    fn limits_are_ours_or_asked_for() {
        let asked = config(serde_json::json!({
            "ulimits": [{ "name": "nofile", "soft": 1, "hard": u64::MAX }],
        }));
        let ours = limits(&config(serde_json::json!({}))).expect("limits");
        assert_eq!(limits(&asked).expect("limits")[7], u64::MAX);
        assert_eq!(ours.len(), 16);
    }
}
