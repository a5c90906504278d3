//! Whether a host port can be claimed: who has it already.

use rustix::io::Errno;

use crate::error::{Doing, NetworkError};
use crate::ports::{self, PortMapping};
use crate::state::State;

/// Ports published by other networks of the same network namespace, each with its container.
pub(crate) type Foreign = Vec<(String, PortMapping)>;

/// A mapping whose host port is 0 with a free one in its place.
pub(crate) fn settle(
    mapping: &PortMapping,
    chosen: &[PortMapping],
    state: &State,
    foreign: &Foreign,
) -> Result<PortMapping, NetworkError> {
    let mut settled = mapping.clone();
    if mapping.host_port != 0 {
        return Ok(settled);
    }
    for _ in 0..64 {
        settled.host_port = ports::any_free(mapping.host_ip, mapping.protocol)
            .doing("find", "a free port of the host")?;
        if settled.pairs().count() == usize::from(mapping.range.max(1))
            && check(&settled, chosen, state, foreign).is_ok()
        {
            return Ok(settled);
        }
    }
    Err(NetworkError::Kernel {
        action: "find",
        object: format!("{} free consecutive ports of the host", mapping.range),
        source: Errno::ADDRINUSE.into(),
    })
}

/// Refuses host ports that somebody has.
pub(crate) fn check(
    mapping: &PortMapping,
    chosen: &[PortMapping],
    state: &State,
    foreign: &Foreign,
) -> Result<(), NetworkError> {
    let protocol = mapping.protocol;
    if let Some(port) = chosen.iter().find_map(|other| mapping.conflicts_with(other)) {
        return Err(NetworkError::PortTwice { port, protocol });
    }
    let ours = state.leases.iter().flat_map(|(id, lease)| lease.ports.iter().map(move |p| (id, p)));
    let kept = state.locks.values().chain(state.away.values());
    let kept = kept.flat_map(|lock| lock.ports.iter().map(|p| (&lock.name, p)));
    for (holder, other) in ours.chain(kept).chain(foreign.iter().map(|(id, port)| (id, port))) {
        if let Some(port) = mapping.conflicts_with(other) {
            return Err(NetworkError::PortPublished { port, protocol, holder: holder.clone() });
        }
    }
    for (port, _) in mapping.pairs() {
        let free = ports::is_free(mapping.host_ip, port, protocol).doing("try port", port)?;
        if !free {
            let holder = ports::holder(port, protocol).map(|p| format!("process {p}"));
            return Err(NetworkError::PortInUse { port, protocol, holder });
        }
    }
    Ok(())
}
