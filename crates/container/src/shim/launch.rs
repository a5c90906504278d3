//! Bringing a container to life: file system, network, spec, streams, then its first process.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use arctern_engine::options::{RestoreReport, TcpPolicy};
use arctern_engine::precopy::Preloaded;
use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

use super::pump::Streams;
use super::{Action, control, null};
use crate::cgroup::{Hierarchies, cgroup_path};
use crate::checkpoint::RestoreOptions;
use crate::checkpoint::restore::Taken;
use crate::config::ContainerConfig;
use crate::console::ConsoleSocket;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::netlock::NetLock;
use crate::network::{Arrival, Attachment};
use crate::policy::HealthCheck;
use crate::process::ProcessId;
use crate::runtime::{self, Stdio};
use crate::spec::user::User;
use crate::spec::{self, Prepared};
use crate::state::Status;
use crate::time::Timestamp;
use crate::transfer::{Laps, Urgent};

/// What the command that restores wants of its shim, in the container's run directory.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RestoreRequest {
    /// Restore file locks.
    pub file_locks: bool,
    /// Restore live connections.
    #[serde(default)]
    pub tcp_established: bool,
    /// Drop live connections.
    #[serde(default)]
    pub tcp_close: bool,
    /// Keep the images of the checkpoint.
    #[serde(default)]
    pub keep: bool,
    /// How far the images are trusted.
    #[serde(default)]
    pub trust: Trust,
    /// The move that it belongs to: what is built waits for the commit.
    #[serde(default)]
    pub transfer: Option<String>,
}

impl RestoreRequest {
    /// What these options ask of a shim.
    pub(crate) fn of(options: &RestoreOptions) -> RestoreRequest {
        RestoreRequest {
            file_locks: options.file_locks,
            tcp_established: options.tcp == TcpPolicy::Established,
            tcp_close: options.tcp == TcpPolicy::Close,
            keep: options.keep,
            trust: Trust::Own,
            transfer: None,
        }
    }
}

/// How far the images of a checkpoint are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Trust {
    /// They were written here: everything that they say.
    #[default]
    Own,
    /// They came from outside, and are trusted by the user, or as the other host of a move is:
    /// everything but block devices.
    Foreign,
    /// They came from outside: what the container's configuration says.
    None,
}

/// A container that runs.
pub(crate) struct Launched {
    pub pid: i32,
    pub healthcheck: Option<HealthCheck>,
    pub streams: Streams,
    pub listener: UnixListener,
    pub report: Option<RestoreReport>,
    /// Memory that it was born with, and that this process has too, as long as nobody has the time to
    /// let go of it.
    pub preloaded: Option<Preloaded>,
    /// The images that it was restored from stay.
    pub keep: bool,
    pub warnings: Vec<String>,
    /// What is left of the lock of its network, to be removed when who asked has been told.
    pub lock: Option<NetLock>,
    /// Where the time of a restore went.
    pub laps: Laps,
}

/// What both ways of launching need.
pub(crate) struct Prelaunch {
    pub config: ContainerConfig,
    pub rootfs: PathBuf,
    pub network: Attachment,
    pub user: User,
    pub listener: UnixListener,
    /// The address that it had before.
    pub had: Option<Ipv4Addr>,
}

/// Launches a container, for a command or by its policy. After a failure nothing of the attempt is
/// left.
pub(crate) fn launch(
    host: &mut Host,
    id: &str,
    action: Action,
    command: Option<&UnixStream>,
) -> Result<Launched> {
    let before = host.store.get(id)?;
    let launched = match (action, command) {
        (Action::Restore, Some(command)) => restore(host, id, command),
        _ => lay(host, id, Arrival::default())
            .and_then(|ground| prepare(host, ground, &mut Laps::default()))
            .and_then(|prelaunch| start(host, prelaunch)),
    };
    match launched {
        Ok(launched) => Ok(launched),
        Err(error) => {
            if let Err(cleanup) = host.teardown(id) {
                tracing::error!("while cleaning up {id}: {}", cleanup.chain());
            }
            host.store.update(id, |r| {
                r.shim = None;
                r.init = None;
                r.error = Some(error.chain());
                if let Some(before) = before {
                    r.status = before.status;
                    r.checkpointed_at = before.checkpointed_at;
                    r.started_at = before.started_at;
                    r.finished_at = before.finished_at;
                    r.exit_code = before.exit_code;
                }
            })?;
            Err(error)
        }
    }
}

