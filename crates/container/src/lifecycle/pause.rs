//! `pause` and `unpause`: every process of a container stands still in its control group's freezer.
//!
//! The freezer is the only place where that is written down: whoever thaws the group has unpaused
//! the container, and a paused container of the database cannot disagree with the kernel.

use std::time::Duration;

use arctern_sys::freezer::Freezer;

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::state::{Record, Status};

/// How long tasks may take to stop: one that waits for a disk stops when the disk has answered.
const PATIENCE: Duration = Duration::from_secs(10);

impl Host {
    /// Stops every process of a running container.
    pub fn pause(&mut self, name_or_id: &str) -> Result<Record> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        self.must_run(&record)?;
        if self.is_paused(&record) {
            return Err(Error::Paused(record.config.name));
        }
        let fail = || Error::system(format!("pause container {}", record.name()));
        let none = Error::NoController { controller: "freezer", option: "pause" };
        self.freezer(&record).ok_or(none)?.freeze(PATIENCE).map_err(fail())?;
        Ok(record)
    }

    /// Lets a paused container go on.
    pub fn unpause(&mut self, name_or_id: &str) -> Result<Record> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        self.must_run(&record)?;
        match self.freezer(&record).filter(|_| self.is_paused(&record)) {
            Some(freezer) => {
                let fail = || Error::system(format!("unpause container {}", record.name()));
                freezer.thaw().map_err(fail())?;
                Ok(record)
            }
            None => Err(Error::NotPaused(record.config.name)),
        }
    }

    /// Whether a container is paused: it runs, and its control group is frozen.
    #[must_use]
    pub fn is_paused(&self, record: &Record) -> bool {
        record.status == Status::Running
            && self.freezer(record).is_some_and(|freezer| freezer.is_frozen().unwrap_or(false))
    }

    /// The status as people see it: that of the record, or `paused`.
    #[must_use]
    pub fn status(&self, record: &Record) -> &'static str {
        if self.is_paused(record) { "paused" } else { record.status.as_str() }
    }

    /// Refuses a container that does not run.
    pub(crate) fn must_run(&self, record: &Record) -> Result<()> {
        match self.init(record) {
            Some(_) => Ok(()),
            None => Err(Error::WrongState {
                name: record.config.name.clone(),
                status: record.status,
                needed: "running",
            }),
        }
    }

    /// Refuses a container whose processes stand still.
    pub(crate) fn must_not_be_paused(&self, record: &Record) -> Result<()> {
        match self.is_paused(record) {
            true => Err(Error::Paused(record.config.name.clone())),
            false => Ok(()),
        }
    }

    /// Lets a container go on, whoever froze it: a frozen process takes no signal. Nothing to do is
    /// no error.
    pub(crate) fn thaw(&self, record: &Record) {
        if let Some(freezer) = self.freezer(record) {
            let _ = freezer.thaw();
        }
    }

    /// The freezer of a container's control group, if there is one.
    fn freezer(&self, record: &Record) -> Option<Freezer> {
        freezer(&Hierarchies::of(&self.paths).ok()?, record.id())
    }
}

/// The freezer of a container's group in these hierarchies.
pub(crate) fn freezer(groups: &Hierarchies, id: &str) -> Option<Freezer> {
    Freezer::of(&groups.freezer(id)?).ok().flatten()
}
