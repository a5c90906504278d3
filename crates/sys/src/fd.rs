//! Questions to an open descriptor that no library asks for us: owner of signals, seals of pipes and
//! sockets, terminals. Nothing here changes the open file description unless its name says so.
//!
//! Sources: fcntl(2), ioctl_tty(2), ioctl_ns(2), tee(2), linux/sockios.h, linux/un.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::check;

/// Whom the kernel signals about a descriptor (F_SETOWN, F_SETSIG).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalOwner {
    /// 0 thread, 1 process, 2 process group (F_OWNER_*).
    pub kind: i32,
    /// Its id in our pid namespace, 0 for nobody.
    pub pid: i32,
    /// Signal, 0 for SIGIO.
    pub signal: i32,
    /// Real uid of who set it.
    pub uid: u32,
    /// Effective uid of who set it.
    pub euid: u32,
}

/// Reads the owner of a descriptor; without one the signal does not matter.
pub fn signal_owner(fd: impl AsFd) -> io::Result<SignalOwner> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETOWNER_UIDS: i32 = 17;
    const F_GETSIG: i32 = 11;
    let raw = fd.as_fd().as_raw_fd();
    let mut owner = [0i32; 2];
    // SAFETY: F_GETOWN_EX writes a struct f_owner_ex, two ints, into `owner`.
    check(unsafe { libc::fcntl(raw, F_GETOWN_EX, owner.as_mut_ptr()) }.into())?;
    if owner[1] == 0 {
        return Ok(SignalOwner::default());
    }
    // SAFETY: F_GETSIG touches no memory of ours.
    let signal = check(unsafe { libc::fcntl(raw, F_GETSIG) }.into())? as i32;
    let mut uids = [0u32; 2];
    // SAFETY: F_GETOWNER_UIDS writes two uid_t into `uids`.
    check(unsafe { libc::fcntl(raw, F_GETOWNER_UIDS, uids.as_mut_ptr()) }.into())?;
    Ok(SignalOwner { kind: owner[0], pid: owner[1], signal, uid: uids[0], euid: uids[1] })
}

/// Copies up to `len` bytes from one pipe into another and leaves them in the first (tee(2)).
pub fn tee(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    // SAFETY: tee takes two descriptors and numbers and touches no memory of ours.
    let ret = unsafe {
        libc::tee(from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd(), len, libc::SPLICE_F_NONBLOCK)
    };
    Ok(check(ret as libc::c_long)? as usize)
}

/// An ioctl that writes exactly `N` bytes.
///
/// # Safety
/// The request must write no more than `N` bytes.
unsafe fn ioctl_read<const N: usize>(fd: impl AsFd, request: u64) -> io::Result<[u8; N]> {
    let mut out = [0; N];
    // SAFETY: the caller promises that the request writes at most N bytes, the size of `out`.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, out.as_mut_ptr()) }.into())?;
    Ok(out)
}

/// An ioctl that writes one int.
///
/// # Safety
/// The request must write one int.
pub(crate) unsafe fn ioctl_int(fd: impl AsFd, request: u64) -> io::Result<i32> {
    // SAFETY: passed on to the caller.
    Ok(i32::from_ne_bytes(unsafe { ioctl_read::<4>(fd, request) }?))
}

/// Bytes that can be read at once (FIONREAD).
pub fn readable(fd: impl AsFd) -> io::Result<usize> {
    // SAFETY: FIONREAD writes one int.
    Ok(unsafe { ioctl_int(fd, libc::FIONREAD) }?.max(0) as usize)
}

/// The network namespace of a socket (SIOCGSKNS, kernel 4.10; CAP_NET_ADMIN).
pub fn socket_namespace(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u64 = 0x894c;
    // SAFETY: SIOCGSKNS takes no argument.
    let fd = check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) }.into())?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The file that a unix socket is bound to, as an O_PATH descriptor (SIOCUNIXFILE, kernel 4.16;
/// CAP_NET_ADMIN). ENOENT when it has no path.
pub fn unix_socket_file(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SIOCUNIXFILE: u64 = 0x89e0;
    // SAFETY: SIOCUNIXFILE takes no argument.
    let fd = check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE) }.into())?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Reads a socket option of any shape; returns how many bytes of `out` the kernel filled.
pub fn socket_option(
    socket: impl AsFd,
    level: i32,
    name: i32,
    out: &mut [u8],
) -> io::Result<usize> {
    let mut len = out.len() as libc::socklen_t;
    check(
        // SAFETY: the kernel writes at most `len` bytes into `out` and the new length into `len`.
        unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                name,
                out.as_mut_ptr().cast(),
                &mut len,
            )
        }
        .into(),
    )?;
    Ok((len as usize).min(out.len()))
}

/// Reads a socket option that is an int.
pub fn socket_int(socket: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut out = [0; 4];
    socket_option(socket, level, name, &mut out)?;
    Ok(i32::from_ne_bytes(out))
}

/// Changes a socket option that is an int.
pub fn set_socket_int(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    check(
        // SAFETY: the kernel reads four bytes of `value`.
        unsafe {
            libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), 4)
        }
        .into(),
    )?;
    Ok(())
}

