//! Packets that came for a container of a segment while it was on its way to another host.
//!
//! Peers send to the hardware address that they know, and the switch leads that to this host until
//! the container is announced somewhere else. By then their timers have backed off, and what they
//! sent last is on this host. So it is written down from the freeze on, and when the container's
//! announcement arrives here, sent after it: to the same hardware address, out of the device that the
//! announcement came in by, with this host as the sender, so that no switch learns a peer in a wrong
//! place. The other host holds it until the container runs. If only other frames of the container's
//! come, the announcement was lost, and it is sent a moment after the first of them.
//!
//! Switches and peers learn it at different times, and frames are under way meanwhile: so it goes on
//! for a while, and sends on what comes at once ([`Forwarder::follow`]). A frame is sent on once: two
//! old hosts on a wire that everybody hears would go on sending it to each other.
//!
//! TCP does not mind what it has seen already, as long as the connection is there. Other protocols
//! may; only TCP is sent on, therefore.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use arctern_sys::packet::{OFFLOADS, PacketSocket};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::error::{Doing, NetworkError};
use crate::mac::Mac;
use crate::network::Network;

/// Most bytes that are kept; older ones go.
const ROOM: usize = 32 << 20;
/// Longer than any frame with the segments that a device has not cut yet.
const FRAME: usize = 72 << 10;
const TCP: u8 = 6;
/// For how long a container that was seen may keep it to itself where it is.
const UNANNOUNCED: Duration = Duration::from_millis(100);

/// What is kept for one container.
#[derive(Debug)]
pub struct Forwarder {
    /// A tap of each device that leads to the segment, with its index and hardware address.
    taps: Vec<(PacketSocket, u32, Mac)>,
    mac: Mac,
    /// Only the container sends from its hardware address. A bridge that holds packets for it also
    /// answers for it when it is asked for.
    alone: bool,
    /// With the time at which each was read.
    frames: VecDeque<(Timespec, Vec<u8>)>,
    bytes: usize,
    /// The tap by which the container was seen, and until when it may announce itself.
    appeared: Option<(usize, Instant)>,
    /// The tap behind which it can be reached: what comes is sent on there.
    seen: Option<usize>,
    /// What was sent on.
    sent: HashSet<u64>,
    hasher: RandomState,
}

/// Why [`Forwarder::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Something can be read from the descriptor that was given.
    Told,
    /// The container has appeared on the segment; what was kept has been sent. What comes after that
    /// is for [`Forwarder::follow`].
    Sent,
    /// The container has appeared on this host. On a bridge that is not noticed.
    Back,
}

impl Network {
    /// Begins to keep what arrives for an attached container. `None` on networks whose containers
    /// are not machines of a segment.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn forwarder(&self, container: &str) -> Result<Option<Forwarder>, NetworkError> {
        if !self.is_lan() {
            return Ok(None);
        }
        let Some(lease) = self.leases()?.remove(container) else { return Ok(None) };
        let mut route = self.route()?;
        let Some(link) = route.link(self.link_name()).doing("look up", self.link_name())? else {
            return Ok(None);
        };
        let mut devices = vec![link.clone()];
        if !self.locks_inside() {
            // The bridge's ports that lead further: those to containers and queues are veth pairs
            // that we have named.
            let ours = |name: &str| {
                ["veth", "hold"].iter().any(|p| name.strip_prefix(p).is_some_and(|r| r.len() == 11))
            };
            let ports = route.ports(link.index).doing("list the ports of", &link.name)?;
            devices = ports.into_iter().filter(|port| !ours(&port.name)).collect();
        }
        let mut taps = Vec::new();
        for device in devices {
            let Some(mac) = device.mac else { continue };
            let tap = PacketSocket::tap(device.index).doing("listen on", &device.name)?;
            taps.push((tap, device.index, mac));
        }
        let alone = self.locks_inside();
        Ok(Some(Forwarder {
            taps,
            mac: lease.mac,
            alone,
            frames: VecDeque::new(),
            bytes: 0,
            appeared: None,
            seen: None,
            sent: HashSet::new(),
            hasher: RandomState::new(),
        }))
    }
}

impl Forwarder {
    /// Drops what was read before an instant of the monotonic clock: the container has received it,
    /// and may have closed the connection since, for which its kernel would refuse it now.
    pub fn forget_before(&mut self, instant: Timespec) {
        while let Some((at, frame)) = self.frames.front()
            && *at < instant
        {
            self.bytes -= frame.len();
            self.frames.pop_front();
        }
    }

