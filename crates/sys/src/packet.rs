//! packet(7): whole frames sent out of a network device.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// A packet socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket that only sends: protocol 0 is given no packets.
    ///
    /// # Errors
    /// Those of socket(2): `EPERM` without CAP_NET_RAW.
    pub fn sender() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes integers and touches no memory of ours.
        let fd = check(libc::c_long::from(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }))?;
        // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
        Ok(PacketSocket(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends a frame, with its Ethernet header, out of the device with this index.
    ///
    /// # Errors
    /// Those of sendto(2): `ENETDOWN` when the device is down, `EMSGSIZE` for a frame larger than
    /// its MTU.
    pub fn send(&self, device: u32, frame: &[u8]) -> io::Result<()> {
        let index =
            i32::try_from(device).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: both pointers are valid for the lengths given with them, and are only read.
        check(unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        } as libc::c_long)?;
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