/// Accepts a connection; the descriptor is close-on-exec.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let raw = listener.as_fd().as_raw_fd();
    let none = std::ptr::null_mut::<libc::sockaddr>();
    // SAFETY: without room for an address the kernel writes nothing.
    let fd = unsafe { libc::accept4(raw, none, std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    let fd = check(fd.into())?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Changes a socket option of any shape.
pub fn set_socket_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `len` bytes of `value`, which is how many it has.
    check(unsafe { libc::setsockopt(raw, level, name, value.as_ptr().cast(), len) }.into())?;
    Ok(())
}

/// Reads the classic packet filter of a socket into `out`, one word an instruction; returns how many
/// instructions it has. EACCES for an eBPF filter.
pub fn socket_filter(socket: impl AsFd, out: &mut [u64]) -> io::Result<usize> {
    let mut len = out.len() as libc::socklen_t;
    check(
        // SAFETY: SO_GET_FILTER counts `len` in instructions of eight bytes, which is what `out` holds,
        // and writes nothing when `len` is 0.
        unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                out.as_mut_ptr().cast(),
                &mut len,
            )
        }
        .into(),
    )?;
    Ok(len as usize)
}

/// Attaches a classic packet filter, one word an instruction.
pub fn attach_socket_filter(socket: impl AsFd, filter: &[u64]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr() as *mut libc::sock_filter };
    check(
        // SAFETY: `program` points at `len` instructions of eight bytes, which the kernel only reads;
        // u64 is at least as aligned as struct sock_filter.
        unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        }
        .into(),
    )?;
    Ok(())
}

/// A socket's own address, or its peer's: raw bytes of the sockaddr, family included.
pub fn socket_address(socket: impl AsFd, peer: bool) -> io::Result<Vec<u8>> {
    let mut out = vec![0u8; 128];
    let mut len = out.len() as libc::socklen_t;
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes into `out` and the true length into `len`.
    let ret = unsafe {
        if peer {
            libc::getpeername(raw, out.as_mut_ptr().cast(), &mut len)
        } else {
            libc::getsockname(raw, out.as_mut_ptr().cast(), &mut len)
        }
    };
    check(ret.into())?;
    out.truncate(len as usize);
    Ok(out)
}

/// Gives a socket its own address: raw bytes of the sockaddr.
pub fn bind_socket(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let (raw, len) = (socket.as_fd().as_raw_fd(), address.len() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `address`, which is how many it has.
    check(unsafe { libc::bind(raw, address.as_ptr().cast(), len) }.into())?;
    Ok(())
}

/// Connects a socket to its peer: raw bytes of the sockaddr. Zeros (AF_UNSPEC) take a datagram
/// socket's peer away.
pub fn connect_socket(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let (raw, len) = (socket.as_fd().as_raw_fd(), address.len() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of `address`, which is how many it has.
    check(unsafe { libc::connect(raw, address.as_ptr().cast(), len) }.into())?;
    Ok(())
}

/// Sends a packet to an address: raw bytes of the sockaddr.
pub fn send_packet(socket: impl AsFd, packet: &[u8], address: &[u8]) -> io::Result<()> {
    let (raw, len) = (socket.as_fd().as_raw_fd(), address.len() as libc::socklen_t);
    let (from, to) = (packet.as_ptr().cast(), address.as_ptr().cast());
    // SAFETY: the kernel reads both slices, whose lengths it is given.
    check(unsafe { libc::sendto(raw, from, packet.len(), 0, to, len) } as libc::c_long)?;
    Ok(())
}

/// Opens a file by its handle on the mount that holds `mount` (open_by_handle_at(2);
/// CAP_DAC_READ_SEARCH), as an O_PATH descriptor.
pub fn open_handle(mount: &std::path::Path, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    use nix::fcntl::OFlag;
    const MAX_HANDLE_SZ: usize = 128;
    if handle.len() > MAX_HANDLE_SZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mount = nix::fcntl::open(mount, flags, nix::sys::stat::Mode::empty())?;
    // struct file_handle: length, type, bytes.
    let mut words = [0u32; 2 + MAX_HANDLE_SZ / 4];
    words[0] = handle.len() as u32;
    words[1] = kind as u32;
    for (word, chunk) in words[2..].iter_mut().zip(handle.chunks(4)) {
        let mut bytes = [0; 4];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *word = u32::from_ne_bytes(bytes);
    }
    // SAFETY: `words` holds a struct file_handle with as many bytes as its length says; the kernel
    // only reads it.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            words.as_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Settings of a terminal line: `struct termios` of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termios {
    /// Input, output, control and local modes.
    pub flags: [u32; 4],
    /// Line discipline.
    pub line: u8,
    /// Special characters.
    pub characters: [u8; 19],
}

impl Termios {
    fn from_bytes(bytes: [u8; 36]) -> Self {
        let word = |i: usize| {
            u32::from_ne_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]])
        };
        let mut characters = [0; 19];
        characters.copy_from_slice(&bytes[17..36]);
        Termios { flags: [word(0), word(1), word(2), word(3)], line: bytes[16], characters }
    }

    /// The bytes as the kernel reads them (TCSETS).
    pub fn to_bytes(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        for (i, flags) in self.flags.iter().enumerate() {
            bytes[i * 4..i * 4 + 4].copy_from_slice(&flags.to_ne_bytes());
        }
        bytes[16] = self.line;
        bytes[17..36].copy_from_slice(&self.characters);
        bytes
    }
}

