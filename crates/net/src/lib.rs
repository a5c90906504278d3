//! Networks, addresses and published ports of containers.
//!
//! A [`Network`] is a bridge in the network namespace that the command runs in: containers get a
//! veth pair, an address and a default route ([`Network::attach`]), and ports of the host that lead
//! to them ([`Network::publish`]). Or it is a segment on which containers are machines of their own:
//! that of a bridge of somebody else, or of a device, by macvlan. All of it is done by netlink,
//! synchronously and without helper programs; `docs/adr/0002-nftables-by-netlink.md` says why.
//!
//! ```text
//! network   what it is; publishing ports                       files   /etc/hosts and the like
//! attach    how containers come and go                         marker  frames that mean nothing
//! config    a network as the user made it                       store   all of those
//! bridge    our bridge and its settings                         connect devices, addresses, routes
//! conntrack forgets UDP flows of published ports                announce  ARP and NA
//! error     what can go wrong                                  claim   who has a port already
//! lock      the lock of a container                           locks   what becomes of locks
//! hold      how packets are held
//! connections  a lock of single connections                  segment bridge ports and queues
//! inside    the lock of a container without a bridge            forward what came too late
//! rules     our nf_tables table                                 status  Podman's network.status
//! state     who has which address and ports                     netns   namespaces without a process
//! audit     what stays behind
//! route nft typed handles on rtnetlink and nf_tables            ports   -p, and is a port free
//! ways                                                          mac     hardware addresses
//! netlink   messages and the socket                             passage passages  by way of a host
//!                                                                       that a container has left
//! ```
#![forbid(unsafe_code)]

mod announce;
mod attach;
mod audit;
mod bridge;
mod claim;
mod config;
mod connect;
mod connections;
mod conntrack;
mod error;
mod expr;
pub mod files;
mod forward;
mod hold;
mod inside;
mod lock;
mod locks;
mod mac;
mod marker;
mod netlink;
pub mod netns;
mod network;
mod nft;
mod passage;
mod passages;
mod ports;
mod route;
mod rules;
mod segment;
mod state;
mod status;
mod store;
mod ways;

pub use attach::AttachSpec;
pub use audit::Stray;
pub use bridge::Bridge;
pub use config::{BadNetwork, Driver, LeaseRange, NetworkConfig, Subnet};
pub use connect::bring_up_loopback;
pub use connections::{ConnectionLock, PassingLock};
pub use error::NetworkError;
pub use forward::{Ended, Forwarder};
pub use hold::Means;
pub use inside::InsideLock;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use lock::{ContainerLock, Keep, Lock};
pub use mac::{BadMac, Mac};
pub use network::{DEFAULT_BRIDGE, Network};
pub use passage::{Back, Flow, Onward, Passage};
pub use ports::{BadPort, PortMapping, Protocol};
pub use state::{Lease, StateError};
pub use status::{ArchivedStatus, BadStatus, DEFAULT_NETWORK, NetworkStatus};
pub use store::{AddressRange, CreateNetwork, NetworkStore};
