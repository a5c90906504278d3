//! Bridge, addresses and published ports of containers.
//!
//! A [`Network`] is a bridge in the network namespace that the command runs in: containers get a
//! veth pair, an address and a default route ([`Network::attach`]), and ports of the host that lead
//! to them ([`Network::publish`]). All of it is done by netlink, synchronously and without helper
//! programs; `docs/adr/0002-nftables-by-netlink.md` says why.
//!
//! ```text
//! network   operations: ensure, attach, publish, detach        files   /etc/hosts and the like
//! conntrack forgets UDP flows of published ports
//! error     what can go wrong                                  claim   who has a port already
//! lock      the lock of a container, its lifetime             hold    how packets are held
//! connections  a lock of single connections                  segment bridge ports and queues
//! rules     our nf_tables table                                 status  Podman's network.status
//! state     who has which address and ports                     netns   namespaces without a process
//! route nft typed handles on rtnetlink and nf_tables            ports   -p, and is a port free
//! netlink   messages and the socket                             mac     hardware addresses
//! ```
#![forbid(unsafe_code)]

mod claim;
mod connections;
mod conntrack;
mod error;
pub mod files;
mod hold;
mod lock;
mod mac;
mod netlink;
pub mod netns;
mod network;
mod nft;
mod ports;
mod route;
mod rules;
mod segment;
mod state;
mod status;

pub use connections::ConnectionLock;
pub use error::NetworkError;
pub use hold::Means;
pub use ipnet::Ipv4Net;
pub use lock::{ContainerLock, Keep, Lock};
pub use mac::{BadMac, Mac};
pub use network::{AttachSpec, Bridge, DEFAULT_BRIDGE, Network, bring_up_loopback};
pub use ports::{BadPort, PortMapping, Protocol};
pub use state::{Lease, StateError};
pub use status::{ArchivedStatus, BadStatus, NetworkStatus};