/// What a terminal is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    /// TCGETS.
    pub termios: Termios,
    /// TIOCGLCKTRMIOS.
    pub locked: Termios,
    /// TIOCGWINSZ: rows, columns, pixels.
    pub size: [u16; 4],
    /// TIOCGEXCL.
    pub exclusive: bool,
    /// TIOCGSID, 0 without a session.
    pub session: i32,
    /// TIOCGPGRP, 0 without one.
    pub group: i32,
}

/// Reads a terminal's settings. Session and group are ids in our pid namespace.
pub fn terminal(fd: impl AsFd) -> io::Result<Terminal> {
    const TIOCGLCKTRMIOS: u64 = 0x5456;
    const TIOCGEXCL: u64 = 0x8004_5440;
    let fd = fd.as_fd();
    // SAFETY: TCGETS writes a struct termios of 36 bytes.
    let termios = Termios::from_bytes(unsafe { ioctl_read::<36>(fd, libc::TCGETS) }?);
    // SAFETY: TIOCGLCKTRMIOS writes a struct termios of 36 bytes.
    let locked = unsafe { ioctl_read::<36>(fd, TIOCGLCKTRMIOS) }.map(Termios::from_bytes);
    // SAFETY: TIOCGWINSZ writes four u16.
    let size = unsafe { ioctl_read::<8>(fd, libc::TIOCGWINSZ) }.unwrap_or_default();
    Ok(Terminal {
        termios,
        locked: locked.unwrap_or_default(),
        size: [0, 2, 4, 6].map(|i| u16::from_ne_bytes([size[i], size[i + 1]])),
        // SAFETY: TIOCGEXCL writes one int.
        exclusive: unsafe { ioctl_int(fd, TIOCGEXCL) }.unwrap_or(0) != 0,
        // SAFETY: TIOCGSID writes one int.
        session: unsafe { ioctl_int(fd, libc::TIOCGSID) }.unwrap_or(0),
        // SAFETY: TIOCGPGRP writes one int.
        group: unsafe { ioctl_int(fd, libc::TIOCGPGRP) }.unwrap_or(0),
    })
}

/// What only a pseudo terminal's master knows: index, locked, packet mode.
pub fn terminal_master(fd: impl AsFd) -> io::Result<(u32, bool, bool)> {
    const TIOCGPTLCK: u64 = 0x8004_5439;
    const TIOCGPKT: u64 = 0x8004_5438;
    let fd = fd.as_fd();
    // SAFETY: TIOCGPTN writes one unsigned int.
    let index = unsafe { ioctl_int(fd, libc::TIOCGPTN) }? as u32;
    // SAFETY: TIOCGPTLCK writes one int.
    let locked = unsafe { ioctl_int(fd, TIOCGPTLCK) }? != 0;
    // SAFETY: TIOCGPKT writes one int.
    let packet = unsafe { ioctl_int(fd, TIOCGPKT) }? != 0;
    Ok((index, locked, packet))
}

/// Lets the other side of a pseudo terminal's master be opened (TIOCSPTLCK).
pub fn unlock_terminal(master: impl AsFd) -> io::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    match unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &locked) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_back() {
        let (r, _w) = io::pipe().unwrap();
        assert_eq!(signal_owner(&r).unwrap().pid, 0);
        let me = std::process::id() as i32;
        // SAFETY: F_SETOWN takes an int.
        assert_eq!(unsafe { libc::fcntl(r.as_raw_fd(), libc::F_SETOWN, me) }, 0);
        let owner = signal_owner(&r).unwrap();
        assert_eq!((owner.kind, owner.pid), (1, me));
    }

    #[test]
    fn tee_leaves_the_data() {
        use std::io::{Read, Write};
        let (mut r, mut w) = io::pipe().unwrap();
        let (mut copy, to) = io::pipe().unwrap();
        w.write_all(b"abc").unwrap();
        assert_eq!(tee(&r, &to, 100).unwrap(), 3);
        let mut bytes = [0; 3];
        copy.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        assert_eq!(readable(&r).unwrap(), 3);
        r.read_exact(&mut bytes).unwrap();
        assert_eq!(tee(&r, &to, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn sockets_answer() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(socket_int(&socket, libc::SOL_SOCKET, libc::SO_DOMAIN).unwrap(), libc::AF_INET);
        let address = socket_address(&socket, false).unwrap();
        assert_eq!(&address[2..4], &socket.local_addr().unwrap().port().to_be_bytes());
        set_socket_int(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
        assert_eq!(socket_int(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE).unwrap(), 1);
    }

    #[test]
    fn termios_bytes_round_trip() {
        let mut bytes = [0; 36];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = i as u8;
        }
        assert_eq!(Termios::from_bytes(bytes).to_bytes(), bytes);
    }
}
