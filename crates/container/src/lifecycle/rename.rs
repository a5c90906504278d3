//! `rename`.

use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids;
use crate::state::Record;

impl Host {
    /// Gives a container another name. Its files in /etc keep the old one until it is started
    /// again.
    pub fn rename(&mut self, name_or_id: &str, new: &str) -> Result<Record> {
        if !ids::is_valid_name(new) {
            return Err(Error::InvalidName(new.to_owned()));
        }
        let (record, _lock) = self.find_locked(name_or_id)?;
        self.store
            .rename(record.id(), new)?
            .ok_or_else(|| Error::NoSuchContainer(name_or_id.to_owned()))
    }
}
