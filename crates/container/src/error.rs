//! What can go wrong with a container.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub use arctern_storage::chain;

use crate::state::Status;
use crate::transfer::Blocker;

/// Result of an operation on containers.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a container.
///
/// `Display` names what happened to which object; the cause is the `source`; the remedy is
/// [`Error::hint`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing has this name or id.
    #[error("no container with name or id `{0}`")]
    NoSuchContainer(String),
    /// No network has this name or id.
    #[error("no network with name or id `{0}`")]
    NoSuchNetwork(String),
    /// Nothing is forwarded for such a container.
    #[error("nothing is forwarded for a container with name or id `{0}`")]
    NoSuchForward(String),
    /// A container would lose its network.
    #[error("container `{container}` is on network `{name}`")]
    NetworkInUse {
        /// The network.
        name: String,
        /// One of its containers.
        container: String,
    },
    /// A container would lose its volume.
    #[error("volume `{name}` belongs to {}", .containers.join(", "))]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Its containers.
        containers: Vec<String>,
    },
    /// A restore would overwrite volumes of somebody else.
    #[error("volumes of the checkpoint's names exist already: {}", .0.join(", "))]
    VolumesExist(Vec<String>),
    /// Several containers have ids that begin so.
    #[error("`{0}` is the beginning of several container ids")]
    AmbiguousId(String),
    /// Another container has the name.
    #[error("the name `{name}` is used by container {id}")]
    NameInUse {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// Another container has the id (a checkpoint restored without `--name`).
    #[error("a container with id {0} exists already")]
    IdInUse(String),
    /// Not of the form of a name.
    #[error(
        "`{0}` is no valid container name: letters, digits, `_`, `.` and `-`, a letter or digit first"
    )]
    InvalidName(String),
    /// The operation needs another state.
    #[error("container `{name}` is {status}, not {needed}")]
    WrongState {
        /// Its name.
        name: String,
        /// What it is.
        status: Status,
        /// What it had to be.
        needed: &'static str,
    },
    /// Live connections belong to an address that the container does not have any more.
    #[error(
        "the container had the address {had} and has {has} now, so these connections cannot go on: {}",
        .connections.join(", ")
    )]
    AddressChanged {
        /// The address at the checkpoint.
        had: Ipv4Addr,
        /// The address now.
        has: Ipv4Addr,
        /// Both ends of each connection.
        connections: Vec<String>,
    },
    /// A signal asked for the end of the operation.
    #[error("interrupted by a signal")]
    Interrupted,
    /// It ended while something was done with it.
    #[error("container `{0}` has ended meanwhile")]
    EndedMeanwhile(String),
    /// A container from another host, built and not let go.
    #[error("the move was given up before it was committed")]
    NotCommitted,
    /// What was asked needs processes that run.
    #[error("container `{0}` is paused")]
    Paused(String),
    /// `unpause` of a container that is not paused.
    #[error("container `{0}` is not paused")]
    NotPaused(String),
    /// `healthcheck run` of a container without a check.
    #[error("container `{0}` has no health check")]
    NoHealthCheck(String),
    /// There is no container at all (`--latest`).
    #[error("there is no container")]
    NoContainers,
    /// `rm` of a running container without force.
    #[error("container `{0}` is running")]
    StillRunning(String),
    /// An option that makes no sense here.
    #[error("{0}")]
    Invalid(String),
    /// An option's value is not of its form.
    #[error(transparent)]
    Option(#[from] crate::config::InvalidOption),
    /// A published port is not written as it should be.
    #[error(transparent)]
    Port(#[from] arctern_net::BadPort),
    /// The command to execute does not exist in the container.
    #[error("command `{0}` not found in the container")]
    CommandNotFound(String),
    /// The command to execute exists and cannot be executed.
    #[error("command `{0}` in the container cannot be executed")]
    CommandNotExecutable(String),
    /// `-u` names somebody that the container's /etc/passwd or /etc/group does not have.
    #[error("no {kind} `{name}` in {file} of the container")]
    NoSuchUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// A limit was asked for and this machine has no controller for it.
    #[error(
        "no {controller} controller in the cgroup hierarchies of this machine, which {option} needs"
    )]
    NoController {
        /// `memory`, `cpu`, `pids`.
        controller: &'static str,
        /// The option that asked.
        option: &'static str,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done: `read`, `create`, ….
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was being done, to which object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The database.
    #[error("database {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The database was written by a newer program.
    #[error("database {path} has version {found}, this program knows up to {known}")]
    DatabaseVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A stored document does not parse.
    #[error("{what} is damaged")]
    Json {
        /// Which document.
        what: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The OCI library failed.
    #[error("{action} the container through the OCI library")]
    Runtime {
        /// What was being done.
        action: &'static str,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime spec cannot be built.
    #[error("runtime spec")]
    Spec(#[from] oci_spec::OciSpecError),
    /// The shim reported a failure.
    #[error("{message}")]
    Shim {
        /// Its message with all causes.
        message: String,
        /// Its hint.
        hint: Option<String>,
        /// Exit code that goes with it.
        code: i32,
    },
    /// The shim ended without a word.
    #[error("the shim of container {0} ended without a report")]
    ShimGone(String),
    /// Image, layer and root file system store.
    #[error(transparent)]
    Storage(Box<dyn std::error::Error + Send + Sync>),
    /// Network.
    #[error(transparent)]
    Network(Box<dyn std::error::Error + Send + Sync>),
    /// Checkpoint archive or images.
    #[error(transparent)]
    Archive(Box<dyn std::error::Error + Send + Sync>),
    /// The engine could not capture.
    #[error(transparent)]
    Capture(Box<arctern_engine::CaptureError>),
    /// Memory that the other host sent could not be stored.
    #[error("cannot store the memory that came ahead")]
    Memory(#[source] arctern_engine::options::HookError),
    /// The engine could not restore.
    #[error(transparent)]
    Restore(Box<arctern_engine::RestoreError>),
    /// An archive asks for more than a container has by default.
    #[error(
        "the archive asks for what only the user can allow:{}",
        .0.iter().map(|ask| format!("\n  {ask}")).collect::<String>()
    )]
    Untrusted(Vec<crate::checkpoint::policy::Ask>),
    /// This machine's CPU lacks what the captured programs were given.
    #[error("this CPU lacks {missing}, which the checkpoint's programs were started with")]
    CpuFeatures {
        /// Feature names as in /proc/cpuinfo.
        missing: String,
    },
    /// The image of a checkpointed container is not here.
    #[error("image `{name}` ({id}), which the container was made from, is not here")]
    ImageMissing {
        /// Its name.
        name: String,
        /// Its short id.
        id: String,
        /// What the store says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The container would lose the only state that it has.
    #[error("container `{0}` was stopped by its checkpoint and can only go on from it")]
    CheckpointNeeded(String),
    /// Disk or memory does not suffice, which was seen before anything was changed.
    #[error("there is not enough room\n{}", .0.iter().map(|b| b.cause.as_str()).collect::<Vec<_>>().join("\n"))]
    NoRoom(Vec<Blocker>),
    /// There is no checkpoint to restore.
    #[error("container `{0}` has no checkpoint")]
    NoCheckpoint(String),
}

impl Error {
    /// Makes the error of a failed file operation.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { action, path, source }
    }

    /// Makes the error of a failed system call.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |source| Error::System { what, source: source.into() }
    }

    /// Makes the error of a document that does not parse.
    pub fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Error {
        let what = what.into();
        move |source| Error::Json { what, source }
    }

    /// Makes the error of the OCI library.
    pub fn runtime<E>(action: &'static str) -> impl FnOnce(E) -> Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Error::Runtime { action, source: Box::new(source) }
    }

    /// Makes the error of the storage crate.
    pub fn storage(source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Storage(Box::new(source))
    }

    /// Makes the error of the network crate.
    pub fn network(source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Network(Box::new(source))
    }

    /// Makes the error of an archive.
    pub fn archive(source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Archive(Box::new(source))
    }

    /// The exit code of a command that failed so: 127 and 126 are about the command in the
    /// container, 125 is about us.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::CommandNotFound(_) => 127,
            Error::CommandNotExecutable(_) => 126,
            Error::Shim { code, .. } => *code,
            Error::Interrupted => 130,
            _ => 125,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoSuchContainer(_) => "`arctern ps -a` lists all containers".to_owned(),
            Error::NoSuchNetwork(name) => {
                format!("`arctern network ls` lists all; `arctern network create {name}` makes it")
            }
            Error::NoSuchForward(_) => "`arctern forward ls` lists what is forwarded".to_owned(),
            Error::NetworkInUse { container, .. } => {
                format!("`arctern rm {container}` first, or pass --force")
            }
            Error::VolumeInUse { .. } => {
                "remove these containers first, or pass --force to remove them as well".to_owned()
            }
            Error::VolumesExist(_) => {
                "pass --ignore-volumes to use them as they are, or remove them \
                 with `arctern volume rm`"
                    .to_owned()
            }
            Error::AmbiguousId(_) => "give more digits of the id, or the name".to_owned(),
            Error::NameInUse { name, .. } => {
                format!("choose another --name, pass --replace, or `arctern rm {name}` first")
            }
            Error::IdInUse(_) => {
                "pass --name to restore it as a new container, or remove the old one first"
                    .to_owned()
            }
            Error::AddressChanged { had, .. } => {
                format!(
                    "stop the container that has {had}, or drop the connections with --tcp-close"
                )
            }
            Error::NoHealthCheck(_) => "give one with --health-cmd when it is created".to_owned(),
            Error::Paused(name) => format!("`arctern unpause {name}` first"),
            Error::StillRunning(name) => {
                format!("`arctern stop {name}` first, or pass --force")
            }
            Error::NoController { option, .. } => {
                format!("leave {option} away, or mount the controller")
            }
            Error::NoRoom(missing) => {
                let remedies: Vec<&str> = missing.iter().map(|b| b.remedy.as_str()).collect();
                remedies.join("; ")
            }
            Error::CheckpointNeeded(name) => {
                format!("`arctern restore {name}` first, or pass --force")
            }
            Error::NoCheckpoint(name) => {
                format!("make one with `arctern container checkpoint {name}`")
            }
            Error::ImageMissing { .. } => {
                "import the same image here, or make the checkpoint with --with-image".to_owned()
            }
            Error::Untrusted(_) => "repeat what it may have as options, or pass --trust if you \
                                    trust whoever wrote the archive with this machine"
                .to_owned(),
            Error::CpuFeatures { .. } => "restore on a machine whose CPU has them".to_owned(),
            Error::DatabaseVersion { .. } => "use the newer program, or another --root".to_owned(),
            Error::Io { source, .. } | Error::System { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied
                    && !rustix::process::geteuid().is_root() =>
            {
                "run it as root".to_owned()
            }
            Error::Shim { hint, .. } => return hint.clone(),
            Error::Restore(inner) => match &**inner {
                // The engine hands our own errors through.
                arctern_engine::RestoreError::Hook(own) => {
                    return own.downcast_ref::<Error>().and_then(Error::hint);
                }
                _ => return None,
            },
            Error::Storage(inner) => {
                return inner.downcast_ref::<arctern_storage::StoreError>().and_then(|e| e.hint());
            }
            Error::Network(inner) => {
                return inner.downcast_ref::<arctern_net::NetworkError>().and_then(|e| e.hint());
            }
            _ => return None,
        })
    }

    /// The message with all causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}