    /// Keeps frames until something can be read from `until`, or, if the container is `gone` from
    /// this host, until it appears somewhere.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn run(&mut self, until: BorrowedFd<'_>, gone: bool) -> std::io::Result<Ended> {
        let mut buffer = vec![0; FRAME];
        loop {
            let mut polled = vec![PollFd::from_borrowed_fd(until, PollFlags::IN)];
            for (tap, ..) in &self.taps {
                polled.push(PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN));
            }
            let left = self
                .appeared
                .filter(|_| self.seen.is_none())
                .map(|(number, end)| (number, end.saturating_duration_since(Instant::now())));
            let limit = left.map(|(_, left)| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            });
            match (poll(&mut polled, limit.as_ref()), left) {
                (Ok(0), Some((number, _))) => {
                    self.reach(number);
                    return Ok(Ended::Sent);
                }
                (Ok(_), _) => {}
                (Err(Errno::INTR), _) => continue,
                (Err(e), _) => return Err(e.into()),
            }
            let told = !polled[0].revents().is_empty();
            for number in 0..self.taps.len() {
                if let Some(ended) = self.take(number, &mut buffer, gone) {
                    return Ok(ended);
                }
            }
            if told {
                return Ok(Ended::Told);
            }
        }
    }

    /// Goes on for a while after the container was seen: what still comes here is sent after it at
    /// once.
    ///
    /// # Errors
    /// Those of `timerfd_create(2)` and `poll(2)`.
    pub fn follow(&mut self, time: Duration) -> std::io::Result<()> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        self.run(timer.as_fd(), true).map(drop)
    }

    /// Takes what one tap has.
    fn take(&mut self, number: usize, buffer: &mut [u8], gone: bool) -> Option<Ended> {
        while let Ok(received) = self.taps[number].0.receive(buffer) {
            let bytes = &buffer[..received.length];
            let Some(frame) = bytes.get(OFFLOADS..) else { continue };
            if gone && frame.get(6..12) == Some(&self.mac.0) {
                match received.outgoing {
                    true if self.alone => return Some(Ended::Back),
                    true => continue,
                    false => {}
                }
                if self.seen.is_none() && !announces(frame) {
                    let end = Instant::now() + UNANNOUNCED;
                    self.appeared.get_or_insert((number, end));
                    continue;
                }
                match self.reach(number) {
                    true => return Some(Ended::Sent),
                    false => continue,
                }
            }
            if !received.outgoing && frame.get(..6) == Some(&self.mac.0) && is_tcp(frame) {
                self.bytes += bytes.len();
                self.frames.push_back((clock_gettime(ClockId::Monotonic), bytes.to_vec()));
                while self.bytes > ROOM {
                    self.bytes -= self.frames.pop_front().map_or(self.bytes, |(_, old)| old.len());
                }
                if let Some(seen) = self.seen {
                    self.send(seen);
                }
            }
        }
        None
    }

    /// The container can be reached behind a tap: sends everything after it. Whether that is news.
    fn reach(&mut self, number: usize) -> bool {
        let first = self.seen.replace(number).is_none();
        self.send(number);
        first
    }

    /// Sends everything after the container.
    fn send(&mut self, number: usize) {
        let (tap, device, own) = &self.taps[number];
        for (_, mut frame) in self.frames.drain(..) {
            if !self.sent.insert(self.hasher.hash_one(&frame[OFFLOADS + 14..])) {
                continue;
            }
            frame[OFFLOADS + 6..OFFLOADS + 12].copy_from_slice(&own.0);
            // Lost on the way as any other packet may be.
            let _ = tap.send(*device, &frame);
        }
        self.bytes = 0;
    }
}

/// Whether a frame says where its sender is, without being asked: ARP for its own address (RFC 5227), or
/// a neighbour advertisement (RFC 4861). What is restored sends before that, when its connections are
/// being let go, and receives nothing yet.
fn announces(frame: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    const ADVERTISEMENT: u8 = 136;
    match frame.get(12..14) {
        Some([0x08, 0x06]) => frame.get(28..32).is_some_and(|own| frame.get(38..42) == Some(own)),
        Some([0x86, 0xdd]) => {
            frame.get(14 + 6) == Some(&ICMPV6) && frame.get(14 + 40) == Some(&ADVERTISEMENT)
        }
        _ => false,
    }
}

/// Whether a frame carries TCP over IPv4 or IPv6.
fn is_tcp(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(14 + 9) == Some(&TCP),
        Some([0x86, 0xdd]) => frame.get(14 + 6) == Some(&TCP),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of this type, with bytes at places after its header.
    fn frame(kind: [u8; 2], bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 48];
        frame[12..14].copy_from_slice(&kind);
        bytes.iter().for_each(|(at, byte)| frame[14 + at] = *byte);
        frame
    }

    #[test]
    fn a_container_announces_itself_by_its_own_address_only() {
        let arp = [0x08, 0x06];
        // The last bytes of the sender's and of the target's address.
        assert!(announces(&frame(arp, &[(17, 20), (27, 20)])));
        assert!(!announces(&frame(arp, &[(17, 20), (27, 100)])), "it looks for a peer");
        assert!(announces(&frame([0x86, 0xdd], &[(6, 58), (40, 136)])));
        assert!(!announces(&frame([0x86, 0xdd], &[(6, 58), (40, 135)])), "it looks for a peer");
        assert!(!announces(&frame([0x08, 0x00], &[(9, 6)])), "a segment of a connection");
        assert!(!announces(&[0; 20]) && !announces(&[]));
    }
}
