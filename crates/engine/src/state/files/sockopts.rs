//! Options that every socket has (socket(7)).
//!
//! Restore sets only what differs from a new socket. Buffer sizes that the program did not set
//! itself (SO_BUF_LOCK) are left to the kernel. Refused: eBPF filters, which cannot be read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use arctern_image::messages::SkOptsEntry;
use arctern_sys::fd::{set_socket_int, socket_int, socket_option};

use super::descriptor::Descriptor;
use super::table::Opener;
use crate::error::{CaptureError, Refusal};

const SO_BUF_LOCK: i32 = 72;
const SOL: i32 = libc::SOL_SOCKET;

/// Reads the options. `credentials`: the family passes credentials (unix, netlink).
pub(super) fn capture(
    d: &Descriptor<'_>,
    credentials: bool,
    refusals: &mut Vec<Refusal>,
) -> Result<Option<SkOptsEntry>, CaptureError> {
    match read(&d.file, credentials) {
        Ok(options) => Ok(Some(options)),
        // SO_GET_FILTER of an eBPF filter.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            refusals.push(d.refuse(
                "the socket has an eBPF filter, which cannot be read",
                "detach the filter before the checkpoint",
            ));
            Ok(None)
        }
        Err(e) => Err(d.failed("read its options")(e)),
    }
}

