//! `restart`, and what keeps a container from being started again by its policy.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::policy::RestartPolicy;
use crate::state::{Record, Status};

impl Host {
    /// Stops a container if it runs, and starts it. One that goes away with its end stays.
    pub fn restart(&mut self, name_or_id: &str, timeout: Option<u32>) -> Result<Record> {
        let record = self.find(name_or_id)?;
        if record.config.auto_remove && self.init(&record).is_some() {
            mark(&self.paths.container(record.id()).kept())?;
        }
        self.stop(record.id(), timeout)?;
        self.start(record.id(), false)?;
        Ok(record)
    }

    /// Whether the container is to run after the host has booted: its policy says so, and nobody
    /// stopped it where that counts. What waits to be restored, or has perhaps moved, is not started.
    #[must_use]
    pub fn starts_on_boot(&self, record: &Record) -> bool {
        if matches!(record.status, Status::Checkpointed | Status::Migrating) {
            return false;
        }
        let paths = self.paths.container(record.id());
        match record.config.restart_policy {
            RestartPolicy::Always => !paths.moved().exists(),
            RestartPolicy::UnlessStopped => !paths.moved().exists() && !paths.stopped().exists(),
            RestartPolicy::No | RestartPolicy::OnFailure => false,
        }
    }

    /// How often the policy started it since a command did.
    #[must_use]
    pub fn restarts(&self, record: &Record) -> u32 {
        let counter = self.paths.container(record.id()).restarts();
        fs::read_to_string(counter).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Writes down that a command ends the container: its policy does not start it again.
    pub(crate) fn mark_stopped(&self, record: &Record) -> Result<()> {
        match record.config.restart_policy {
            RestartPolicy::No => Ok(()),
            _ => mark(&self.paths.container(record.id()).stopped()),
        }
    }

    /// Writes down that it went to another host, and stays here as it was.
    pub(crate) fn mark_moved(&self, record: &Record) -> Result<()> {
        mark(&self.paths.container(record.id()).moved())?;
        self.mark_stopped(record)
    }

    /// Forgets it: a command starts the container.
    pub(crate) fn unmark_stopped(&self, id: &str) -> Result<()> {
        let paths = self.paths.container(id);
        for path in [paths.stopped(), paths.moved(), paths.restarts()] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn mark(path: &Path) -> Result<()> {
    File::create(path).map(drop).map_err(Error::io("create", path))
}
