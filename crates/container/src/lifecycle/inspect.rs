//! `inspect`: everything about a container, in the shape of Podman's.

use serde_json::{Value, json};

use crate::error::Result;
use crate::host::Host;
use crate::state::{Record, Status};
use crate::time::Timestamp;

impl Host {
    /// A container as JSON, with the main fields of `podman inspect`.
    pub fn inspect(&mut self, name_or_id: &str) -> Result<Value> {
        let record = self.find(name_or_id)?;
        Ok(self.describe(&record))
    }

    fn describe(&self, record: &Record) -> Value {
        let config = &record.config;
        let paths = self.paths.container(record.id());
        let args = config.args();
        let init = record.init.filter(|_| record.status == Status::Running);
        json!({
            "Id": config.id,
            "Name": config.name,
            "Created": record.created_at.rfc3339(),
            "Path": args.first(),
            "Args": args.get(1..).unwrap_or_default(),
            "Image": config.image_id,
            "ImageName": config.image_name,
            "OCIRuntime": "libcontainer",
            "OCIConfigPath": paths.spec(),
            "Driver": "overlay",
            "LogPath": paths.log(),
            "ResolvConfPath": paths.etc().join("resolv.conf"),
            "HostnamePath": paths.etc().join("hostname"),
            "HostsPath": paths.etc().join("hosts"),
            "State": {
                "Status": self.status(record),
                "Running": record.status == Status::Running,
                "Paused": self.is_paused(record),
                "Pid": init.map_or(0, |p| p.pid),
                "ExitCode": record.exit_code.unwrap_or(0),
                "Error": record.error.as_deref().unwrap_or(""),
                "StartedAt": time(record.started_at),
                "FinishedAt": time(record.finished_at),
                "Checkpointed": record.status == Status::Checkpointed,
                "CheckpointedAt": time(record.checkpointed_at),
                "Restored": record.restored_at.is_some(),
                "RestoredAt": time(record.restored_at),
                "Health": self.health_log(record),
                "CgroupPath": crate::cgroup::cgroup_path(&self.paths, record.id()),
            },
            "RestartCount": self.restarts(record),
            "Config": {
                "Hostname": config.hostname,
                "User": config.user,
                "Tty": config.terminal,
                "OpenStdin": config.stdin,
                "Env": config.env,
                "Cmd": config.command,
                "Entrypoint": config.entrypoint,
                "Image": config.raw_image_name,
                "WorkingDir": config.workdir,
                "Labels": config.labels,
                "StopSignal": crate::signal::name(config.stop_signal),
                "StopTimeout": config.stop_timeout,
                "CreateCommand": config.create_command,
                "Annotations": config.annotations,
                "Healthcheck": config.healthcheck,
            },
            "HostConfig": {
                "AutoRemove": config.auto_remove,
                "NetworkMode": config.network,
                "Privileged": config.privileged,
                "ReadonlyRootfs": config.read_only,
                "CapAdd": config.cap_add,
                "CapDrop": config.cap_drop,
                "Memory": config.memory.unwrap_or(0),
                "NanoCpus": config.milli_cpus.unwrap_or(0).saturating_mul(1_000_000),
                "PidsLimit": config.pids_limit.unwrap_or(0),
                "Ulimits": config.ulimits,
                "RestartPolicy": {
                    "Name": config.restart_policy,
                    "MaximumRetryCount": config.restart_retries.unwrap_or(0),
                },
                "Init": config.init_path.is_some(),
                "InitPath": config.init_path,
                "ExtraHosts": config.hosts,
                "Dns": config.dns_servers,
                "DnsSearch": config.dns_search,
                "DnsOptions": config.dns_options,
                "Devices": config.devices,
                "Sysctls": config.sysctls,
                "PidFile": config.pid_file,
                "Binds": config.volumes.iter().map(bind).collect::<Vec<_>>(),
                "Tmpfs": config.tmpfs,
                "PortBindings": config.ports,
            },
            "Mounts": config.volumes.iter().map(|v| json!({
                "Type": "bind",
                "Source": v.source,
                "Destination": v.destination,
                "Options": v.options,
                "RW": !v.options.iter().any(|o| o == "ro"),
            })).collect::<Vec<_>>(),
            "NetworkSettings": self.describe_network(record),
        })
    }

    fn describe_network(&self, record: &Record) -> Value {
        let status: Value = record
            .network
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null);
        json!({
            "SandboxKey": self.paths.container(record.id()).netns,
            "IPAddress": self.address(record).map(|a| a.to_string()).unwrap_or_default(),
            "Ports": record.config.ports,
            "Networks": status,
        })
    }

    /// The address of a container on its network.
    #[must_use]
    pub fn address(&self, record: &Record) -> Option<std::net::Ipv4Addr> {
        crate::network::parse_status(record.network.as_deref()).map(|s| s.ip)
    }
}

fn bind(volume: &crate::config::Volume) -> String {
    format!(
        "{}:{}:{}",
        volume.source.display(),
        volume.destination.display(),
        volume.options.join(",")
    )
}

fn time(time: Option<Timestamp>) -> String {
    time.unwrap_or_default().rfc3339()
}
