//! Ending the doubt about an earlier move.

use arctern_container::Host;
use arctern_engine::options::Fate;

use super::MigrateOptions;
use super::conversation::{Conversation, PATIENCE};
use crate::destination::Remote;
use crate::error::MigrateError;
use crate::message::{Answer, Request};

/// Asks the destination of a move that ended in doubt, and does what follows, with all containers of the
/// move.
///
/// # Errors
/// The other side cannot be asked: the container stays as it is.
pub fn resolve(
    host: &mut Host,
    container: &str,
    ssh: &str,
    keep_source: bool,
) -> Result<Fate, MigrateError> {
    let Some(marker) = host.doubt(container)? else { return Ok(Fate::Back) };
    let remote: Remote = serde_json::from_str(&marker.destination)
        .map_err(arctern_container::Error::json("the destination of a migration"))?;
    let options = MigrateOptions { keep_source, ..MigrateOptions::to(remote, ssh) };
    let mut conversation = Conversation::begin(&options, "receive")?;
    conversation.transport.send(&Request::Ask { transfer: marker.transfer.clone() })?;
    let fate = match conversation.answer(PATIENCE)? {
        Answer::Taken => Fate::Gone,
        Answer::GivenUp => Fate::Back,
        other => return Err(conversation.out_of_turn(&other)),
    };
    for moving in host.in_doubt(&marker.transfer)? {
        host.settle_migration(&moving, fate, keep_source)?;
    }
    // Not before the last: once it is forgotten, who asks is told that it was given up.
    conversation.done();
    Ok(fate)
}
