//! The OCI runtime spec of a container, as Podman would write it.
//!
//! [`build`] is a pure function of what was asked and of the paths that were prepared: no default
//! hides elsewhere. The result is written as `config.json` into the bundle, is what `exec` starts
//! from, and goes as `spec.dump` into checkpoint archives.

pub mod caps;
pub mod extras;
pub mod mounts;
pub mod seccomp;
pub mod seccomp_program;
pub mod user;
pub mod workdir;

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{
    Capabilities, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder, Process, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

use crate::config::{ContainerConfig, NetworkMode, Volume};
use crate::error::{Error, Result};
use user::User;

/// PATH of a container whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Period of the CPU quota in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// What was prepared for a container before its spec is built.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    /// Root file system, mounted.
    pub rootfs: &'a Path,
    /// Directory with `hosts`, `hostname`, `resolv.conf`.
    pub etc: &'a Path,
    /// Network namespace to join; None for the host's.
    pub netns: Option<&'a Path>,
    /// Control group, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The volumes of the store, as bind mounts.
    pub volumes: &'a [Volume],
    /// Who `-u` is.
    pub user: &'a User,
}

/// Builds the runtime spec.
pub fn build(config: &ContainerConfig, prepared: Prepared<'_>) -> Result<Spec> {
    let caps = caps::bounding(&config.cap_add, &config.cap_drop, config.privileged)?;
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(prepared.rootfs).readonly(config.read_only).build()?)
        .hostname(config.hostname.clone())
        .mounts(mounts::mounts(config, prepared.etc, prepared.volumes)?)
        .annotations(annotations(config))
        .build()?;
    let effective = caps::to_spec(caps.iter().copied())?;
    spec.set_process(Some(process(config, prepared.user, effective)?));
    spec.set_linux(Some(linux(config, prepared.netns, prepared.cgroup, &caps)?));
    Ok(spec)
}

fn annotations(config: &ContainerConfig) -> HashMap<String, String> {
    let mut own = HashMap::from([
        // Names the layout of our archives to tools that read them.
        ("io.container.manager".to_owned(), "libpod".to_owned()),
        ("org.opencontainers.image.stopSignal".to_owned(), config.stop_signal.to_string()),
    ]);
    own.extend(config.annotations.iter().map(|(name, value)| (name.clone(), value.clone())));
    own
}

fn process(config: &ContainerConfig, user: &User, caps: Capabilities) -> Result<Process> {
    let cwd = if config.workdir.is_empty() { "/" } else { &config.workdir };
    let mut process = ProcessBuilder::default()
        .terminal(config.terminal)
        .args(extras::args(config))
        .env(environment(config, user))
        .cwd(cwd)
        .user(
            UserBuilder::default()
                .uid(user.uid)
                .gid(user.gid)
                .additional_gids(user.groups.clone())
                .build()?,
        )
        .capabilities(capabilities(user, &caps)?)
        .build()?;
    process.set_rlimits(rlimits(config)?);
    // None, not false: only then does the OCI library load the filter before capabilities go.
    process.set_no_new_privileges(None);
    Ok(process)
}

/// What processes of root get; another user gets nothing that a file does not give it.
fn capabilities(user: &User, caps: &Capabilities) -> Result<LinuxCapabilities> {
    let effective = if user.uid == 0 { caps.clone() } else { Capabilities::new() };
    let mut set = LinuxCapabilitiesBuilder::default()
        .bounding(caps.clone())
        .permitted(effective.clone())
        .effective(effective)
        .build()?;
    // The builder has defaults of its own for these; nothing is inheritable (CVE-2022-24769).
    set.set_inheritable(Some(Capabilities::new()));
    set.set_ambient(Some(Capabilities::new()));
    Ok(set)
}

/// The environment: what is set stays, what programs expect is added.
pub fn environment(config: &ContainerConfig, user: &User) -> Vec<String> {
    let mut env = config.env.clone();
    let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
    let mut defaults = vec![
        ("PATH", DEFAULT_PATH.to_owned()),
        ("container", "arctern".to_owned()),
        ("HOSTNAME", config.hostname.clone()),
        ("HOME", home),
    ];
    if config.terminal {
        defaults.push(("TERM", "xterm".to_owned()));
    }
    for (name, value) in defaults {
        let prefix = format!("{name}=");
        if !env.iter().any(|e| e.starts_with(&prefix)) {
            env.push(format!("{prefix}{value}"));
        }
    }
    env
}

