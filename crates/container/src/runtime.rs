//! The OCI library: creating, starting, joining and deleting containers.
//!
//! libcontainer knows no restore. After one, [`record_restored`] writes its state as it would have
//! been after a start, so that `exec` and deletion go the same way for both.

use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};

use crate::error::{Error, Result, chain};
use crate::spec::DEFAULT_PATH;

/// How a validation failure travels out of the container's init, whose errors come back as text.
const NOT_FOUND: &str = "arctern: command not found: ";
const NOT_EXECUTABLE: &str = "arctern: command not executable: ";

/// What the first process of a container has as descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Stdio {
    /// Pipes or files.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal; its master comes through the socket with this path.
    Console(std::path::PathBuf),
}

/// Makes the container and leaves its init waiting for [`start`]. Gives init's pid.
pub fn create(oci: &Path, id: &str, bundle: &Path, stdio: Stdio) -> Result<i32> {
    std::fs::create_dir_all(oci).map_err(Error::io("create", oci))?;
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(Exec { confinement: None })
        .with_root_path(oci)
        .map_err(Error::runtime("create"))?;
    builder = match stdio {
        Stdio::Files { stdin, stdout, stderr } => {
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
        Stdio::Console(path) => builder.with_console_socket(Some(path)),
    };
    let container = builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| explain("create", e))?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| Error::Invalid("the OCI library created no process".to_owned()))
}

/// Lets init execute its command.
pub fn start(oci: &Path, id: &str) -> Result<()> {
    let mut container = Container::load(oci.join(id)).map_err(Error::runtime("load"))?;
    container.start().map_err(|e| explain("start", e))
}

/// Whether [`start`] or [`record_restored`] is through with the container: its state is written no
/// more.
#[must_use]
pub fn has_started(oci: &Path, id: &str) -> bool {
    Container::load(oci.join(id)).is_ok_and(|it| it.status() == ContainerStatus::Running)
}

/// What the library leaves away from processes that join a container: the system call filter. It
/// has to be loaded while the process may still do so, so the process comes to us with every
/// capability, and gets its own ones after the filter.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The filter.
    pub seccomp: LinuxSeccomp,
    /// Its capabilities.
    pub capabilities: LinuxCapabilities,
}

/// Starts a process in a running container, as a child of this process, described by the OCI
/// process document at `process`. Gives its pid.
pub fn exec(
    oci: &Path,
    id: &str,
    process: &Path,
    console: Option<&Path>,
    confinement: Option<Confinement>,
) -> Result<i32> {
    let pid = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(Exec { confinement })
        .with_root_path(oci)
        .map_err(Error::runtime("join"))?
        .with_console_socket(console)
        .as_tenant()
        .with_detach(console.is_some())
        .with_process(Some(process))
        .build()
        .map_err(|e| explain("join", e))?;
    Ok(pid.as_raw())
}

/// Writes the library's state of a container that was not started but restored.
pub fn record_restored(oci: &Path, id: &str, bundle: &Path, spec: &Spec, pid: i32) -> Result<()> {
    let dir = oci.join(id);
    std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let mut container = Container::new(id, ContainerStatus::Running, Some(pid), bundle, &dir)
        .map_err(Error::runtime("record"))?;
    container
        .set_systemd(false)
        .set_annotations(spec.annotations().clone())
        .set_creator(rustix::process::geteuid().as_raw())
        .set_status(ContainerStatus::Created)
        .set_status(ContainerStatus::Running);
    libcontainer::config::YoukiConfig::from_spec(spec, id)
        .and_then(|config| config.save(&dir))
        .map_err(Error::runtime("record"))?;
    container.save().map_err(Error::runtime("record"))
}

/// Removes the library's state. Processes and control groups are the caller's.
pub fn forget(oci: &Path, id: &str) -> Result<()> {
    let dir = oci.join(id);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &dir)(e)),
        _ => Ok(()),
    }
}

/// Finds out whether the command was the reason.
fn explain(action: &'static str, error: LibcontainerError) -> Error {
    let text = chain(&error);
    let after = |marker: &str| {
        text.split_once(marker)
            .map(|(_, rest)| rest.lines().next().unwrap_or(rest).trim_end_matches('"').to_owned())
    };
    if let Some(command) = after(NOT_FOUND) {
        Error::CommandNotFound(command)
    } else if let Some(command) = after(NOT_EXECUTABLE) {
        Error::CommandNotExecutable(command)
    } else {
        Error::runtime(action)(error)
    }
}

/// Executes the command of the spec. The standard library's `exec` also gives SIGPIPE and the
/// signal mask back their defaults, which a program expects and the library does not do.
#[derive(Clone, Debug)]
struct Exec {
    confinement: Option<Confinement>,
}

impl Exec {
    fn args(spec: &Spec) -> &[String] {
        spec.process().as_ref().and_then(|p| p.args().as_deref()).unwrap_or_default()
    }

    fn env(spec: &Spec) -> impl Iterator<Item = (&str, &str)> {
        spec.process()
            .as_ref()
            .and_then(|p| p.env().as_deref())
            .unwrap_or_default()
            .iter()
            .filter_map(|e| e.split_once('='))
    }
}

impl Executor for Exec {
    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        use std::os::unix::process::CommandExt;
        let [program, args @ ..] = Exec::args(spec) else {
            return Err(ExecutorError::InvalidArg);
        };
        if let Some(Confinement { seccomp, capabilities }) = &self.confinement {
            let other = |e: &dyn std::error::Error| ExecutorError::Other(chain(e));
            libcontainer::seccomp::initialize_seccomp(seccomp).map_err(|e| other(&e))?;
            let syscall = libcontainer::syscall::syscall::create_syscall();
            libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
                .map_err(|e| other(&e))?;
        }
        let error =
            std::process::Command::new(program).args(args).env_clear().envs(Exec::env(spec)).exec();
        Err(ExecutorError::Other(format!("{program}: {error}")))
    }

    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let fail = |marker: &str, name: &str| {
            Err(ExecutorValidationError::ArgValidationError(format!("{marker}{name}")))
        };
        let Some(name) = Exec::args(spec).first() else {
            return fail(NOT_FOUND, "");
        };
        let path = Exec::env(spec)
            .find_map(|(key, value)| (key == "PATH").then_some(value))
            .unwrap_or(DEFAULT_PATH);
        let candidates: Vec<std::path::PathBuf> = if name.contains('/') {
            vec![name.into()]
        } else {
            path.split(':').map(|dir| Path::new(dir).join(name)).collect()
        };
        let mut found = false;
        for candidate in candidates {
            if candidate.is_file() {
                found = true;
                if rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok() {
                    return Ok(());
                }
            } else if candidate.is_dir() && name.contains('/') {
                found = true;
            }
        }
        fail(if found { NOT_EXECUTABLE } else { NOT_FOUND }, name)
    }

    fn setup_envs(
        &self,
        _envs: std::collections::HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        // `exec` above sets the environment of the new program alone.
        Ok(())
    }
}