fn read(socket: impl AsFd, credentials: bool) -> io::Result<SkOptsEntry> {
    let socket = socket.as_fd();
    let int = |name| socket_int(socket, SOL, name);
    let flag = |name| int(name).map(|value| Some(value != 0));
    let timeout = |name| -> io::Result<(u64, u64)> {
        let mut value = [0; 16];
        socket_option(socket, SOL, name, &mut value)?;
        let word =
            |at: usize| value[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
        Ok((word(0), word(8)))
    };
    let (snd, rcv) = (timeout(libc::SO_SNDTIMEO)?, timeout(libc::SO_RCVTIMEO)?);
    let mut linger = [0; 8];
    socket_option(socket, SOL, libc::SO_LINGER, &mut linger)?;
    let word =
        |at: usize| linger[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    let mark = int(libc::SO_MARK)? as u32;
    let mut device = [0; 16];
    let len = socket_option(socket, SOL, libc::SO_BINDTODEVICE, &mut device)?;
    let device: Vec<u8> = device[..len].iter().copied().take_while(|b| *b != 0).collect();
    Ok(SkOptsEntry {
        so_sndbuf: int(libc::SO_SNDBUF)? as u32,
        so_rcvbuf: int(libc::SO_RCVBUF)? as u32,
        so_snd_tmo_sec: snd.0,
        so_snd_tmo_usec: snd.1,
        so_rcv_tmo_sec: rcv.0,
        so_rcv_tmo_usec: rcv.1,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: Some(int(libc::SO_PRIORITY)? as u32),
        so_rcvlowat: Some(int(libc::SO_RCVLOWAT)? as u32),
        so_mark: (mark != 0).then_some(mark),
        so_passcred: if credentials { flag(libc::SO_PASSCRED)? } else { None },
        so_passsec: if credentials { flag(libc::SO_PASSSEC)? } else { None },
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_bound_dev: (!device.is_empty()).then(|| String::from_utf8_lossy(&device).into_owned()),
        so_filter: filter(socket)?,
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: Some(int(libc::SO_OOBINLINE)? as u32),
        so_linger: (word(0) != 0).then(|| word(4)),
        so_buf_lock: int(SO_BUF_LOCK).ok().map(|value| value as u32),
        ..SkOptsEntry::default()
    })
}

/// The classic filter of a socket: its instructions as words. SO_GET_FILTER counts in instructions,
/// and tells how many there are when asked for none.
fn filter(socket: impl AsFd) -> io::Result<Vec<u64>> {
    let socket = socket.as_fd();
    let count = arctern_sys::fd::socket_filter(socket, &mut [])?;
    let mut filter = vec![0; count];
    if count != 0 {
        arctern_sys::fd::socket_filter(socket, &mut filter)?;
    }
    Ok(filter.into_iter().map(to_image).collect())
}

/// An instruction as the images have it: code, jt, jf, k from the highest bits down. In memory
/// (struct sock_filter) they lie in this order from the lowest bytes up.
fn to_image(instruction: u64) -> u64 {
    let [code0, code1, jt, jf, k @ ..] = instruction.to_le_bytes();
    let code = u64::from(u16::from_le_bytes([code0, code1]));
    code << 48 | u64::from(jt) << 40 | u64::from(jf) << 32 | u64::from(u32::from_le_bytes(k))
}

fn from_image(word: u64) -> u64 {
    let (code, jt, jf, k) = (word >> 48, word >> 40 & 0xff, word >> 32 & 0xff, word & 0xffff_ffff);
    code | jt << 16 | jf << 24 | k << 32
}

/// Options that must be there before the socket gets its address.
pub(super) fn set_before_bind(o: &mut Opener<'_>, fd: i32, options: &SkOptsEntry) {
    if options.so_reuseport() {
        set(o, fd, SOL, libc::SO_REUSEPORT, 1);
    }
    if let Some(device) = options.so_bound_dev.as_deref().filter(|device| !device.is_empty()) {
        let name = o.c_string(device.as_bytes());
        let args =
            [fd.into(), SOL.into(), libc::SO_BINDTODEVICE.into(), name.into(), name.len().into()];
        o.call(libc::SYS_setsockopt, &args, "bind it to its device");
    }
    if options.so_mark() != 0 {
        set(o, fd, SOL, libc::SO_MARK, options.so_mark() as i32);
    }
}

/// Sizes of the buffers, before queues are filled.
pub(super) fn set_buffers(o: &mut Opener<'_>, fd: i32, options: &SkOptsEntry) {
    // Bits: 1 send buffer, 2 receive buffer set by the program. The kernel doubles what it is given.
    let locked = options.so_buf_lock.unwrap_or(3);
    if locked & 1 != 0 {
        set(o, fd, SOL, libc::SO_SNDBUFFORCE, (options.so_sndbuf / 2) as i32);
    }
    if locked & 2 != 0 {
        set(o, fd, SOL, libc::SO_RCVBUFFORCE, (options.so_rcvbuf / 2) as i32);
    }
    if options.so_buf_lock.is_none() {
        // Images of CRIU before 3.17 do not say; the kernel may tune them as it did.
        o.attempt_set(fd, SOL, SO_BUF_LOCK, 0);
    }
}

/// The sizes and locks that the buffers had, when the queues need no more room.
pub(super) fn put_buffers_back(socket: impl AsFd, options: &SkOptsEntry) -> io::Result<()> {
    let socket = socket.as_fd();
    set_socket_int(socket, SOL, libc::SO_SNDBUFFORCE, (options.so_sndbuf / 2) as i32)?;
    set_socket_int(socket, SOL, libc::SO_RCVBUFFORCE, (options.so_rcvbuf / 2) as i32)?;
    // Kernels before 5.14 tune no buffer whose size was set.
    let _ = set_socket_int(socket, SOL, SO_BUF_LOCK, options.so_buf_lock.unwrap_or(0) as i32);
    Ok(())
}

/// The classic filter in the kernel's order.
pub(super) fn instructions(options: &SkOptsEntry) -> Vec<u64> {
    options.so_filter.iter().copied().map(from_image).collect()
}

/// All other options.
pub(super) fn set_after(o: &mut Opener<'_>, fd: i32, options: &SkOptsEntry) {
    let flags = [
        (libc::SO_PASSCRED, options.so_passcred()),
        (libc::SO_PASSSEC, options.so_passsec()),
        (libc::SO_DONTROUTE, options.so_dontroute()),
        (libc::SO_NO_CHECK, options.so_no_check()),
        (libc::SO_BROADCAST, options.so_broadcast()),
        (libc::SO_KEEPALIVE, options.so_keepalive()),
        (libc::SO_OOBINLINE, options.so_oobinline() != 0),
    ];
    for (name, _) in flags.into_iter().filter(|(_, on)| *on) {
        set(o, fd, SOL, name, 1);
    }
    if options.so_priority() != 0 {
        set(o, fd, SOL, libc::SO_PRIORITY, options.so_priority() as i32);
    }
    if options.so_rcvlowat.is_some_and(|value| value != 1) {
        set(o, fd, SOL, libc::SO_RCVLOWAT, options.so_rcvlowat() as i32);
    }
    if let Some(seconds) = options.so_linger {
        let mut value = [0; 8];
        value[0] = 1;
        value[4..].copy_from_slice(&seconds.to_ne_bytes());
        set_bytes(o, fd, libc::SO_LINGER, &value);
    }
    for (name, seconds, microseconds) in [
        (libc::SO_SNDTIMEO, options.so_snd_tmo_sec, options.so_snd_tmo_usec),
        (libc::SO_RCVTIMEO, options.so_rcv_tmo_sec, options.so_rcv_tmo_usec),
    ] {
        if (seconds, microseconds) != (0, 0) {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&seconds.to_ne_bytes());
            value[8..].copy_from_slice(&microseconds.to_ne_bytes());
            set_bytes(o, fd, name, &value);
        }
    }
    if !options.so_filter.is_empty() {
        // struct sock_fprog: number of instructions, padding, pointer.
        let code: Vec<u8> =
            options.so_filter.iter().flat_map(|w| from_image(*w).to_le_bytes()).collect();
        let code = o.bytes(&code);
        let mut program = [0; 16];
        program[..2].copy_from_slice(&(options.so_filter.len() as u16).to_ne_bytes());
        let program = o.bytes(&program);
        o.batch().pointer(program.at(8), code);
        let args =
            [fd.into(), SOL.into(), libc::SO_ATTACH_FILTER.into(), program.into(), 16.into()];
        o.call(libc::SYS_setsockopt, &args, "attach its filter");
    }
}

/// A buffer that is larger for the moment: what it holds may have taken less room where it came from.
pub(super) struct Room<'a> {
    socket: &'a OwnedFd,
    forced: i32,
    size: i32,
    locked: i32,
}