/// Only what was asked for: raising a limit may be forbidden to us.
fn rlimits(config: &ContainerConfig) -> Result<Option<Vec<PosixRlimit>>> {
    let list = config
        .ulimits
        .iter()
        .map(|limit| {
            let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
            let typ = serde_json::from_value(serde_json::Value::String(name))
                .map_err(Error::json("the name of a limit"))?;
            Ok(PosixRlimitBuilder::default()
                .typ::<oci_spec::runtime::PosixRlimitType>(typ)
                .soft(limit.soft)
                .hard(limit.hard)
                .build()?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((!list.is_empty()).then_some(list))
}

fn linux(
    config: &ContainerConfig,
    netns: Option<&Path>,
    cgroup: String,
    caps: &std::collections::BTreeSet<&str>,
) -> Result<Linux> {
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(config, netns)?)
        .resources(resources(config)?)
        .cgroups_path(cgroup)
        .rootfs_propagation("private")
        .build()?;
    if !config.devices.is_empty() {
        linux.set_devices(Some(extras::devices(config)?.0));
    }
    if !config.sysctls.is_empty() {
        let settings = config.sysctls.iter().map(|(name, value)| (name.clone(), value.clone()));
        linux.set_sysctl(Some(settings.collect()));
    }
    if config.privileged {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
    } else {
        let own = |list: &[&str]| Some(list.iter().map(|&p| p.to_owned()).collect());
        linux.set_masked_paths(own(mounts::MASKED));
        linux.set_readonly_paths(own(mounts::READONLY));
        linux.set_seccomp(Some(seccomp::profile(caps)?));
    }
    Ok(linux)
}

/// New namespaces of every kind but the user's; the network's is made before, by the network crate.
/// The time namespace keeps monotonic clocks going on when a checkpoint moves to another machine.
fn namespaces(config: &ContainerConfig, netns: Option<&Path>) -> Result<Vec<LinuxNamespace>> {
    let mut list = Vec::new();
    for kind in [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Time,
    ] {
        list.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    if config.network != NetworkMode::Host {
        let mut builder = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        if let Some(path) = netns {
            builder = builder.path(path);
        }
        list.push(builder.build()?);
    }
    Ok(list)
}

/// The limits that were asked for, and devices: none but those every container has.
pub fn resources(config: &ContainerConfig) -> Result<LinuxResources> {
    let mut rules = vec![devices(config.privileged)?];
    rules.extend(extras::devices(config)?.1);
    let mut builder = LinuxResourcesBuilder::default().devices(rules);
    if let Some(bytes) = config.memory {
        let limit = i64::try_from(bytes)
            .map_err(|_| Error::Invalid(format!("memory limit {bytes} is out of range")))?;
        builder = builder.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    if let Some(milli) = config.milli_cpus {
        let quota = i64::try_from(milli.saturating_mul(CPU_PERIOD / 1000)).map_err(|_| {
            Error::Invalid(format!("{milli} thousandths of a CPU are out of range"))
        })?;
        builder = builder.cpu(LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD).build()?);
    }
    if let Some(limit) = config.pids_limit {
        builder = builder.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    Ok(builder.build()?)
}

fn devices(allow: bool) -> Result<LinuxDeviceCgroup> {
    Ok(LinuxDeviceCgroupBuilder::default().allow(allow).access("rwm").build()?)
}

/// Reads a spec that was written before.
pub fn load(path: &Path) -> Result<Spec> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(Error::json(path.display().to_string()))
}

/// Writes a spec.
pub fn save(spec: &Spec, path: &Path) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(spec).map_err(Error::json("the runtime spec"))?;
    std::fs::write(path, bytes).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: serde_json::Value) -> ContainerConfig {
        let mut all = serde_json::json!({
            "id": "a".repeat(64), "name": "web", "hostname": "web", "command": ["sleep", "1"],
        });
        let map = all.as_object_mut().expect("object");
        map.extend(extra.as_object().expect("object").clone());
        serde_json::from_value(all).expect("config")
    }

    fn spec(extra: serde_json::Value) -> Spec {
        let prepared = Prepared {
            rootfs: Path::new("/r"),
            etc: Path::new("/e"),
            netns: Some(Path::new("/n")),
            cgroup: "/arctern/x".into(),
            volumes: &[],
            user: &User::default(),
        };
        build(&config(extra), prepared).expect("spec")
    }

    #[test]
    fn default_spec_is_confined() {
        let spec = spec(serde_json::json!({}));
        let linux = spec.linux().as_ref().expect("linux");
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.namespaces().as_ref().map(Vec::len), Some(7));
        assert_eq!(linux.masked_paths().as_ref().map(Vec::len), Some(mounts::MASKED.len()));
        let process = spec.process().as_ref().expect("process");
        assert_eq!(process.no_new_privileges(), None);
        assert!(process.rlimits().is_none());
        let caps = process.capabilities().as_ref().expect("caps");
        assert_eq!(caps.effective().as_ref().map(|c| c.len()), Some(11));
        assert_eq!(caps.inheritable().as_ref().map(|c| c.len()), Some(0));
    }

    #[test]
    fn privileged_spec_is_not() {
        let spec = spec(serde_json::json!({ "privileged": true }));
        let linux = spec.linux().as_ref().expect("linux");
        assert!(linux.seccomp().is_none() && linux.masked_paths().is_none());
    }

    #[test]
    fn limits_reach_the_spec() {
        let spec = spec(serde_json::json!({
            "memory": 64 << 20, "milliCPUs": 1500, "pidsLimit": 50,
            "ulimits": [{ "name": "nofile", "soft": 10, "hard": 20 }],
        }));
        let resources =
            spec.linux().as_ref().and_then(|l| l.resources().clone()).expect("resources");
        assert_eq!(resources.memory().as_ref().and_then(|m| m.limit()), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().and_then(|c| c.quota()), Some(150_000));
        assert!(resources.pids().is_some());
        let limits = spec.process().as_ref().and_then(|p| p.rlimits().clone()).expect("limits");
        assert_eq!((limits[0].soft(), limits[0].hard()), (10, 20));
    }

    #[test]
    fn environment_keeps_what_is_set() {
        let config = config(serde_json::json!({ "env": ["PATH=/x", "A=b"], "terminal": true }));
        let env = environment(&config, &User::default());
        assert_eq!(
            env,
            ["PATH=/x", "A=b", "container=arctern", "HOSTNAME=web", "HOME=/", "TERM=xterm"]
        );
    }
}
