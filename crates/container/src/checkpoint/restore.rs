//! The shim's part of a restore: the engine builds the tree as children of the shim.

use std::cell::RefCell;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use arctern_engine::confinement::Confinement;
use arctern_engine::options::{
    Event, Events, External, HookError, NetworkLock, RestoreOptions, TcpPolicy,
};

use arctern_engine::precopy::Preloaded;

use super::{MASK, NETNS_KEY, discard, policy, streams};
use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::netlock::NetLock;
use crate::runtime;
use crate::shim::await_commit;
use crate::shim::launch::{
    Images, Launched, Pipes, Prelaunch, RestoreRequest, Trust, let_go, running,
};
use crate::shim::pump::Streams;
use crate::spec;
use crate::transfer::Laps;

/// What a shim has before its container is launched.
pub(crate) struct Taken<'a> {
    /// Memory that came ahead.
    pub preloaded: Option<&'a Preloaded>,
    /// Where the time went so far.
    pub laps: Laps,
}

/// Collects warnings of the engine for the user, and its phases.
struct Heard<'a> {
    warnings: Vec<String>,
    laps: &'a RefCell<Laps>,
}

impl Events for Heard<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Warning(text) => self.warnings.push(text),
            Event::Phase(phase) => self.laps.borrow_mut().begin(phase),
            Event::Progress { .. } => {}
        }
    }
}

/// Restores a container from the images kept with it.
pub(crate) fn launch(
    host: &mut Host,
    prelaunch: Prelaunch,
    request: &RestoreRequest,
    taken: Taken<'_>,
    command: &UnixStream,
) -> Result<Launched> {
    let Prelaunch { config, rootfs, network, user, listener, had } = prelaunch;
    let Taken { preloaded, laps } = taken;
    let laps = RefCell::new(laps);
    laps.borrow_mut().begin("ready");
    let id = config.id.as_str();
    let paths = host.paths.container(id);
    let images = paths.checkpoint();
    let spec = spec::load(&paths.spec())?;

    let groups = Hierarchies::of(&host.paths)?;
    let cgroups = groups.create(id)?;
    if let Some(resources) = spec.linux().as_ref().and_then(|l| l.resources().as_ref()) {
        groups.apply(id, resources)?;
    }

    let mut inherit: Vec<(String, OwnedFd)> = Vec::new();
    let mut outside = None;
    if !config.terminal {
        let pipes = Pipes::new(config.stdin, &user)?;
        pipes.remember(&paths.run)?;
        outside = Some(pipes.outside);
        for (name, fd) in streams::load(&images)?.into_iter().zip(pipes.inside) {
            if let Some(name) = name
                && !inherit.iter().any(|(known, _)| *known == name)
            {
                inherit.push((name, fd));
            }
        }
    }
    let mut keep_master = |master| {
        outside.get_or_insert(Streams::Terminal(master));
    };
    let keep: Option<&mut dyn FnMut(OwnedFd)> =
        if config.terminal { Some(&mut keep_master) } else { None };
    if let Some(path) = &network.netns {
        let namespace = arctern_net::netns::open(path).map_err(Error::network)?;
        inherit.push((NETNS_KEY.to_owned(), namespace));
    }

    if let Some(path) = &network.netns {
        crate::network::apply_sysctls(path, &config)?;
    }
    let mut externals: Vec<External> = spec::mounts::binds(&spec)
        .into_iter()
        .map(|(destination, source)| External::Mount {
            key: destination.display().to_string(),
            value: source.display().to_string(),
        })
        .collect();
    // runc names every file that it has hidden so.
    let hidden = || MASK.to_owned();
    externals.push(External::Mount { key: hidden(), value: hidden() });

    let has = network.status.as_ref().map(|status| status.ip);
    // One that another command has kept for this address is opened here, whatever is restored.
    let mut lock = match request.tcp_established || is_locked(host, has)? {
        true => Some(NetLock::of_restored(&host.paths, &config, had, has)?),
        false => None,
    };
    let tcp = match (request.tcp_established, request.tcp_close) {
        (_, true) => TcpPolicy::Close,
        (true, _) => TcpPolicy::Established,
        _ => TcpPolicy::Refuse,
    };
    let oci = host.paths.oci();
    let mut told = false;
    let mut before_resume = |pid: i32| -> std::result::Result<(), HookError> {
        runtime::record_restored(&oci, id, &paths.bundle(), &spec, pid)?;
        if let Some(transfer) = &request.transfer {
            await_commit(host, transfer, command, laps.borrow_mut().take())?;
            laps.borrow_mut().begin("record");
        }
        let after = if request.keep { Images::Kept } else { Images::UsedUp };
        running(host, id, pid, Some(after))?;
        told = true;
        Ok(())
    };
    let confinement = match request.trust {
        Trust::Own => None,
        Trust::Foreign => Some(Confinement::trusting()),
        Trust::None => Some(policy::confinement(&config, &spec)?),
    };
    let mut heard = Heard { warnings: Vec::new(), laps: &laps };
    laps.borrow_mut().begin("read");
    let report = arctern_engine::restore(
        &images,
        RestoreOptions {
            root: Some(rootfs),
            externals,
            inherit_fds: inherit,
            cgroups,
            shell_job: false,
            orphan_terminal: keep,
            leave_stopped: false,
            file_locks: request.file_locks,
            tcp,
            confinement,
            network: lock.as_mut().map(|lock| lock as &mut dyn NetworkLock),
            preloaded,
            sibling: false,
            setup_namespaces: None,
            before_resume: Some(&mut before_resume),
        },
        &mut heard,
    )
    .map_err(|error| match told && error.is_death() {
        // From then on `kill` reaches it.
        true => Error::EndedMeanwhile(config.name.clone()),
        false => Error::Restore(Box::new(error)),
    })?;
    let warnings = heard.warnings;
    if let Err(error) = let_go(host, id) {
        // It runs: the next command sees that.
        tracing::error!("{}", error.chain());
    }
    if let Some(lock) = &mut lock
        && let Err(error) = lock.open()
    {
        // It runs; what is left of the lock is no reason to take it down.
        tracing::warn!("{}", error.chain());
    }
    Ok(Launched {
        pid: report.pid,
        healthcheck: config.healthcheck,
        // A terminal that every program has closed is gone.
        streams: outside.unwrap_or(Streams::Closed),
        listener,
        report: Some(report),
        preloaded: None,
        keep: request.keep,
        warnings,
        lock,
        laps: laps.into_inner(),
    })
}

