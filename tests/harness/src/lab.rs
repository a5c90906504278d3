//! Hosts and clients on one segment, as machines on a switch would be.
//!
//! ```text
//! client eth0 ──┐
//! client eth0 ──┼── segment (a bridge in a namespace of its own)
//! host A eth0 ──┤      192.0.2.0/24, fd00:2::/64
//! host B eth0 ──┘
//! ```
//!
//! A host has directories, a network namespace and a mount namespace of its own.

use crate::host::Host;
use crate::place::Place;
use crate::relay::{Relay, Wire};
use anyhow::Result;
use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The segment's IPv4 network.
pub const SUBNET: &str = "192.0.2.0/24";
/// The segment's IPv6 network.
pub const SUBNET6: &str = "fd00:2::/64";

/// The address of the machine with this number.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// The IPv6 address of the machine with this number.
pub fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, number.into())
}

/// A segment.
pub struct Lab {
    segment: Place,
    ports: Cell<u32>,
}

impl Lab {
    /// A segment with nobody on it.
    pub fn new() -> Result<Self> {
        let segment = Place::new()?;
        // The segment is a switch: it has no part in addresses.
        segment.ip("link add lan type bridge")?;
        segment.ip("link set lan up")?;
        Ok(Self { segment, ports: Cell::new(0) })
    }

    /// Puts a place on the segment, by a device `eth0` without an address. Gives the name of the
    /// switch's port.
    pub fn plug(&self, place: &Place) -> Result<String> {
        let number = self.ports.get();
        self.ports.set(number + 1);
        let port = format!("port{number}");
        self.segment
            .ip(&format!("link add {port} type veth peer name eth0 netns {}", place.name()))?;
        self.segment.ip(&format!("link set {port} master lan up"))?;
        place.ip("link set eth0 up")?;
        Ok(port)
    }

    /// Gives a device of a place the addresses of the machine with this number.
    pub fn address(&self, place: &Place, device: &str, number: u8) -> Result<()> {
        place.ip(&format!("address add {}/24 dev {device}", address(number)))?;
        place.ip(&format!("address add {}/64 dev {device} nodad", address6(number)))?;
        Ok(())
    }

    /// A client with the addresses of the machine with this number.
    pub fn client(&self, number: u8) -> Result<Place> {
        let place = Place::new()?;
        self.plug(&place)?;
        self.address(&place, "eth0", number)?;
        Ok(place)
    }

    /// A client whose link gives it `rate` at most, in `tc` notation (`20mbit`).
    pub fn slow_client(&self, number: u8, rate: &str) -> Result<Place> {
        let place = Place::new()?;
        let port = self.plug(&place)?;
        self.address(&place, "eth0", number)?;
        let tbf = format!("qdisc add dev {port} root tbf rate {rate} burst 64k latency 200ms");
        let mut command = self.segment.command("tc");
        crate::host::run(command.args(tbf.split_whitespace()))?;
        Ok(place)
    }

    /// Gives what goes out of a device of a place `rate` at most, in `tc` notation.
    pub fn shape(&self, place: &Place, device: &str, rate: &str) -> Result<()> {
        let tbf =
            format!("qdisc replace dev {device} root tbf rate {rate} burst 64k latency 200ms");
        crate::host::run(place.command("tc").args(tbf.split_whitespace())).map(drop)
    }

    /// A client at the end of a long and lossy wire.
    pub fn far_client(&self, number: u8, wire: Wire) -> Result<(Place, Relay)> {
        let (client, between) = (Place::new()?, Place::new()?);
        self.plug(&between)?;
        between.ip(&format!("link add far type veth peer name eth0 netns {}", client.name()))?;
        between.ip("link set far up")?;
        client.ip("link set eth0 up")?;
        for device in ["eth0", "far"] {
            // The wire says nothing itself.
            between.sysctl(&format!("ipv6/conf/{device}/disable_ipv6"), "1")?;
        }
        self.address(&client, "eth0", number)?;
        Ok((client, Relay::start(between, ["eth0", "far"], wire)?))
    }

    /// A host with the addresses of the machine with this number on `eth0`.
    pub fn host(&self, number: u8) -> Result<Host> {
        let host = Host::with_mounts()?;
        self.plug(host.place())?;
        self.address(host.place(), "eth0", number)?;
        Ok(host)
    }

    /// A host with the addresses of the machine with this number on a bridge `br0` that `eth0` is a
    /// port of.
    pub fn bridged_host(&self, number: u8) -> Result<Host> {
        let host = Host::with_mounts()?;
        let place = host.place();
        self.plug(place)?;
        place.ip("link add br0 type bridge")?;
        place.ip("link set eth0 master br0")?;
        place.ip("link set br0 up")?;
        self.address(place, "br0", number)?;
        Ok(host)
    }
}
