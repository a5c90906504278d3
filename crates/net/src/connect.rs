//! Connecting a network namespace: its device, addresses and routes, until packets pass.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::announce::announce;
use crate::error::{Doing, NetworkError};
use crate::inside::{hide, lock};
use crate::mac::Mac;
use crate::route::{Macvlan, Route, Veth};
use crate::state::Lease;

/// What a container is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    /// The bridge, or the device that macvlan devices share.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// MTU of the containers' devices, in bytes.
    pub mtu: u32,
    pub subnet: Ipv4Net,
    pub gateway: Option<Ipv4Addr>,
    pub subnet6: Option<Ipv6Net>,
    pub gateway6: Option<Ipv6Addr>,
    /// The gateways' hardware address, if it is known.
    pub gateway_mac: Option<Mac>,
}

/// What matters when a container comes to a bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// The bridge also routes and translates.
    pub ours: bool,
    /// The container is locked: this host has been told where it is, for as long as that stands.
    pub is_locked: bool,
}

/// Makes a veth pair whose end in the namespace has its addresses; no frame passes it yet.
pub(crate) fn veth(
    route: &mut Route,
    netns: BorrowedFd<'_>,
    ground: &Ground,
    lease: &Lease,
) -> Result<(), NetworkError> {
    let veth = Veth {
        name: &lease.host_veth,
        peer_name: &lease.ifname,
        peer_mac: lease.mac,
        peer_netns: netns,
        mtu: ground.mtu,
    };
    match route.add_veth(&veth) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a command that was killed: the name is derived from the container's id.
            route.delete_link(&lease.host_veth).doing("remove", &lease.host_veth)?;
            route.add_veth(&veth).doing("make veth pair", &lease.host_veth)?;
        }
        other => other.doing("make veth pair", &lease.host_veth)?,
    }
    inside(netns, ground, lease)
}

/// Connects a veth pair to a bridge, and tells of it.
pub(crate) fn veth_appears(
    route: &mut Route,
    netns: BorrowedFd<'_>,
    ground: &Ground,
    lease: &Lease,
    way: Way,
) -> Result<(), NetworkError> {
    let host_end = index(route, &lease.host_veth)?;
    route.join(host_end, ground.index).doing("connect", &lease.host_veth)?;
    if way.ours && bridge_filters_ip() {
        // Translation then happens before the bridge decides, so a container that uses its own
        // published port gets its frames bridged back to itself instead of routed.
        route.set_hairpin(&lease.host_veth).doing("set hairpin mode of", &lease.host_veth)?;
    }
    let eth = runs(netns, lease)?;
    // One after the other: the bridge forwards to this end when that runs, and has a carrier itself
    // when it forwards to anything.
    route.wait_running(host_end, None).doing("see the carrier of", &lease.host_veth)?;
    route.wait_running(ground.index, None).doing("see the carrier of", &ground.name)?;
    if way.ours && !way.is_locked {
        for ip in lease.addresses() {
            route.set_neighbour(ground.index, ip, lease.mac).doing("announce", ip)?;
        }
    }
    // What a locked container sends is dropped: the bridge speaks for it.
    let (through, device) = if way.is_locked { (None, ground.index) } else { (Some(netns), eth) };
    announce(through, device, lease.mac, lease.addresses()).doing("announce", lease.ip)
}

/// Makes a macvlan device, down; it is locked and hidden, if it shall be.
pub(crate) fn macvlan(
    route: &mut Route,
    netns: BorrowedFd<'_>,
    ground: &Ground,
    lease: &Lease,
    mode: u32,
    is_locked: bool,
) -> Result<(), NetworkError> {
    let device = Macvlan {
        parent: ground.index,
        mode,
        name: &lease.ifname,
        mac: lease.mac,
        netns,
        mtu: ground.mtu,
    };
    route.add_macvlan(&device).doing("make a macvlan device on", &ground.name)?;
    if is_locked {
        lock(netns)?;
        hide(netns, &lease.ifname)?;
    }
    Ok(())
}