/// What is done for the network of a container that runs already.
pub(crate) fn settle_network(host: &Host, id: &str, lock: Option<NetLock>) {
    let settle = || {
        if let Some(lock) = lock {
            lock.finish()?;
        }
        match host.store.get(id)? {
            Some(record) => crate::network::returned(&host.paths, &record.config),
            None => Ok(()),
        }
    };
    if let Err(error) = settle() {
        tracing::warn!("{}", error.chain());
    }
}

/// Whether a lock stands for the address of a container on the bridge.
fn is_locked(host: &Host, address: Option<Ipv4Addr>) -> Result<bool> {
    match address {
        Some(ip) => Ok(crate::network::locks(&host.paths)?.get(&ip).is_some_and(|l| !l.elsewhere)),
        None => Ok(false),
    }
}

/// Removes the images of a checkpoint that has been restored.
pub(crate) fn used(host: &Host, id: &str) {
    if let Err(error) = discard(&host.paths.container(id).checkpoint()) {
        tracing::warn!("{}", error.chain());
    }
}

pub(crate) fn read_request(run: &std::path::Path) -> Result<RestoreRequest> {
    let path = run.join("restore");
    let json = fs::read(&path).map_err(Error::io("read", &path))?;
    let request = serde_json::from_slice(&json).map_err(Error::json("a restore request"))?;
    let _ = fs::remove_file(&path);
    Ok(request)
}
