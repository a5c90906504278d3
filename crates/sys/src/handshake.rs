//! Makes a listener take a connection whose handshake happened elsewhere.
//!
//! A BPF program on the loopback device meets the segment that stands for the last one of the
//! handshake, and tells the kernel what the two sides agreed upon (`bpf_sk_assign_tcp_reqsk`, kernel
//! 6.9, made for SYN cookies): the kernel makes the connection from it, with the sequence numbers of
//! the segment, and puts it into the listener's queue. Needs net.ipv4.tcp_syncookies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::bpf::{Instruction, LINK_CREATE, SKC_TO_TCP_SOCK, load, make};
use crate::btf::Btf;
use crate::tcp::state;

const PROG_TYPE_SCHED_CLS: u64 = 3;
const TCX_INGRESS: u64 = 46;

/// The loopback device has this number in every network namespace.
const LOOPBACK: u64 = 1;

/// Helpers of BPF programs.
const SK_RELEASE: i32 = 86;
const SKC_LOOKUP_TCP: i32 = 99;

/// Offsets in struct __sk_buff and struct bpf_sock.
const SKB_PRIORITY: i16 = 32;
const SOCK_STATE: i16 = 72;

/// What a program says to the device: go on to the next one, pass, drop.
const NEXT: i32 = -1;
const PASS: i32 = 0;
const DROP: i32 = 2;

/// Where on the stack the addresses and what was agreed upon lie.
const TUPLE: i16 = -40;
const AGREED: i16 = -64;

/// What the two sides of a connection agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Largest segment that the peer takes.
    pub mss: u16,
    /// Shifts of the peer's windows and of ours, if windows are scaled.
    pub wscale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// The clock of our timestamps, if there are any; the lowest bit as in
    /// [`crate::tcp::Repair::timestamp`].
    pub timestamp: Option<u32>,
}

/// The kernel's means, found once.
#[derive(Debug)]
pub struct Handshakes {
    assign: u32,
}

impl Handshakes {
    /// Looks whether this kernel has the means, in the calling thread's network namespace.
    pub fn probe() -> io::Result<Self> {
        let cookies = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies")?;
        if cookies.trim() == "0" {
            return Err(io::Error::other("net.ipv4.tcp_syncookies is 0"));
        }
        let found = Handshakes { assign: Btf::load()?.function("bpf_sk_assign_tcp_reqsk")? };
        // The function may be there and its use forbidden. No packet has this priority: the number is
        // compared with its sign.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        drop(found.expect(nobody, nobody, &Agreement::default(), u32::MAX)?);
        Ok(found)
    }

    /// Until the result is dropped, the next segment from `peer` to `local` with this priority (SO_PRIORITY) that
    /// arrives on the loopback device of the calling thread's network namespace, while a listener is
    /// there, makes a connection.
    pub fn expect(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        agreement: &Agreement,
        tag: u32,
    ) -> io::Result<OwnedFd> {
        let program = program(self.assign, &tuple(local, peer)?, &attributes(agreement), tag);
        let program = load(PROG_TYPE_SCHED_CLS, &program, TCX_INGRESS, 0)?;
        let target = program.as_raw_fd() as u64 | LOOPBACK << 32;
        let mut attributes = [target, TCX_INGRESS, 0, 0];
        // SAFETY: the attributes hold numbers only.
        unsafe { make(LINK_CREATE, &mut attributes) }
    }
}