/// Brings a macvlan device up with its addresses. It is announced, unless it is locked.
pub(crate) fn macvlan_appears(
    netns: BorrowedFd<'_>,
    ground: &Ground,
    lease: &Lease,
    is_locked: bool,
) -> Result<(), NetworkError> {
    inside(netns, ground, lease)?;
    let eth = runs(netns, lease)?;
    if is_locked {
        // What follows the announcement would be dropped: it is made when the lock is opened.
        return Ok(());
    }
    announce(Some(netns), eth, lease.mac, lease.addresses()).doing("announce", lease.ip)
}

/// Announces a container that is connected.
pub(crate) fn announce_inside(netns: BorrowedFd<'_>, lease: &Lease) -> Result<(), NetworkError> {
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    let eth = index(&mut inside, &lease.ifname)?;
    announce(Some(netns), eth, lease.mac, lease.addresses()).doing("announce", lease.ip)
}

/// Waits until the inner end has its carrier. Gives its index.
fn runs(netns: BorrowedFd<'_>, lease: &Lease) -> Result<u32, NetworkError> {
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    let eth = index(&mut inside, &lease.ifname)?;
    inside.wait_running(eth, Some(netns)).doing("see the carrier of", &lease.ifname)?;
    Ok(eth)
}

/// Sets addresses and routes of the inner end and brings it up.
fn inside(netns: BorrowedFd<'_>, ground: &Ground, lease: &Lease) -> Result<(), NetworkError> {
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    let loopback = index(&mut inside, "lo")?;
    let eth = index(&mut inside, &lease.ifname)?;
    inside.set_up(loopback).doing("bring up", "lo")?;
    inside.set_up(eth).doing("bring up", &lease.ifname)?;
    let address = Ipv4Net::new(lease.ip, ground.subnet.prefix_len())
        .map_err(|_| NetworkError::SubnetTooSmall(ground.subnet))?;
    inside.add_address(eth, IpNet::from(address)).doing("set address", lease.ip)?;
    let address6 = lease
        .ip6
        .zip(ground.subnet6)
        .and_then(|(ip, subnet)| Ipv6Net::new(ip, subnet.prefix_len()).ok());
    if let Some(address) = address6 {
        inside.add_address(eth, IpNet::from(address)).doing("set address", address.addr())?;
    }
    // A route needs a link that is up, not one that runs.
    let gateways = [
        ground.gateway.map(IpAddr::from),
        ground.gateway6.filter(|_| address6.is_some()).map(IpAddr::from),
    ];
    for gateway in gateways.into_iter().flatten() {
        inside.set_default_route(gateway).doing("set default route", gateway)?;
        if let Some(mac) = ground.gateway_mac {
            // Answers to a thousand clients that come at once would not all wait for a question.
            inside.set_neighbour(eth, gateway, mac).doing("tell the address of", gateway)?;
        }
    }
    Ok(())
}

/// The index of a link that must be there.
pub(crate) fn index(route: &mut Route, name: &str) -> Result<u32, NetworkError> {
    let link = route.link(name).doing("look up", name)?;
    link.map(|l| l.index).ok_or_else(|| NetworkError::Kernel {
        action: "look up",
        object: name.to_owned(),
        source: Errno::NODEV.into(),
    })
}

/// Brings up the loopback device of a network namespace that has nothing else (`--network none`).
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn bring_up_loopback(netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let mut inside = Route::open_in(netns).doing("enter", "the container's network namespace")?;
    match inside.link("lo").doing("look up", "lo")? {
        Some(loopback) => inside.set_up(loopback.index).doing("bring up", "lo"),
        None => Ok(()),
    }
}

/// Whether bridged IPv4 packets pass the IP hooks of netfilter (module br_netfilter).
fn bridge_filters_ip() -> bool {
    std::fs::read("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok_and(|v| v.starts_with(b"1"))
}
