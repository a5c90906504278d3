//! Links, addresses, routes and neighbours over rtnetlink: what a container network needs of it.
//!
//! Numbers are those of `include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour}.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::mac::Mac;
use crate::netlink::{
    CREATE, DUMP, EXCL, Family, Messages, REPLACE, Socket, as_text, as_u32, find,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

pub(crate) const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
const NUD_STALE: u16 = 4;

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Kind, such as `bridge` or `veth`; empty for physical ones.
    pub kind: String,
    /// Whether it is up.
    pub up: bool,
    /// Its hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// The bridge it belongs to.
    pub master: Option<u32>,
}

/// What a veth pair is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the end in this namespace.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Hardware address of the other end.
    pub peer_mac: Mac,
    /// Namespace of the other end.
    pub peer_netns: BorrowedFd<'a>,
    /// MTU of both, in bytes.
    pub mtu: u32,
}

/// What a macvlan device is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Macvlan<'a> {
    /// Index of the device it shares.
    pub parent: u32,
    /// Its mode, `MACVLAN_MODE_*` of `if_link.h`.
    pub mode: u32,
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
    /// The namespace it is made in.
    pub netns: BorrowedFd<'a>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A handle on the routing tables and links of one network namespace.
#[derive(Debug)]
pub struct Route(pub(crate) Socket);

/// `struct ifinfomsg`.
pub(crate) fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[4..8].copy_from_slice(&index.to_ne_bytes());
    raw[8..12].copy_from_slice(&flags.to_ne_bytes());
    raw[12..16].copy_from_slice(&change.to_ne_bytes());
    raw
}

/// The address family of an address.
fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// The bytes of an address in network order.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `struct rtmsg` for a route of the main table.
fn rtmsg(family: u8, prefix: u8) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0] = family;
    raw[1] = prefix;
    raw[4] = RT_TABLE_MAIN;
    raw[5] = RTPROT_STATIC;
    raw[6] = RT_SCOPE_UNIVERSE;
    raw[7] = RTN_UNICAST;
    raw
}

/// `struct ndmsg` for a neighbour.
fn ndmsg(family: u8, index: u32, state: u16) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0] = family;
    raw[4..8].copy_from_slice(&index.to_ne_bytes());
    raw[8..10].copy_from_slice(&state.to_ne_bytes());
    raw
}

