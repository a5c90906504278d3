//! Ways of single addresses over rtnetlink: routes of one address, and rules that lead to a table of
//! their own.
//!
//! Numbers are those of `include/uapi/linux/{rtnetlink,fib_rules}.h`.

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;

use crate::mac::Mac;
use crate::netlink::{CREATE, REPLACE, as_u32, find};
use crate::route::{Route, ifinfo, parse_link};

const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;

const AF_INET: u8 = 2;
const RT_TABLE_UNSPEC: u8 = 0;
const RT_TABLE_MAIN: u32 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const FR_ACT_TO_TBL: u8 = 1;
/// Before the rules of the tables main and default, behind that of local.
const PRIORITY: u32 = 20_000;

/// How a neighbour is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the device.
    pub device: u32,
    /// That device's hardware address.
    pub mac: Mac,
    /// This host's address towards the neighbour.
    pub source: Ipv4Addr,
}

/// `struct rtmsg` of a unicast route; the table is an attribute.
fn rtmsg(prefix: u8) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0] = AF_INET;
    raw[1] = prefix;
    raw[4] = RT_TABLE_UNSPEC;
    raw[5] = RTPROT_STATIC;
    raw[7] = RTN_UNICAST;
    raw
}

fn absent_is_fine<T>(result: io::Result<T>) -> io::Result<()> {
    let absent = [Errno::NOENT, Errno::SRCH].map(|errno| Some(errno.raw_os_error()));
    match result {
        Err(e) if !absent.contains(&e.raw_os_error()) => Err(e),
        _ => Ok(()),
    }
}

impl Route {
    /// How a neighbour is reached; `None` when there is a router in between, or when it is this host.
    ///
    /// # Errors
    /// The kernel's answer, `ENETUNREACH` when there is no way.
    pub fn hop_to(&mut self, neighbour: Ipv4Addr) -> io::Result<Option<Hop>> {
        let mut question = [0; 12];
        question[0] = AF_INET;
        question[1] = 32;
        let replies = self.0.request(RTM_GETROUTE, 0, &question, |m| {
            m.attr(RTA_DST, &neighbour.octets());
        })?;
        let Some(body) = replies.iter().find(|r| r.kind == RTM_NEWROUTE).map(|r| &r.body) else {
            return Ok(None);
        };
        let attributes = body.get(12..).unwrap_or_default();
        let direct = body.get(7) == Some(&RTN_UNICAST) && find(attributes, RTA_GATEWAY).is_none();
        let device = find(attributes, RTA_OIF).and_then(as_u32);
        let source = find(attributes, RTA_PREFSRC).and_then(|v| <[u8; 4]>::try_from(v).ok());
        let (true, Some(device), Some(source)) = (direct, device, source) else { return Ok(None) };
        let replies = self.0.request(RTM_GETLINK, 0, &ifinfo(device, 0, 0), |_| ())?;
        let mac = replies.iter().find_map(|r| parse_link(&r.body)?.mac);
        Ok(mac.map(|mac| Hop { device, mac, source: source.into() }))
    }

    /// Leads packets for one address to a neighbour.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn lead_address(&mut self, ip: Ipv4Addr, via: Ipv4Addr) -> io::Result<()> {
        self.0
            .request(RTM_NEWROUTE, CREATE | REPLACE, &rtmsg(32), |m| {
                m.attr(RTA_DST, &ip.octets()).attr(RTA_GATEWAY, &via.octets());
                m.u32(RTA_TABLE, RT_TABLE_MAIN);
            })
            .map(drop)
    }

    /// Takes [`Route::lead_address`] back. Absence is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget_address(&mut self, ip: Ipv4Addr, via: Ipv4Addr) -> io::Result<()> {
        absent_is_fine(self.0.request(RTM_DELROUTE, 0, &rtmsg(32), |m| {
            m.attr(RTA_DST, &ip.octets()).attr(RTA_GATEWAY, &via.octets());
            m.u32(RTA_TABLE, RT_TABLE_MAIN);
        }))
    }

    /// Sends packets of one address that carry the mark `id` to a neighbour, by a table of that number.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn lead_marked(&mut self, ip: Ipv4Addr, id: u32, via: Ipv4Addr) -> io::Result<()> {
        self.forget_marked(ip, id)?;
        self.0.request(RTM_NEWROUTE, CREATE | REPLACE, &rtmsg(0), |m| {
            m.attr(RTA_GATEWAY, &via.octets()).u32(RTA_TABLE, id);
        })?;
        self.rule(RTM_NEWRULE, CREATE, ip, id)
    }

    /// Takes [`Route::lead_marked`] back. Absence is no error.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn forget_marked(&mut self, ip: Ipv4Addr, id: u32) -> io::Result<()> {
        absent_is_fine(self.rule(RTM_DELRULE, 0, ip, id))?;
        absent_is_fine(self.0.request(RTM_DELROUTE, 0, &rtmsg(0), |m| {
            m.u32(RTA_TABLE, id);
        }))
    }

    fn rule(&mut self, kind: u16, flags: u16, ip: Ipv4Addr, id: u32) -> io::Result<()> {
        // struct fib_rule_hdr: family, lengths of destination and source, tos, table, two unused,
        // action, flags.
        let header = [AF_INET, 0, 32, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        self.0
            .request(kind, flags, &header, |m| {
                m.attr(FRA_SRC, &ip.octets());
                m.u32(FRA_PRIORITY, PRIORITY).u32(FRA_FWMARK, id).u32(FRA_FWMASK, u32::MAX);
                m.u32(FRA_TABLE, id);
            })
            .map(drop)
    }
}
