//! Frames that mean nothing to anybody: they push a queue, and show by their arrival that what was
//! sent before them has arrived.
//!
//! Their type is one that IEEE 802 leaves to experiments; who receives one drops it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use arctern_sys::packet::{OFFLOADS, PacketSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::mac::Mac;

/// «Local Experimental EtherType 1».
const TYPE: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = 14;
/// Nobody's hardware address.
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 0]);
/// A container that is gone takes nothing any more; it cannot be seen to have gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends frames into a device, and sees them leave by another one.
#[derive(Debug)]
pub(crate) struct Marker {
    sender: PacketSocket,
    into: u32,
    exit: PacketSocket,
    mac: Mac,
    /// They are seen to leave, or to arrive.
    leaving: bool,
}

impl Marker {
    /// About frames for `mac` that are sent into the device `into`, and that another device is to
    /// send on, both of the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of `socket(2)`, `setsockopt(2)` and `bind(2)`.
    pub fn new(into: u32, exit: u32, mac: Mac) -> io::Result<Self> {
        let exit = PacketSocket::tap(exit)?;
        Ok(Marker { sender: PacketSocket::sender()?, into, exit, mac, leaving: true })
    }

    /// As [`Marker::new`], of a device that they arrive at.
    ///
    /// # Errors
    /// As [`Marker::new`].
    pub fn arriving(into: u32, exit: u32, mac: Mac) -> io::Result<Self> {
        Ok(Marker { leaving: false, ..Marker::new(into, exit, mac)? })
    }

    /// Sends one frame as long as may be, which nobody waits for.
    ///
    /// # Errors
    /// Those of `socket(2)` and `sendto(2)`.
    pub fn stop(into: u32, mac: Mac, mtu: u32) -> io::Result<()> {
        let length = usize::try_from(mtu).unwrap_or(0);
        let sender = PacketSocket::sender()?;
        sender.send(into, &frame(mac, length))?;
        close([sender]);
        Ok(())
    }

    /// No more frames are sent.
    pub fn end(self) {
        close([self.sender, self.exit]);
    }

    /// Sends one.
    ///
    /// # Errors
    /// Those of `sendto(2)`.
    pub fn send(&self) -> io::Result<()> {
        self.sender.send(self.into, &frame(self.mac, 46))
    }

    /// Waits until one has left; a second at most.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn wait(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; OFFLOADS + HEADER];
        loop {
            loop {
                match self.exit.receive(&mut buffer) {
                    Ok(received)
                        if received.outgoing == self.leaving
                            && buffer[OFFLOADS + 12..][..2] == TYPE =>
                    {
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // The device is gone, and with it whoever could receive anything.
                    Err(_) => return Ok(()),
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut polled = [PollFd::from_borrowed_fd(self.exit.as_fd(), PollFlags::IN)];
            match poll(&mut polled, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Closes sockets, for which the kernel waits until nobody can be looking at them: some 10 ms each,
/// and others need not wait for that.
fn close<const N: usize>(sockets: [PacketSocket; N]) {
    // Without a thread it is closed here.
    let _ = std::thread::Builder::new().spawn(move || drop(sockets));
}

/// A frame with so many bytes of nothing.
fn frame(to: Mac, length: usize) -> Vec<u8> {
    [&to.0[..], &NOBODY.0, &TYPE, &vec![0; length]].concat()
}