fn restore(host: &mut Host, id: &str, command: &UnixStream) -> Result<Launched> {
    let request = crate::checkpoint::restore::read_request(&host.paths.container(id).run)?;
    let arrival = Arrival { resumes: true, locked: request.tcp_established };
    let mut ground = lay(host, id, arrival)?;
    let mut laps = Laps::default();
    let (preloaded, urgent) = match request.transfer {
        Some(_) => {
            let mut appear = || {
                laps.begin("network");
                let appeared = ground.appear(host);
                laps.end();
                appeared
            };
            let taken = crate::transfer::take_in(host, id, command, &mut appear)?;
            (Some(taken), Some(Urgent::begin()))
        }
        None => (None, None),
    };
    let prelaunch = prepare(host, ground, &mut laps)?;
    let taken = Taken { preloaded: preloaded.as_ref(), laps };
    let launched = crate::checkpoint::restore::launch(host, prelaunch, &request, taken, command)?;
    drop(urgent);
    Ok(Launched { preloaded, ..launched })
}

/// What is there before anybody can notice the container, and before all of its files are.
struct Ground {
    config: ContainerConfig,
    rootfs: PathBuf,
    network: Attachment,
    arrival: Arrival,
    listener: UnixListener,
    had: Option<Ipv4Addr>,
    /// Others notice its network.
    has_appeared: bool,
}

impl Ground {
    /// Packets for the container are its own, or its lock's, from here on.
    fn appear(&mut self, host: &Host) -> Result<()> {
        if !std::mem::replace(&mut self.has_appeared, true) {
            crate::network::appear(&host.paths, &self.config, self.arrival, &mut self.network)?;
        }
        Ok(())
    }
}

/// Makes everything for a container that does not depend on what is in its files.
fn lay(host: &mut Host, id: &str, arrival: Arrival) -> Result<Ground> {
    let me = Host::this_process()?;
    let boot = host.boot().to_owned();
    let record = host
        .store
        .update(id, |r| {
            r.boot = boot;
            r.shim = Some(me);
            r.init = None;
            r.error = None;
        })?
        .ok_or_else(|| Error::NoSuchContainer(id.to_owned()))?;
    let config = record.config;
    let paths = host.make_dirs(id)?;
    host.forget_health(id);
    Hierarchies::of(&host.paths)?.check(&config)?;
    let rootfs = host.images.mount_root(id, false).map_err(Error::storage)?;
    let had = crate::network::parse_status(record.network.as_deref());
    let network = crate::network::lay(&host.paths, &config, had.as_ref(), arrival)?;
    crate::etc::write(&paths.etc(), &config, &network)?;
    let ctl = paths.run.join("ctl");
    let _ = fs::remove_file(&ctl);
    let listener = control::bind(&ctl).map_err(Error::io("listen at", &ctl))?;
    let had = had.map(|had| had.ip);
    Ok(Ground { config, rootfs, network, arrival, listener, had, has_appeared: false })
}

/// The rest: its files are there.
fn prepare(host: &mut Host, mut ground: Ground, laps: &mut Laps) -> Result<Prelaunch> {
    laps.begin("network");
    ground.appear(host)?;
    laps.begin("record");
    let Ground { config, rootfs, network, listener, had, .. } = ground;
    let id = config.id.as_str();
    let paths = host.paths.container(id);
    let status = network.status.as_ref().and_then(|s| serde_json::to_string(s).ok());
    let ports = network.ports.clone();
    host.store.update(id, |r| {
        r.network = status;
        // A port that the system chose stays the same from then on.
        r.config.ports = ports;
    })?;
    laps.begin("spec");
    let user = spec::user::resolve(&rootfs, &config.user)?;
    let volumes = host.mount_volumes(&config, &rootfs)?;
    let spec = spec::build(
        &config,
        Prepared {
            volumes: &volumes,
            rootfs: &rootfs,
            etc: &paths.etc(),
            netns: network.netns.as_deref(),
            cgroup: cgroup_path(&host.paths, id),
            user: &user,
        },
    )?;
    spec::save(&spec, &paths.spec())?;
    Ok(Prelaunch { config, rootfs, network, user, listener, had })
}

