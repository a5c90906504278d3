//! What killed commands leave of their work on one container, and its coming and going.
//!
//! Everything that a command makes beside a container and does not need afterwards has a name of its
//! own, and whoever takes the container's lock next removes it: nobody else is at work then. What is
//! to stay gets its final name in one rename. So there is no half of anything under a final name.

use std::path::PathBuf;

use crate::checkpoint::discard;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::Lock;
use crate::paths::ContainerPaths;
use crate::state::{Record, Status};

impl ContainerPaths {
    /// What only a command at work has beside a container.
    pub(crate) fn temporary(&self) -> [PathBuf; 4] {
        [self.checkpoint_new(), self.capture_dir(), self.import_dir(), self.ahead_dir()]
    }
}

impl Host {
    /// Waits until no container comes or goes. A container's directories and row appear and disappear
    /// together while somebody has this lock, so that who has it sees none of them without the other.
    pub(crate) fn births(&self) -> Result<Lock> {
        Lock::wait(&self.paths.births())
    }

    /// Makes the directories, the lock and the row of a new container. From here on everything that
    /// belongs to it is found through the row; and who sees it unlocked knows that its command is
    /// gone.
    pub(crate) fn bear(&mut self, record: &Record) -> Result<Lock> {
        let _births = self.births()?;
        let id = record.id();
        if self.store.get(id)?.is_some() {
            return Err(Error::IdInUse(crate::config::short_id(id).to_owned()));
        }
        if let Some(network) = record.config.network_name() {
            // It may have been removed since it was looked for.
            self.network(network)?;
        }
        let path = self.make_dirs(id)?.lock();
        let lock = Lock::wait(&path)?;
        if let Err(error) = self.store.durably(|store| store.insert(record)) {
            self.remove_dirs(id)?;
            return Err(error);
        }
        Ok(lock)
    }

    /// Removes the directories of a container. The caller has the lock of births.
    pub(crate) fn remove_dirs(&self, id: &str) -> Result<()> {
        let ContainerPaths { dir, run, .. } = self.paths.container(id);
        discard(&run)?;
        discard(&dir)
    }

    /// Whether a killed command left something beside a container, or one is at work.
    pub(crate) fn has_leftovers(&self, record: &Record) -> bool {
        let paths = self.paths.container(record.id());
        paths.temporary().iter().any(|path| path.exists())
    }

    /// Whether an `exec` is on its way into a container. It needs no lock for that, and if the container
    /// ends meanwhile it removes what the library has made again for it.
    pub(crate) fn is_entered(&self, record: &Record) -> bool {
        let run = self.paths.container(record.id()).run;
        let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
        let mut commands = entries.filter_map(|e| exec_of(e.file_name().to_str()?));
        commands.any(is_there)
    }

    /// Removes what killed commands left beside a container. The caller holds its lock.
    pub(crate) fn sweep(&mut self, record: &Record) -> Result<()> {
        if record.status == Status::Restoring {
            // It goes as a whole.
            return Ok(());
        }
        let paths = self.paths.container(record.id());
        if let Some(target) = super::checkpoint::target_noted(&paths) {
            arctern_image::archive::sweep(&target).map_err(Error::system(format!(
                "look for unfinished archives in {}",
                target.display()
            )))?;
        }
        for path in paths.temporary() {
            discard(&path)?;
        }
        for entry in std::fs::read_dir(&paths.run).into_iter().flatten().flatten() {
            if entry.file_name().to_str().and_then(exec_of).is_some_and(|pid| !is_there(pid)) {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        if record.checkpointed_at.is_none() {
            // It was begun and not finished, or used up, or was of a container that has gone on.
            discard(&paths.checkpoint())?;
        }
        Ok(())
    }
}

/// The process whose `exec` a file in the run directory belongs to.
fn exec_of(name: &str) -> Option<i32> {
    name.strip_prefix("exec-")?.trim_end_matches(".json").parse().ok()
}

fn is_there(pid: i32) -> bool {
    crate::process::ProcessId::of(pid).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_commands_are_told_by_their_names() {
        assert_eq!(exec_of("exec-12.json"), Some(12));
        assert_eq!(exec_of("exec-12"), Some(12));
        assert_eq!(exec_of("exit"), None);
        assert_eq!(exec_of("exec-x"), None);
    }
}
