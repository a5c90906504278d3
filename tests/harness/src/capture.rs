//! What passes the network of a place, seen by a packet socket: connections that were reset, ICMP
//! errors, and announcements of addresses.

use crate::place::Place;
use crate::process::readable;
use anyhow::{Context, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// `ETH_P_ALL` in network byte order.
const ALL: NonZeroU32 = NonZeroU32::new(3u16.to_be() as u32).unwrap();
const TCP: u8 = 6;

/// A capture that goes on.
#[derive(Debug)]
pub struct Capture {
    stop: OwnedFd,
    thread: JoinHandle<Result<Seen>>,
}

/// What a capture saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Packets in all.
    pub packets: u64,
    /// When each TCP connection was seen first, by sender and receiver of the packet.
    pub connections: BTreeMap<(SocketAddr, SocketAddr), Duration>,
    /// Resets of connections that were open: neither side had closed it, as far as it was seen.
    pub resets: Vec<Packet>,
    /// Resets of connections that one side had closed.
    pub late_resets: Vec<Packet>,
    /// Connections that one side has closed, both ways.
    closed: BTreeSet<(SocketAddr, SocketAddr)>,
    /// ICMP and ICMPv6 errors, with the addresses of the packet they answer.
    pub icmp_errors: Vec<Packet>,
    /// Gratuitous ARP and unsolicited neighbour advertisements: when, address and hardware address.
    pub announcements: Vec<(Duration, IpAddr, [u8; 6])>,
}

/// A packet that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When, after the beginning of the capture.
    pub at: Duration,
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} at {:?}", self.from, self.to, self.at)
    }
}

impl Capture {
    /// Begins to look at every packet of a place, both ways.
    pub fn start(place: &Place) -> Result<Self> {
        let socket = place.inside(|| {
            let socket = rustix::net::socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                Some(Protocol::from_raw(ALL)),
            )
            .context("cannot open a packet socket")?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
            Ok(socket)
        })?;
        // What programs started meanwhile inherit would keep it open.
        let (ended, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let begin = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut frame = [0; 256];
            loop {
                let ready = readable(&[socket.as_fd(), ended.as_fd()], Duration::from_secs(3600))?;
                while let Ok((length, _)) = rustix::net::recv(&socket, &mut frame, RecvFlags::TRUNC)
                {
                    seen.packets += 1;
                    let _ = seen.note(&frame[..length.min(256)], begin.elapsed());
                }
                if ready[1] {
                    return Ok(seen);
                }
            }
        });
        Ok(Self { stop, thread })
    }

    /// Ends it and gives what it saw.
    pub fn finish(self) -> Result<Seen> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow::anyhow!("the capture panicked"))?
    }
}

impl Seen {
    /// Resets of connections that were there before `when`.
    pub fn resets_of_older(&self, when: Duration) -> Vec<&Packet> {
        let first = |from, to| self.connections.get(&(from, to));
        self.resets
            .iter()
            .filter(|reset| {
                let seen = [first(reset.from, reset.to), first(reset.to, reset.from)];
                reset.at >= when && seen.into_iter().flatten().any(|begin| *begin < when)
            })
            .collect()
    }

    fn note(&mut self, frame: &[u8], at: Duration) -> Option<()> {
        let packet = frame.get(14..)?;
        match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
            0x0806 => {
                let (sender, target) = (address4(packet, 14)?, address4(packet, 24)?);
                if sender == target {
                    let mac = packet.get(8..14)?.try_into().ok()?;
                    self.announcements.push((at, sender, mac));
                }
            }
            0x0800 | 0x86dd => self.note_ip(packet, at)?,
            _ => {}
        }
        Some(())
    }

    fn note_ip(&mut self, packet: &[u8], at: Duration) -> Option<()> {
        let (protocol, from, to, body) = split_ip(packet)?;
        match protocol {
            TCP => {
                let (from, to) = ports(from, to, body)?;
                self.connections.entry((from, to)).or_insert(at);
                // SYN begins it anew, FIN closes it.
                let flags = *body.get(13)?;
                if flags & 2 != 0 {
                    self.closed.remove(&(from, to));
                    self.closed.remove(&(to, from));
                }
                if flags & 1 != 0 {
                    self.closed.extend([(from, to), (to, from)]);
                }
                // RST.
                if flags & 4 != 0 {
                    let late = self.closed.contains(&(from, to));
                    let resets = if late { &mut self.late_resets } else { &mut self.resets };
                    resets.push(Packet { at, from, to });
                }
            }
            // Errors of ICMP: unreachable, quench, redirect, time exceeded, parameter problem.
            1 if matches!(body.first()?, 3 | 4 | 5 | 11 | 12) => self.note_error(body, at)?,
            // ICMPv6: errors have numbers below 128.
            58 if *body.first()? < 128 => self.note_error(body, at)?,
            // A neighbour advertisement without the flag «solicited», with the sender's address.
            58 if *body.first()? == 136 && body.get(4)? & 0x40 == 0 => {
                let target = <[u8; 16]>::try_from(body.get(8..24)?).ok()?;
                if body.get(24)? == &2 {
                    let mac = body.get(26..32)?.try_into().ok()?;
                    self.announcements.push((at, IpAddr::from(target), mac));
                }
            }
            _ => {}
        }
        Some(())
    }

    /// An ICMP error quotes the beginning of the packet that it answers.
    fn note_error(&mut self, body: &[u8], at: Duration) -> Option<()> {
        let (_, from, to, quoted) = split_ip(body.get(8..)?)?;
        let (from, to) = ports(from, to, quoted)?;
        self.icmp_errors.push(Packet { at, from, to });
        Some(())
    }
}

/// Protocol, sender, receiver and content of an IP packet.
fn split_ip(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let (from, to) = (address4(packet, 12)?, address4(packet, 16)?);
            Some((*packet.get(9)?, from, to, packet.get(header..)?))
        }
        6 => {
            let address = |at: usize| {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(bytes))
            };
            Some((*packet.get(6)?, address(8)?, address(24)?, packet.get(40..)?))
        }
        _ => None,
    }
}

fn address4(packet: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::from(bytes))
}

fn ports(from: IpAddr, to: IpAddr, body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    Some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Lab, address};
    use std::net::TcpStream;

    #[test]
    fn a_refused_connection_is_a_reset() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            println!("skip: needs root");
            return Ok(());
        }
        let lab = Lab::new()?;
        let (one, two) = (lab.client(1)?, lab.client(2)?);
        let capture = Capture::start(&one)?;
        let target = SocketAddr::new(address(2).into(), 7);
        let refused = one.inside(|| Ok(TcpStream::connect(target).is_err()))?;
        assert!(refused);
        let seen = capture.finish()?;
        assert_eq!(seen.resets.len(), 1, "{seen:?}");
        assert_eq!(seen.resets[0].from, target);
        assert!(seen.resets_of_older(Duration::ZERO).is_empty(), "it is not older than that");
        drop(two);
        Ok(())
    }
}
