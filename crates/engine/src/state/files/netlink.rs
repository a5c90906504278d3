//! Netlink sockets with nothing to read: address, groups, options.
//!
//! Refused: unread messages, which only the kernel can send, and netfilter sockets, which stand for
//! queues and rules inside the kernel.

use arctern_image::messages::{FdTypes, FileEntry, NetlinkSkEntry};
use arctern_sys::fd::{socket_address, socket_int, socket_option};
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd;

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::sockopts;
use super::table::Opener;
use crate::error::{CaptureError, Refusal, Remedy};

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;

impl FileCollector {
    /// A descriptor of a netlink socket.
    pub(super) fn netlink(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let failed = |e| d.failed("read the socket")(e);
        let protocol = socket_int(&d.file, libc::SOL_SOCKET, libc::SO_PROTOCOL).map_err(failed)?;
        if protocol == libc::NETLINK_NETFILTER {
            refusals.push(d.refuse(
                "a netfilter socket has state inside the kernel that cannot be carried",
                "close it before the checkpoint",
            ));
            return Ok(None);
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        if recv(d.file.as_raw_fd(), &mut [0; 16], flags).is_ok() {
            refusals.push(d.refuse(
                "netlink messages wait to be read and cannot be put back",
                Remedy::try_again("when the program has read them"),
            ));
            return Ok(None);
        }
        let Some(opts) = sockopts::capture(d, true, refusals)? else { return Ok(None) };
        // struct sockaddr_nl: family, padding, port id, groups.
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let own = socket_address(&d.file, false).map_err(failed)?;
        let peer = socket_address(&d.file, true).unwrap_or_default();
        let mut memberships = [0; 128];
        let len = socket_option(&d.file, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut memberships)
            .unwrap_or(0);
        let mut groups: Vec<u32> =
            memberships[..len].chunks_exact(4).map(|chunk| word(chunk, 0)).collect();
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let id = self.new_id();
        let portid = word(&own, 4);
        Ok(Some(FileEntry {
            nlsk: Some(Box::new(NetlinkSkEntry {
                id,
                ino: d.stat.st_ino as u32,
                protocol: protocol as u32,
                // A bound socket is closed to the kernel (TCP_CLOSE), an unbound one unknown.
                state: if portid != 0 { 7 } else { 0 },
                flags: d.flags(),
                portid,
                groups,
                dst_portid: word(&peer, 4),
                dst_group: word(&peer, 8),
                fown: d.fown.clone(),
                opts,
                ns_id: Some(self.options.net_ns_id),
            })),
            ..entry(FdTypes::Netlinksk, id)
        }))
    }
}

fn sockaddr(portid: u32, groups: u32) -> Vec<u8> {
    let mut address = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    address.extend([0; 2]);
    address.extend(portid.to_ne_bytes());
    address.extend(groups.to_ne_bytes());
    address
}

/// Makes a socket: its number.
pub(super) fn open(o: &mut Opener<'_>, socket: &NetlinkSkEntry) -> i32 {
    let args = [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), socket.protocol.into()];
    let fd = o.create(libc::SYS_socket, &args, "make the netlink socket");
    sockopts::set_before_bind(o, fd, &socket.opts);
    sockopts::set_buffers(o, fd, &socket.opts);
    if socket.portid != 0 {
        let address = o.bytes(&sockaddr(socket.portid, 0));
        o.call(libc::SYS_bind, &[fd.into(), address.into(), 12.into()], "bind the netlink socket");
    }
    for (i, word) in socket.groups.iter().enumerate() {
        for bit in (0..32).filter(|bit| word & 1 << bit != 0) {
            let group = i as i32 * 32 + bit + 1;
            sockopts::set(o, fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
        }
    }
    if socket.dst_portid != 0 || socket.dst_group != 0 {
        let address = o.bytes(&sockaddr(socket.dst_portid, socket.dst_group));
        o.call(libc::SYS_connect, &[fd.into(), address.into(), 12.into()], "connect the socket");
    }
    sockopts::set_after(o, fd, &socket.opts);
    o.set_status(fd, socket.flags);
    fd
}