impl<'a> Room<'a> {
    const LARGE: i32 = 16 << 20;

    /// Enlarges the buffer of `name`: SO_SNDBUF or SO_RCVBUF.
    pub fn make(socket: &'a OwnedFd, name: i32) -> io::Result<Self> {
        let forced =
            if name == libc::SO_SNDBUF { libc::SO_SNDBUFFORCE } else { libc::SO_RCVBUFFORCE };
        let size = socket_int(socket, SOL, name)?;
        let locked = socket_int(socket, SOL, SO_BUF_LOCK).unwrap_or(0);
        set_socket_int(socket, SOL, forced, Self::LARGE)?;
        Ok(Room { socket, forced, size, locked })
    }

    /// Gives the buffer its size again.
    pub fn give_back(self) -> io::Result<()> {
        set_socket_int(self.socket, SOL, self.forced, self.size / 2)?;
        set_socket_int(self.socket, SOL, SO_BUF_LOCK, self.locked)
    }
}

/// Sets an option that is an int.
pub(super) fn set(o: &mut Opener<'_>, fd: i32, level: i32, name: i32, value: i32) {
    let value = o.bytes(&value.to_ne_bytes());
    let args = [fd.into(), level.into(), name.into(), value.into(), 4.into()];
    o.call(libc::SYS_setsockopt, &args, "set a socket option");
}

/// Sets an option that is a name.
pub(super) fn set_text(o: &mut Opener<'_>, fd: i32, level: i32, name: i32, value: &str) {
    let bytes = o.bytes(value.as_bytes());
    let args = [fd.into(), level.into(), name.into(), bytes.into(), value.len().into()];
    o.call(libc::SYS_setsockopt, &args, "set a socket option");
}

fn set_bytes(o: &mut Opener<'_>, fd: i32, name: i32, value: &[u8]) {
    let len = value.len();
    let value = o.bytes(value);
    let args = [fd.into(), SOL.into(), name.into(), value.into(), len.into()];
    o.call(libc::SYS_setsockopt, &args, "set a socket option");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_has_nothing_to_set() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let options = read(&a, true).unwrap();
        assert_eq!(options.so_rcvlowat, Some(1));
        assert_eq!(options.so_buf_lock, Some(0));
        assert_eq!((options.so_passcred, options.so_linger), (Some(false), None));
        assert!(options.so_filter.is_empty());
    }

    #[test]
    fn a_filter_is_read() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        // BPF_RET | BPF_K, everything.
        arctern_sys::fd::attach_socket_filter(&a, &[0xffff_ffff_0000_0006]).unwrap();
        assert_eq!(read(&a, true).unwrap().so_filter, [0x0006_0000_ffff_ffff]);
        let jump = 0x1234_5678_0102_0015;
        assert_eq!(to_image(jump), 0x0015_0201_1234_5678);
        assert_eq!(from_image(to_image(jump)), jump);
    }
}
