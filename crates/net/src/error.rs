//! What can go wrong with a network, and what to do about it.

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use rustix::io::Errno;

use crate::config::BadNetwork;
use crate::ports::Protocol;
use crate::state::StateError;

/// What went wrong with a network. [`NetworkError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The state file could not be read, written or locked.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel refused a step.
    #[error("cannot {action} {object}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// With what: an interface, an address, a file.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another interface has the bridge's name.
    #[error("interface {name} exists and is no bridge (kind {kind:?})")]
    NotABridge {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// Every subnet that would be chosen collides with a route of the host.
    #[error("no free subnet: every candidate overlaps a route of this host")]
    NoFreeSubnet,
    /// The subnet is too small or not private to be shared out.
    #[error("subnet {0} has no room for containers")]
    SubnetTooSmall(Ipv4Net),
    /// All addresses are taken.
    #[error("no free address in {0}")]
    NoFreeAddress(IpNet),
    /// A static address is not one that a container can have.
    #[error("address {ip} is not a usable address of {subnet}")]
    AddressOutside {
        /// The address asked for.
        ip: IpAddr,
        /// The network's subnet.
        subnet: IpNet,
    },
    /// An IPv6 address was asked for on a network without IPv6.
    #[error("network {0} has no IPv6 subnet")]
    NoIpv6(String),
    /// Ports cannot be published on a network whose containers are machines of a segment.
    #[error("network {0} publishes no ports: its containers have addresses of the segment")]
    NoPorts(String),
    /// What was asked of a network cannot be.
    #[error(transparent)]
    Bad(#[from] BadNetwork),
    /// A static address is taken.
    #[error("address {ip} is in use by container {holder}")]
    AddressInUse {
        /// The address asked for.
        ip: IpAddr,
        /// The container that has it.
        holder: String,
    },
    /// A host that connections were to be led to or from is not on a segment of this host.
    #[error("{0} is no neighbour: there is a router in between")]
    NoNeighbour(std::net::Ipv4Addr),
    /// A container has no address here.
    #[error("container {0} is not attached to the network")]
    NotAttached(String),
    /// A host port is taken by another container.
    #[error("port {port}/{protocol} of the host is published by container {holder}")]
    PortPublished {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The container that has it.
        holder: String,
    },
    /// A host port is taken by a process of the host.
    #[error("port {port}/{protocol} of the host is in use by {}", holder.as_deref().unwrap_or("a process that could not be found"))]
    PortInUse {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// `process PID (comm)`, if it was found.
        holder: Option<String>,
    },
    /// Two of the mappings given claim the same host port.
    #[error("port {port}/{protocol} of the host is given twice")]
    PortTwice {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// Several steps of taking something down failed; all were tried.
    #[error("{} steps failed: {}", .0.len(), .0.iter().map(|e| describe(e)).collect::<Vec<_>>().join("; "))]
    Several(Vec<NetworkError>),
}

/// An error with its causes in one line, for lists.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => error.to_string(),
    }
}

impl NetworkError {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            NetworkError::PortPublished { holder, .. } => {
                Some(format!("choose another port with -p, or stop container {holder}"))
            }
            NetworkError::PortInUse { .. } => {
                Some("choose another port with -p, or stop that process".into())
            }
            NetworkError::AddressInUse { .. } => {
                Some("choose another address with --ip, or leave it out".into())
            }
            NetworkError::Kernel { source, .. }
                if source.kind() == io::ErrorKind::AddrNotAvailable =>
            {
                Some("publish on an address that this host has, or leave the address out".into())
            }
            NetworkError::NoPorts(_) => {
                Some("leave -p out: the container's ports are reached at its own address".into())
            }
            NetworkError::NoIpv6(_) => {
                Some("make the network with --ipv6, or with an IPv6 --subnet".into())
            }
            NetworkError::NoFreeAddress(_) => Some("remove containers that are not needed".into()),
            NetworkError::Kernel { source, .. }
                if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
            {
                Some("networks need root (CAP_NET_ADMIN)".into())
            }
            NetworkError::Kernel { source, .. }
                if source.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) =>
            {
                Some("the kernel lacks a module: bridge, veth, macvlan or nf_tables".into())
            }
            _ => None,
        }
    }
}

/// Attaches what was tried to a kernel error.
pub(crate) trait Doing<T> {
    fn doing(self, action: &'static str, object: impl ToString) -> Result<T, NetworkError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, object: impl ToString) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError::Kernel { action, object: object.to_string(), source })
    }
}
