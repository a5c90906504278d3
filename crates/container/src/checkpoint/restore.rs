//! Restoring.
use crate::error::{Error, Result};
use crate::host::Host;
use crate::shim::launch::{Launched, Prelaunch};

pub(crate) fn launch(_host: &mut Host, prelaunch: Prelaunch) -> Result<Launched> {
    Err(Error::NoCheckpoint(prelaunch.config.name))
}
