//! packet(7): whole frames from and to network devices.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// Numbers of `include/uapi/linux/if_packet.h`.
const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_VNET_HDR: i32 = 15;
const PACKET_MR_PROMISC: u16 = 1;
const PACKET_OUTGOING: u8 = 4;
const ETH_P_ALL: u16 = 3;

/// Length of what stands before each frame of a [`PacketSocket::tap`]: `struct virtio_net_hdr`.
pub const OFFLOADS: usize = 10;

/// A packet socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the buffer that were filled; a frame that did not fit was cut.
    pub length: usize,
    /// Index of the device.
    pub device: u32,
    /// This host sent it, by this device.
    pub outgoing: bool,
}

#[repr(C)]
struct Membership {
    device: i32,
    kind: u16,
    length: u16,
    address: [u8; 8],
}

impl PacketSocket {
    /// Opens a socket that only sends: protocol 0 is given no packets.
    ///
    /// # Errors
    /// Those of socket(2): `EPERM` without CAP_NET_RAW.
    pub fn sender() -> io::Result<Self> {
        Self::open(0)
    }

    /// Opens a socket that is given every frame of a device, to whomever it is addressed, and does
    /// not wait. What the device's offloads have left undone (segments to be cut, checksums to be
    /// made) stands in [`OFFLOADS`] bytes before each frame, both of those received and of those
    /// sent.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2).
    pub fn tap(device: u32) -> io::Result<Self> {
        let socket = Self::open(libc::SOCK_NONBLOCK)?;
        let device = index(device)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(32i32 << 20))?;
        // What is sent counts until it is received, which where packets are held is later.
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(256i32 << 20))?;
        socket.set(SOL_PACKET, PACKET_VNET_HDR, &1i32)?;
        let membership = Membership { device, kind: PACKET_MR_PROMISC, length: 0, address: [0; 8] };
        socket.set(SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership)?;
        let address = address(device, ETH_P_ALL.to_be());
        // SAFETY: the pointer is valid for the length given with it, and is only read.
        check(libc::c_long::from(unsafe {
            libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), ADDRESS)
        }))?;
        Ok(socket)
    }

    fn open(flags: i32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
        // SAFETY: socket(2) takes integers and touches no memory of ours.
        let fd = check(libc::c_long::from(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }))?;
        // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
        Ok(PacketSocket(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer is valid for the length given with it, and is only read.
        check(libc::c_long::from(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        }))?;
        Ok(())
    }

    /// Receives a frame.
    ///
    /// # Errors
    /// Those of recvfrom(2): `EAGAIN` when there is none, `ENETDOWN` when the device went down.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        // SAFETY: sockaddr_ll is integers only, for which zero is a value.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut size = ADDRESS;
        // SAFETY: all pointers are valid for the lengths given with them, and borrowed for the call.
        let length = check(unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &mut size,
            )
        } as libc::c_long)?;
        Ok(Received {
            length: usize::try_from(length).unwrap_or(0),
            device: u32::try_from(from.sll_ifindex).unwrap_or(0),
            outgoing: from.sll_pkttype == PACKET_OUTGOING,
        })
    }

    /// Sends a frame, with its Ethernet header, out of the device with this index.
    ///
    /// # Errors
    /// Those of sendto(2): `ENETDOWN` when the device is down, `EMSGSIZE` for a frame larger than
    /// its MTU.
    pub fn send(&self, device: u32, frame: &[u8]) -> io::Result<()> {
        let address = address(index(device)?, 0);
        // SAFETY: both pointers are valid for the lengths given with them, and are only read.
        check(unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                ADDRESS,
            )
        } as libc::c_long)?;
        Ok(())
    }
}

const ADDRESS: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn index(device: u32) -> io::Result<i32> {
    i32::try_from(device).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

fn address(index: i32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
