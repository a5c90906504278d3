//! Bridge ports, forwarding entries, queues and neighbours over rtnetlink: what holding packets needs.
//!
//! Numbers are those of `include/uapi/linux/{if_link,if_bridge,neighbour,pkt_sched,rtnetlink}.h`.

use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use crate::mac::Mac;
use crate::netlink::{CREATE, EXCL, REPLACE};
use crate::route::{IFF_UP, Route, ifinfo};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWQDISC: u16 = 36;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BRPORT_MCAST_FLOOD: u16 = 27;
const BRPORT_BCAST_FLOOD: u16 = 30;
const BRPORT_NEIGH_SUPPRESS: u16 = 32;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;

const AF_BRIDGE: u8 = 7;
const NTF_MASTER: u8 = 0x04;
const NTF_STICKY: u8 = 0x40;

/// `NUD_*`: what the kernel believes of a neighbour.
pub mod neighbour {
    /// It answered.
    pub const REACHABLE: u16 = 0x02;
    /// It is used, and asked some time after that.
    pub const STALE: u16 = 0x04;
    /// An entry of a bridge that does not age.
    pub const STATIC: u16 = 0x40;
    /// Never asked and never forgotten.
    pub const PERMANENT: u16 = 0x80;
}

/// How fast a queue lets frames go.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bytes that each frame counts in addition, which paces small ones.
    pub overhead: u16,
    /// Bytes a second.
    pub bytes: u32,
    /// Bytes that may pass at once; no frame may be longer.
    pub burst: u32,
    /// Bytes that wait at most; more are dropped.
    pub limit: u32,
}

/// `struct ndmsg`.
fn ndmsg(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0] = family;
    raw[4..8].copy_from_slice(&index.to_ne_bytes());
    raw[8..10].copy_from_slice(&state.to_ne_bytes());
    raw[10] = flags;
    raw
}

/// Address family and bytes of an address.
fn bytes_of(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (2, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, ip.octets().to_vec()),
    }
}

impl Route {
    /// Makes a veth pair with both ends here and down, the first one a port of a bridge.
    ///
    /// # Errors
    /// The kernel's answer, `EEXIST` when a name is taken.
    pub fn add_pair(&mut self, port: &str, end: &str, bridge: u32, mtu: u32) -> io::Result<()> {
        self.0
            .request(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), |m| {
                let mac = Mac::of_port(port);
                m.text(IFLA_IFNAME, port).attr(IFLA_ADDRESS, &mac.0);
                m.u32(IFLA_MTU, mtu).u32(IFLA_MASTER, bridge);
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_KIND, "veth");
                let data = m.nest(IFLA_INFO_DATA);
                let peer = m.nest(VETH_INFO_PEER);
                m.raw(&ifinfo(0, 0, 0)).text(IFLA_IFNAME, end).u32(IFLA_MTU, mtu);
                m.end(peer);
                m.end(data);
                m.end(info);
            })
            .map(drop)
    }

    /// Makes a link a port of a bridge and brings it up.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn join(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        self.0
            .request(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP, IFF_UP), |m| {
                m.u32(IFLA_MASTER, bridge);
            })
            .map(drop)
    }

    /// Makes a bridge send a port only what its forwarding table leads there, and learn nothing from
    /// it. With `answers`, the bridge itself answers who asks for a neighbour that it knows and that
    /// is behind this port.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_quiet_port(&mut self, index: u32, answers: bool) -> io::Result<()> {
        self.0
            .request(RTM_NEWLINK, 0, &ifinfo(index, 0, 0), |m| {
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_SLAVE_KIND, "bridge");
                let data = m.nest(IFLA_INFO_SLAVE_DATA);
                for off in
                    [BRPORT_LEARNING, BRPORT_UNICAST_FLOOD, BRPORT_MCAST_FLOOD, BRPORT_BCAST_FLOOD]
                {
                    m.attr(off, &[0]);
                }
                m.attr(BRPORT_NEIGH_SUPPRESS, &[answers.into()]);
                m.end(data);
                m.end(info);
            })
            .map(drop)
    }

    /// Queues what a link sends (`tc-tbf(8)`); the queue is made if it is not there.
    ///
    /// # Errors
    /// The kernel's answer, `ENOENT` when it does not know this kind of queue.
    pub fn set_rate(&mut self, index: u32, rate: Rate) -> io::Result<()> {
        /// `TC_LINKLAYER_ETHERNET`: the kernel computes times itself, without a table of ours.
        const ETHERNET: u8 = 1;
        // struct tcmsg: family, index, handle, parent, info.
        let mut message = [0; 20];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        message[12..16].copy_from_slice(&ROOT.to_ne_bytes());
        // struct tc_tbf_qopt: two struct tc_ratespec, limit, buffer, mtu.
        let mut options = [0; 36];
        options[1] = ETHERNET;
        options[2..4].copy_from_slice(&rate.overhead.to_ne_bytes());
        options[8..12].copy_from_slice(&rate.bytes.to_ne_bytes());
        options[24..28].copy_from_slice(&rate.limit.to_ne_bytes());
        let mut set = |flags| {
            self.0.request(RTM_NEWQDISC, flags, &message, |m| {
                m.text(TCA_KIND, "tbf");
                let nest = m.nest(TCA_OPTIONS);
                m.attr(TCA_TBF_PARMS, &options).u32(TCA_TBF_BURST, rate.burst);
                m.end(nest);
            })
        };
        match set(0) {
            // No queue of ours yet.
            Err(_) => set(CREATE | REPLACE).map(drop),
            Ok(_) => Ok(()),
        }
    }

    /// Leads frames for a hardware address to a port of a bridge; `sticks` as long as nobody says
    /// otherwise, wherever frames from that address are seen.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn lead(&mut self, mac: Mac, port: u32, sticks: bool) -> io::Result<()> {
        let (state, flags) = match sticks {
            true => (neighbour::STATIC, NTF_MASTER | NTF_STICKY),
            false => (neighbour::REACHABLE, NTF_MASTER),
        };
        let entry = ndmsg(AF_BRIDGE, port, state, flags);
        self.0
            .request(RTM_NEWNEIGH, CREATE | REPLACE, &entry, |m| {
                m.attr(NDA_LLADDR, &mac.0);
            })
            .map(drop)
    }

    /// Tells a link the hardware address of a neighbour, and what to believe of it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn believe(&mut self, index: u32, ip: IpAddr, mac: Mac, state: u16) -> io::Result<()> {
        let (family, bytes) = bytes_of(ip);
        self.0
            .request(RTM_NEWNEIGH, CREATE | REPLACE, &ndmsg(family, index, state, 0), |m| {
                m.attr(NDA_DST, &bytes).attr(NDA_LLADDR, &mac.0);
            })
            .map(drop)
    }

    /// Forgets a neighbour. Absence is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let (family, bytes) = bytes_of(ip);
        let deleted = self.0.request(RTM_DELNEIGH, 0, &ndmsg(family, index, 0, 0), |m| {
            m.attr(NDA_DST, &bytes);
        });
        match deleted {
            Err(e) if e.raw_os_error() != Some(Errno::NOENT.raw_os_error()) => Err(e),
            _ => Ok(()),
        }
    }
}