/// struct bpf_sock_tuple: source and destination address, source and destination port.
fn tuple(local: SocketAddr, peer: SocketAddr) -> io::Result<Vec<u8>> {
    let mut bytes = match (peer.ip(), local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    bytes.extend(peer.port().to_be_bytes());
    bytes.extend(local.port().to_be_bytes());
    Ok(bytes)
}

/// struct bpf_tcp_req_attrs: the peer's timestamp and ours, segment size, shifts of our windows and of
/// the peer's, flags for ECN, window scaling, SACK, timestamps and their unit.
fn attributes(agreement: &Agreement) -> Vec<u8> {
    let (send, receive) = agreement.wscale.unwrap_or_default();
    let timestamp = agreement.timestamp.unwrap_or(0);
    let mut bytes = Vec::with_capacity(20);
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(timestamp.to_ne_bytes());
    bytes.extend(agreement.mss.to_ne_bytes());
    bytes.extend([receive, send, 0]);
    bytes.extend([
        u8::from(agreement.wscale.is_some()),
        u8::from(agreement.sack),
        u8::from(agreement.timestamp.is_some()),
        (timestamp & 1) as u8,
    ]);
    bytes.extend([0; 3]);
    bytes
}

/// Stores bytes on the stack, a word each.
fn store(at: i16, bytes: &[u8]) -> Vec<Instruction> {
    let words = bytes.chunks_exact(4).enumerate();
    words
        .map(|(i, chunk)| {
            let word = chunk.try_into().map(i32::from_ne_bytes).unwrap_or_default();
            (0x62, 10, 0, at + 4 * i as i16, word)
        })
        .collect()
}

fn program(assign: u32, tuple: &[u8], attributes: &[u8], tag: u32) -> Vec<Instruction> {
    let mut code = vec![
        (0xbf, 6, 1, 0, 0),            // r6 = packet
        (0x61, 0, 6, SKB_PRIORITY, 0), // r0 = its priority
        (0x15, 0, 0, 2, tag as i32),   // if r0 != tag:
        (0xb7, 0, 0, 0, NEXT),         //   r0 = NEXT
        (0x95, 0, 0, 0, 0),            //   return
    ];
    code.extend(store(TUPLE, tuple));
    code.extend(store(AGREED, attributes));
    code.extend([
        (0xbf, 1, 6, 0, 0),                        // r1 = packet
        (0xbf, 2, 10, 0, 0),                       // r2 = stack
        (0x07, 2, 0, 0, TUPLE.into()),             // r2 += TUPLE
        (0xb7, 3, 0, 0, tuple.len() as i32),       // r3 = its length
        (0xb7, 4, 0, 0, -1),                       // r4 = our network namespace
        (0xb7, 5, 0, 0, 0),                        // r5 = 0
        (0x85, 0, 0, 0, SKC_LOOKUP_TCP),           // r0 = lookup
        (0x55, 0, 0, 2, 0),                        // if r0 == 0:
        (0xb7, 0, 0, 0, DROP),                     //   r0 = DROP
        (0x95, 0, 0, 0, 0),                        //   return
        (0xbf, 7, 0, 0, 0),                        // r7 = socket
        (0x61, 0, 7, SOCK_STATE, 0),               // r0 = its state
        (0x15, 0, 0, 4, i32::from(state::LISTEN)), // if r0 != LISTEN:
        (0xbf, 1, 7, 0, 0),                        //   r1 = socket
        (0x85, 0, 0, 0, SK_RELEASE),               //   release
        (0xb7, 0, 0, 0, PASS),                     //   r0 = PASS
        (0x95, 0, 0, 0, 0),                        //   return
        (0xbf, 1, 7, 0, 0),                        // r1 = socket
        (0x85, 0, 0, 0, SKC_TO_TCP_SOCK),          // r0 = as TCP socket
        (0xb7, 9, 0, 0, 1),                        // r9 = 1
        (0x15, 0, 0, 7, 0),                        // if r0 != 0:
        (0xbf, 1, 6, 0, 0),                        //   r1 = packet
        (0xbf, 2, 0, 0, 0),                        //   r2 = listener
        (0xbf, 3, 10, 0, 0),                       //   r3 = stack
        (0x07, 3, 0, 0, AGREED.into()),            //   r3 += AGREED
        (0xb7, 4, 0, 0, attributes.len() as i32),  //   r4 = its length
        (0x85, 0, 2, 0, assign as i32),            //   r0 = assign
        (0xbf, 9, 0, 0, 0),                        //   r9 = r0
        (0xbf, 1, 7, 0, 0),                        // r1 = socket
        (0x85, 0, 0, 0, SK_RELEASE),               // release
        (0xb7, 0, 0, 0, PASS),                     // r0 = PASS
        (0x15, 9, 0, 1, 0),                        // if r9 != 0:
        (0xb7, 0, 0, 0, DROP),                     //   r0 = DROP
        (0x95, 0, 0, 0, 0),                        // return
    ]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_agreed_upon_has_its_place() {
        let agreement = Agreement {
            mss: 0x1234,
            wscale: Some((7, 9)),
            sack: true,
            timestamp: Some(0xffff_ffff),
        };
        let bytes = attributes(&agreement);
        assert_eq!(bytes[4..8], [255; 4]);
        assert_eq!(bytes[8..], [0x34, 0x12, 9, 7, 0, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(tuple("10.0.0.1:80".parse().unwrap(), "[::1]:1".parse().unwrap()).ok(), None);
    }

    #[test]
    fn the_kernel_takes_the_program() {
        let Ok(handshakes) = Handshakes::probe() else {
            eprintln!("skipped: this kernel has no bpf_sk_assign_tcp_reqsk, or no BTF");
            return;
        };
        for (local, peer) in [("127.0.0.1:1", "127.0.0.1:2"), ("[::1]:1", "[::1]:2")] {
            let agreement = Agreement { mss: 1460, ..Agreement::default() };
            let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
            match handshakes.expect(local, peer, &agreement, 0x7fff_0001) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    eprintln!("skipped: needs root");
                }
                other => drop(other.unwrap()),
            }
        }
    }
}
