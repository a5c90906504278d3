//! The shim's part before its container comes: it takes memory in, round by round, so that the restored
//! init is born with it ([`Preloaded`]).

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use arctern_engine::precopy::Preloaded;

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::shim::protocol::{self, Kind, Report};
use crate::shim::report_to;

/// Pid of a container's init in its own namespace.
const INIT: i32 = 1;

/// Takes rounds in until the command says that everything is there. `appear` is called when the container
/// stands still where it was.
///
/// # Errors
/// [`Error::NotCommitted`]: the command is gone, and the container does not come.
pub(crate) fn take_in(
    host: &Host,
    id: &str,
    command: &UnixStream,
    appear: &mut dyn FnMut() -> Result<()>,
) -> Result<Preloaded> {
    let ahead = host.paths.container(id).ahead_dir();
    let mut preloaded = Preloaded::default();
    report_to(command, &Report::Done);
    loop {
        match protocol::receive(command) {
            Ok(Some((Kind::Build, _))) => return Ok(preloaded),
            Ok(Some((Kind::Appear, _))) => appear()?,
            Ok(Some((Kind::Round, number))) => {
                let number = number.try_into().map_or(0, u32::from_le_bytes);
                let visit = Visit::begin(host, id)?;
                // Without it the restore reads everything from the images.
                if let Err(error) = preloaded.load(&ahead.join(number.to_string()), INIT) {
                    tracing::warn!("round {number} is not preloaded: {error}");
                }
                drop(visit);
                report_to(command, &Report::Done);
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Err(Error::NotCommitted),
        }
    }
}

/// This process in the container's group, as far as memory is counted: what is taken in meanwhile is
/// the container's, and stays so when this process goes back.
struct Visit {
    /// Where it goes back to.
    from: Vec<PathBuf>,
}

impl Visit {
    fn begin(host: &Host, id: &str) -> Result<Visit> {
        let groups = Hierarchies::of(&host.paths)?;
        groups.create(id)?;
        let mut visit = Visit { from: Vec::new() };
        for (own, container) in groups.of_memory(id)? {
            enter(&container).map_err(Error::io("enter", &container))?;
            visit.from.push(own);
        }
        Ok(visit)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        for group in &self.from {
            if let Err(error) = enter(group) {
                tracing::error!("the shim cannot go back to {}: {error}", group.display());
            }
        }
    }
}

fn enter(group: &std::path::Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}