impl Route {
    /// The current thread's network namespace.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub fn open() -> io::Result<Self> {
        Socket::open(Family::Route).map(Route)
    }

    /// Another network namespace.
    ///
    /// # Errors
    /// Those of `setns(2)` and `socket(2)`.
    pub fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        Socket::open_in(Family::Route, netns).map(Route)
    }

    /// The link called `name`; `None` when there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let replies = self.0.request(RTM_GETLINK, 0, &ifinfo(0, 0, 0), |m| {
            m.text(IFLA_IFNAME, name);
        });
        match replies {
            Ok(replies) => {
                Ok(replies.iter().find(|r| r.kind == RTM_NEWLINK).and_then(|r| parse_link(&r.body)))
            }
            Err(e) if e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a bridge that is up, with a hardware address of its own: without one it would take
    /// that of a port and change it as ports come and go.
    ///
    /// # Errors
    /// The kernel's answer, `EEXIST` when the name is taken.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
        self.0
            .request(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, IFF_UP, IFF_UP), |m| {
                m.text(IFLA_IFNAME, name).attr(IFLA_ADDRESS, &mac.0).u32(IFLA_MTU, mtu);
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_KIND, "bridge");
                m.end(info);
            })
            .map(drop)
    }

    /// Makes a veth pair in one request, both ends down, the other one in another namespace.
    ///
    /// # Errors
    /// The kernel's answer, `EEXIST` when a name is taken.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        let netns = u32::try_from(veth.peer_netns.as_raw_fd()).map_err(|_| Errno::BADF)?;
        self.0
            .request(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), |m| {
                m.text(IFLA_IFNAME, veth.name)
                    .attr(IFLA_ADDRESS, &Mac::of_port(veth.name).0)
                    .u32(IFLA_MTU, veth.mtu);
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_KIND, "veth");
                let data = m.nest(IFLA_INFO_DATA);
                let peer = m.nest(VETH_INFO_PEER);
                m.raw(&ifinfo(0, 0, 0))
                    .text(IFLA_IFNAME, veth.peer_name)
                    .u32(IFLA_MTU, veth.mtu)
                    .attr(IFLA_ADDRESS, &veth.peer_mac.0)
                    .u32(IFLA_NET_NS_FD, netns);
                m.end(peer);
                m.end(data);
                m.end(info);
            })
            .map(drop)
    }

    /// Makes a macvlan device in another namespace, down.
    ///
    /// # Errors
    /// The kernel's answer, `EEXIST` when the name is taken there.
    pub fn add_macvlan(&mut self, with: &Macvlan<'_>) -> io::Result<()> {
        let netns = u32::try_from(with.netns.as_raw_fd()).map_err(|_| Errno::BADF)?;
        self.0
            .request(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), |m| {
                m.text(IFLA_IFNAME, with.name)
                    .u32(IFLA_LINK, with.parent)
                    .u32(IFLA_MTU, with.mtu)
                    .attr(IFLA_ADDRESS, &with.mac.0)
                    .u32(IFLA_NET_NS_FD, netns);
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_KIND, "macvlan");
                let data = m.nest(IFLA_INFO_DATA);
                m.u32(IFLA_MACVLAN_MODE, with.mode);
                m.end(data);
                m.end(info);
            })
            .map(drop)
    }

    /// Removes a link; absence is no error. Says whether it was there.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        let deleted = self.0.request(RTM_DELLINK, 0, &ifinfo(0, 0, 0), |m| {
            m.text(IFLA_IFNAME, name);
        });
        match deleted {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Takes a link off its bridge, down, and gives it a name that nobody looks for: much faster
    /// than removing it. Absence is no error. Says whether it was there.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn strand(&mut self, name: &str) -> io::Result<bool> {
        let Some(link) = self.link(name)? else { return Ok(false) };
        let down = ifinfo(link.index, 0, IFF_UP);
        self.0.request(RTM_NEWLINK, 0, &down, |m| {
            m.u32(IFLA_MASTER, 0);
        })?;
        // Down before the new name: kernels before 6.2 refuse to rename what is up.
        self.0.request(RTM_NEWLINK, 0, &down, |m| {
            m.text(IFLA_IFNAME, &format!("gone{}", link.index));
        })?;
        Ok(true)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.0.request(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP, IFF_UP), |_| ()).map(drop)
    }

    /// Waits until a link has its carrier and sends what it is given. The kernel does that some
    /// time after both ends are up, and drops packets until then: the first one of a connection is
    /// sent again only after a second. Since Linux 6.7 the question alone makes it happen; before,
    /// the kernel's own message is waited for.
    ///
    /// # Errors
    /// The kernel's answer; `EAGAIN` after a time in which something is wrong.
    pub fn wait_running(&mut self, index: u32, netns: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if self.is_running(index)? {
            return Ok(());
        }
        let mut changes = Socket::open_link_changes(netns)?;
        while !self.is_running(index)? {
            changes.wait()?;
        }
        Ok(())
    }

    fn is_running(&mut self, index: u32) -> io::Result<bool> {
        let replies = self.0.request(RTM_GETLINK, 0, &ifinfo(index, 0, 0), |_| ())?;
        let state = replies.iter().find_map(|r| find(r.body.get(16..)?, IFLA_OPERSTATE));
        Ok(state == Some(&[IF_OPER_UP]))
    }

    /// Lets a bridge send frames back through the port they came from.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_hairpin(&mut self, port: &str) -> io::Result<()> {
        self.0
            .request(RTM_NEWLINK, 0, &ifinfo(0, 0, 0), |m| {
                m.text(IFLA_IFNAME, port);
                let info = m.nest(IFLA_LINKINFO);
                m.text(IFLA_INFO_SLAVE_KIND, "bridge");
                let data = m.nest(IFLA_INFO_SLAVE_DATA);
                m.attr(IFLA_BRPORT_MODE, &[1]);
                m.end(data);
                m.end(info);
            })
            .map(drop)
    }

    /// Gives a link an address, usable at once: who gives out addresses knows that nobody else has
    /// it. That the link has it already is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn add_address(&mut self, index: u32, address: impl Into<IpNet>) -> io::Result<()> {
        let address = address.into();
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut raw = [0; 8];
        raw[0] = family(address.addr());
        raw[1] = address.prefix_len();
        if let IpNet::V6(_) = address {
            raw[2] = IFA_F_NODAD;
        }
        raw[4..8].copy_from_slice(&index.to_ne_bytes());
        let own = octets(address.addr());
        self.0
            .request(RTM_NEWADDR, CREATE | REPLACE, &raw, |m| {
                m.attr(IFA_LOCAL, &own).attr(IFA_ADDRESS, &own);
                if let IpNet::V4(address) = address {
                    m.attr(IFA_BROADCAST, &address.broadcast().octets());
                }
            })
            .map(drop)
    }

    /// The IPv4 addresses of a link.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<ipnet::Ipv4Net>> {
        let mut raw = [0; 8];
        raw[0] = AF_INET;
        let replies = self.0.request(RTM_GETADDR, DUMP, &raw, |_| ())?;
        let of_link = replies
            .iter()
            .filter(|r| r.kind == RTM_NEWADDR && r.body.get(4..8).and_then(as_u32) == Some(index));
        Ok(of_link
            .filter_map(|r| {
                let local = as_ipv4(find(r.body.get(8..)?, IFA_LOCAL)?)?;
                ipnet::Ipv4Net::new(local, *r.body.get(1)?).ok()
            })
            .collect())
    }

    /// Sets the default route of the gateway's address family.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_default_route(&mut self, gateway: impl Into<IpAddr>) -> io::Result<()> {
        let gateway = gateway.into();
        self.0
            .request(RTM_NEWROUTE, CREATE | REPLACE, &rtmsg(family(gateway), 0), |m| {
                m.attr(RTA_GATEWAY, &octets(gateway));
            })
            .map(drop)
    }

    /// The link that the IPv4 default route leads over; `None` without such a route.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn default_device(&mut self) -> io::Result<Option<Link>> {
        let routes = self.routes()?;
        let default = routes.iter().find(|r| r.get(1) == Some(&0));
        let out = default.and_then(|r| find(r.get(12..)?, RTA_OIF)).and_then(as_u32);
        let Some(index) = out else { return Ok(None) };
        let replies = self.0.request(RTM_GETLINK, 0, &ifinfo(index, 0, 0), |_| ())?;
        Ok(replies.iter().find_map(|r| parse_link(&r.body)))
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn ports(&mut self, bridge: u32) -> io::Result<Vec<Link>> {
        let replies = self.0.request(RTM_GETLINK, DUMP, &ifinfo(0, 0, 0), |_| ())?;
        let links = replies.iter().filter_map(|r| parse_link(&r.body));
        Ok(links.filter(|link| link.master == Some(bridge)).collect())
    }

    /// The bodies of all IPv4 routes.
    fn routes(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut any = [0; 12];
        any[0] = AF_INET;
        let replies = self.0.request(RTM_GETROUTE, DUMP, &any, |_| ())?;
        Ok(replies.into_iter().filter(|r| r.kind == RTM_NEWROUTE).map(|r| r.body).collect())
    }

    /// The destinations of all IPv4 routes, those of local addresses included; no default routes.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn destinations(&mut self) -> io::Result<Vec<ipnet::Ipv4Net>> {
        let routes = self.routes()?;
        Ok(routes
            .iter()
            .filter_map(|body| {
                let to = as_ipv4(find(body.get(12..)?, RTA_DST)?)?;
                ipnet::Ipv4Net::new(to, *body.get(1)?).ok()
            })
            .filter(|net| net.prefix_len() > 0)
            .collect())
    }

    /// Tells a link which hardware address a neighbour has, to be verified at the next use.
    /// An older entry with another address would send packets into the void until it times out.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_neighbour(&mut self, index: u32, ip: impl Into<IpAddr>, mac: Mac) -> io::Result<()> {
        let ip = ip.into();
        self.0
            .request(RTM_NEWNEIGH, CREATE | REPLACE, &ndmsg(family(ip), index, NUD_STALE), |m| {
                m.attr(NDA_DST, &octets(ip)).attr(NDA_LLADDR, &mac.0);
            })
            .map(drop)
    }

    /// Forgets a neighbour. Absence is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn delete_neighbour(&mut self, index: u32, ip: impl Into<IpAddr>) -> io::Result<()> {
        let ip = ip.into();
        let fixed = ndmsg(family(ip), index, 0);
        let deleted = self.0.request(RTM_DELNEIGH, 0, &fixed, |m: &mut Messages| {
            m.attr(NDA_DST, &octets(ip));
        });
        match deleted {
            Err(e) if e.raw_os_error() != Some(Errno::NOENT.raw_os_error()) => Err(e),
            _ => Ok(()),
        }
    }
}

/// A link from the body of an `RTM_NEWLINK`.
pub(crate) fn parse_link(body: &[u8]) -> Option<Link> {
    let info = body.get(16..)?;
    let kind = find(info, IFLA_LINKINFO)
        .and_then(|nested| find(nested, IFLA_INFO_KIND))
        .and_then(as_text)
        .unwrap_or_default();
    Some(Link {
        index: as_u32(body.get(4..8)?)?,
        name: as_text(find(info, IFLA_IFNAME)?)?.to_owned(),
        kind: kind.to_owned(),
        up: as_u32(body.get(8..12)?)? & IFF_UP != 0,
        mac: find(info, IFLA_ADDRESS).and_then(|v| v.try_into().ok()).map(Mac),
        mtu: find(info, IFLA_MTU).and_then(as_u32).unwrap_or(0),
        master: find(info, IFLA_MASTER).and_then(as_u32),
    })
}

fn as_ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
