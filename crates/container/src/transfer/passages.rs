//! Connections by way of a host that a container leaves: through its published ports, and those that it
//! masquerades. `arctern_net::Passage` says what becomes of them.

use std::time::Duration;

use arctern_engine::options::{Event, HookError};
use arctern_net::{Network, Onward};

use super::Peer;
use crate::config::NetworkMode;
use crate::error::{Error, Result, chain};
use crate::keeper;
use crate::paths::Paths;
use crate::state::Record;

/// What becomes of them in one move.
#[derive(Debug)]
pub(crate) struct Passages {
    /// The container's network, and where it goes for how long.
    wanted: Option<(Network, Onward, Option<Duration>)>,
    container: String,
    /// The other host returns them.
    accepted: bool,
}

impl Passages {
    /// Those of a container that is about to leave.
    pub fn new(
        paths: &Paths,
        record: &Record,
        forward: Option<&(Onward, Option<Duration>)>,
    ) -> Result<Passages> {
        let wanted = match (forward, record.config.network) {
            (Some((onward, limit)), NetworkMode::Bridge) => {
                Some((crate::network::of(paths, &record.config)?, onward.clone(), *limit))
            }
            _ => None,
        };
        Ok(Passages { wanted, container: record.id().to_owned(), accepted: false })
    }

    /// Tells the other host of them, when nothing can be added any more: the network is locked.
    pub fn offer(
        &mut self,
        peer: &mut dyn Peer,
        tell: &mut dyn FnMut(Event),
    ) -> std::result::Result<(), HookError> {
        let Some((network, onward, limit)) = &self.wanted else { return Ok(()) };
        let refused = match network.passage(&self.container, onward.via, *limit) {
            Ok(None) => return Ok(()),
            Ok(Some(passage)) => peer.pass(&passage)?,
            Err(error) => Some(chain(&error)),
        };
        match refused {
            None => self.accepted = true,
            Some(why) => tell(Event::Warning(format!(
                "connections by way of this host end with the move: {why}"
            ))),
        }
        Ok(())
    }

    /// Where they go, if the other host returns them.
    pub fn accepted(&self) -> Option<Onward> {
        self.wanted.as_ref().filter(|_| self.accepted).map(|(_, onward, _)| onward.clone())
    }

    /// How long this host does something for the container, which is `otherwise` without them.
    pub fn limit(&self, otherwise: Option<Duration>) -> Option<Duration> {
        match &self.wanted {
            Some((_, _, limit)) if self.accepted => *limit,
            _ => otherwise,
        }
    }

    /// The container runs on the other host: from here on they go there.
    pub fn open(&self, tell: &mut dyn FnMut(Event)) {
        let Some((network, onward, _)) = self.wanted.as_ref().filter(|_| self.accepted) else {
            return;
        };
        match network.send_on(&self.container, onward).map_err(Error::network) {
            Ok(home) => home.iter().for_each(|back| keeper::dismiss_process(back.keeper)),
            Err(error) => tell(Event::Warning(format!(
                "connections by way of this host are not led on: {}",
                error.chain()
            ))),
        }
    }
}
