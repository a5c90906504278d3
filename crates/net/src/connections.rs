//! A lock of single TCP connections in the network namespace that has their sockets.
//!
//! ```text
//! table inet NAME
//!   set four { address . port . address . port }   our end first
//!   set six
//!   chain in   filter input  -1000   segments of these connections: drop
//!   chain out  filter output -1000   likewise
//! ```
//!
//! Packets with a mark pass: they stand for a peer while its connection is rebuilt, or tell one of a
//! closed window.
//!
//! For trees that share a network namespace with others, where the address cannot be locked as a
//! whole: processes that are no container, and containers in the host's network. Segments are dropped
//! and not held: peers are to be told not to send. The table stays when the program ends; whoever
//! restores the connections removes it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Doing, NetworkError};
use crate::netlink::{Family, Socket};
use crate::nft::{Batch, Element, Expr, Hook, Nft, REG, meta};

/// nft's type numbers, six bits each in a concatenation.
const ADDRESS: u32 = 7;
const ADDRESS6: u32 = 8;
const SERVICE: u32 = 13;

const FOUR: &str = "four";
const SIX: &str = "six";
const TCP: [u8; 1] = [6];

/// Mark of packets that pass: those that stand for a peer while its connection is rebuilt. The number
/// is CRIU's.
const PASSING: [u8; 4] = 0xc114_u32.to_ne_bytes();

/// The lock of some TCP connections, by name.
#[derive(Debug)]
pub struct ConnectionLock {
    netns: Option<OwnedFd>,
    name: String,
}

impl ConnectionLock {
    /// The lock called `name` in a network namespace; `None` for the calling thread's. Nothing is
    /// locked yet, unless an earlier program did it under this name.
    pub fn new(netns: Option<OwnedFd>, name: &str) -> Self {
        ConnectionLock { netns, name: name.to_owned() }
    }

    /// Drops every segment of these connections (our end, the other end) from here on, and of no
    /// others: what was locked under this name before is replaced.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]; nothing was changed then.
    pub fn lock(&self, connections: &[(SocketAddr, SocketAddr)]) -> Result<(), NetworkError> {
        let mut batch = Batch::new(&self.name);
        // Made so that it can be removed, whether it was there or not.
        batch.table().delete_table().table();
        fill(&mut batch, connections);
        self.nft()?.commit(batch).doing("lock", format!("{} connections", connections.len()))
    }

    /// As [`ConnectionLock::lock`], in a table of its own that goes with the result, and with this
    /// process however it ends.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]; nothing was changed then.
    pub fn lock_for_now(
        &self,
        connections: &[(SocketAddr, SocketAddr)],
    ) -> Result<PassingLock, NetworkError> {
        let mut batch = Batch::new(&format!("{}-now", self.name));
        batch.owned_table();
        fill(&mut batch, connections);
        let mut nft = self.nft()?;
        nft.commit(batch).doing("lock", format!("{} connections", connections.len()))?;
        Ok(PassingLock { _owner: nft })
    }

    /// Lets all of them pass again. That nothing is locked is no error.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn unlock(&self) -> Result<(), NetworkError> {
        let mut batch = Batch::new(&self.name);
        batch.delete_table();
        match self.nft()?.commit(batch) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.doing("unlock", "connections"),
        }
    }

    fn nft(&self) -> Result<Nft, NetworkError> {
        let socket = match &self.netns {
            Some(netns) => Socket::open_in(Family::Netfilter, netns.as_fd()),
            None => Socket::open(Family::Netfilter),
        };
        socket.map(Nft::over).doing("open", "a netfilter netlink socket")
    }
}

/// A lock that ends with this value.
#[derive(Debug)]
pub struct PassingLock {
    /// The kernel removes the table when this socket is closed.
    _owner: Nft,
}

/// Sets, chains and rules of a table.
fn fill(batch: &mut Batch, connections: &[(SocketAddr, SocketAddr)]) {
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for (local, peer) in connections {
        match (local.ip().to_canonical(), peer.ip().to_canonical()) {
            (IpAddr::V4(here), IpAddr::V4(there)) => {
                four.push(flow(&here.octets(), local, &there.octets(), peer));
            }
            (IpAddr::V6(here), IpAddr::V6(there)) => {
                six.push(flow(&here.octets(), local, &there.octets(), peer));
            }
            // No connection has two kinds of addresses.
            _ => {}
        }
    }
    batch.set(FOUR, 1, join(&[ADDRESS, SERVICE, ADDRESS, SERVICE]), 16);
    batch.set(SIX, 2, join(&[ADDRESS6, SERVICE, ADDRESS6, SERVICE]), 40);
    for (chain, hook, source_is_ours) in [("in", Hook::Input, false), ("out", Hook::Output, true)] {
        batch.chain(chain, "filter", hook, -1000);
        batch.rule(chain, &rule(2, (12, 16, 4), source_is_ours, FOUR, 1));
        batch.rule(chain, &rule(10, (8, 24, 16), source_is_ours, SIX, 2));
    }
    batch.add_elements(FOUR, &four).add_elements(SIX, &six);
}

/// The number of a concatenated type.
fn join(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

/// An element of a set: our address and port, the other address and port.
fn flow(here: &[u8], local: &SocketAddr, there: &[u8], peer: &SocketAddr) -> Element {
    let port = |end: &SocketAddr| [end.port().to_be_bytes(), [0, 0]].concat();
    let key = [here, &port(local), there, &port(peer)].concat();
    Element { key, data: Vec::new(), comment: String::new() }
}

/// Drops TCP segments of an address family (`NFPROTO_*`) whose ends are in a set. `address` says
/// where the network header has source and destination, and how long they are.
fn rule(
    family: u8,
    (source, destination, length): (u32, u32, u32),
    source_is_ours: bool,
    set: &'static str,
    id: u32,
) -> Vec<Expr<'static>> {
    const SOURCE_PORT: u32 = 0;
    const DESTINATION_PORT: u32 = 2;
    let (ours, theirs) = match source_is_ours {
        true => ((source, SOURCE_PORT), (destination, DESTINATION_PORT)),
        false => ((destination, DESTINATION_PORT), (source, SOURCE_PORT)),
    };
    let registers = length / 4;
    // The numbers of the two families are constants of the kernel's interface.
    let protocol: &'static [u8] = if family == 2 { &[2] } else { &[10] };
    vec![
        Expr::Meta(REG, meta::MARK),
        Expr::Differs(REG, &PASSING),
        Expr::Meta(REG, meta::NETWORK_PROTOCOL),
        Expr::Equal(REG, protocol),
        Expr::Meta(REG, meta::TRANSPORT_PROTOCOL),
        Expr::Equal(REG, &TCP),
        Expr::Network(REG, ours.0, length),
        Expr::Transport(REG + registers, ours.1, 2),
        Expr::Network(REG + registers + 1, theirs.0, length),
        Expr::Transport(REG + 2 * registers + 1, theirs.1, 2),
        Expr::Member(REG, set, id),
        Expr::Drop,
    ]
}