fn start(host: &mut Host, prelaunch: Prelaunch) -> Result<Launched> {
    let Prelaunch { config, user, listener, rootfs, .. } = prelaunch;
    if !config.workdir.is_empty() {
        spec::workdir::ensure(&rootfs, Path::new(&config.workdir))?;
    }
    let id = config.id.as_str();
    let paths = host.paths.container(id);
    let oci = host.paths.oci();
    let (pid, streams) = if config.terminal {
        let socket =
            ConsoleSocket::bind(&paths.run, "tty").map_err(Error::io("listen at", &paths.run))?;
        let stdio = Stdio::Console(socket.path().to_owned());
        let pid = runtime::create(&oci, id, &paths.bundle(), stdio)?;
        let master = socket.receive().map_err(Error::system("receive the terminal"))?;
        (pid, Streams::Terminal(master))
    } else {
        let pipes = Pipes::new(config.stdin, &user)?;
        pipes.remember(&paths.run)?;
        let [stdin, stdout, stderr] = pipes.inside;
        let inside = Stdio::Files { stdin, stdout, stderr };
        let pid = runtime::create(&oci, id, &paths.bundle(), inside)?;
        (pid, pipes.outside)
    };
    running(host, id, pid, None)?;
    runtime::start(&oci, id)?;
    let healthcheck = config.healthcheck;
    Ok(Launched {
        pid,
        healthcheck,
        streams,
        listener,
        report: None,
        preloaded: None,
        keep: false,
        warnings: Vec::new(),
        lock: None,
        laps: Laps::default(),
    })
}

/// What becomes of the images that a container was restored from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Images {
    /// They stay with it.
    Kept,
    /// They are removed.
    UsedUp,
}

/// Writes down that a container runs: started, or restored from images that stay if they are to be
/// kept. One that is restored where it was checkpointed stays checkpointed until it has been let go
/// ([`let_go`]): whoever is killed before that leaves its images.
pub(crate) fn running(host: &mut Host, id: &str, pid: i32, restored: Option<Images>) -> Result<()> {
    let init = ProcessId::of(pid);
    if restored.is_some() {
        host.images.volumes_restored(id).map_err(Error::storage)?;
    }
    let now = Timestamp::now();
    let _ = fs::remove_file(host.paths.container(id).exit());
    let config = host.store.get(id)?.map(|record| record.config);
    if let Some(path) = config.and_then(|config| config.pid_file) {
        fs::write(&path, pid.to_string()).map_err(Error::io("write", &path))?;
    }
    host.store
        .update(id, |r| {
            r.init = init;
            r.started_at = Some(now);
            r.finished_at = None;
            r.exit_code = None;
            let needed = r.status == Status::Checkpointed;
            match restored {
                Some(Images::UsedUp) if needed => {}
                Some(Images::Kept) => {
                    r.status = Status::Running;
                    r.checkpointed_at = r.checkpointed_at.or(Some(now));
                }
                Some(Images::UsedUp) | None => {
                    r.status = Status::Running;
                    r.checkpointed_at = None;
                }
            }
            if restored.is_some() {
                r.restored_at = Some(now);
            }
        })
        .map(|_| ())
}

/// Writes down that a restored container has been let go: it does not go back to its images. Whoever is
/// killed before this leaves one that is checkpointed and runs, which the next command sees.
pub(crate) fn let_go(host: &mut Host, id: &str) -> Result<()> {
    host.store
        .update(id, |r| {
            if r.status == Status::Checkpointed {
                r.status = Status::Running;
                r.checkpointed_at = None;
            }
        })
        .map(drop)
}

/// Both ends of the container's standard streams.
pub(crate) struct Pipes {
    /// Standard input is a pipe too.
    stdin: bool,
    /// The container's ends: input, output, error.
    pub inside: [OwnedFd; 3],
    /// The shim's ends.
    pub outside: Streams,
}

impl Pipes {
    /// New pipes, owned by the container's user: a program that opens `/dev/stdout` needs it.
    pub(crate) fn new(stdin: bool, user: &User) -> Result<Pipes> {
        let fail = "make the container's pipes";
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::system(fail));
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let (in_read, in_write): (OwnedFd, Option<OwnedFd>) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (null()?, None)
        };
        let own = |fd: &OwnedFd| {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(Error::system(fail))
        };
        own(&out_write)?;
        own(&err_write)?;
        if stdin {
            own(&in_read)?;
        }
        Ok(Pipes {
            stdin,
            inside: [in_read, out_write, err_write],
            outside: Streams::Pipes { stdin: in_write, stdout: out_read, stderr: err_read },
        })
    }

    /// Writes down which pipes the container has, for a checkpoint.
    pub(crate) fn remember(&self, run: &Path) -> Result<()> {
        use crate::checkpoint::streams::{remember, target};
        let [stdin, stdout, stderr] = &self.inside;
        let stdin = if self.stdin { target(stdin)? } else { String::new() };
        remember(run, &[stdin, target(stdout)?, target(stderr)?])
    }
}
