//! `rm`.

use crate::config::NetworkMode;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::state::Record;

impl Host {
    /// Removes a container with everything it has. A running one only by force. A network lock that
    /// waits for the restore of an archive stays, unless by force.
    pub fn remove(&mut self, name_or_id: &str, force: bool) -> Result<Record> {
        let (record, _lock) = self.find_locked(name_or_id)?;
        if let Some(init) = self.init(&record) {
            if !force {
                return Err(Error::StillRunning(record.config.name));
            }
            self.mark_stopped(&record)?;
            self.kill_init(&record, &init)?;
            self.await_cleanup(&record, None)?;
        }
        let network = record.config.network;
        let waits = |lock: &arctern_net::Lock| lock.container == record.id() && lock.archived;
        if network == NetworkMode::Bridge && (force || !self.locks()?.values().any(waits)) {
            crate::network::end_lock(&self.paths, &record.config)?;
        }
        if network == NetworkMode::Host {
            crate::netlock::of_host(record.id()).unlock().map_err(Error::network)?;
        }
        self.remove_ended(&record)?;
        Ok(record)
    }

    /// Removes a container whose processes have ended. Its network lock stays.
    pub(crate) fn remove_ended(&mut self, record: &Record) -> Result<()> {
        // Also for one that was never started: a killed command may have left something.
        self.teardown(record.id())?;
        crate::network::end_backs(&self.paths, &record.config)?;
        self.remove_files(record.id())
    }
}
