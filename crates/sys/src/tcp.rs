//! TCP connections from outside: their state (TCP_INFO) and the repair mode, in which a process with
//! CAP_NET_ADMIN reads and sets what the protocol knows.
//!
//! A socket in repair mode sends no data of its own, is closed without a word to the peer, and lets
//! its queues be looked at and filled. It still answers packets that arrive. Entering and leaving it
//! clears SO_REUSEADDR. Sources: tcp(7), linux/tcp.h, linux/sockios.h.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::fd::{ioctl_int, set_socket_int, set_socket_option, socket_int, socket_option};

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const TCP_AO_INFO: i32 = 40;

/// States of a TCP socket, as the kernel numbers them.
pub mod state {
    /// Both directions are open.
    pub const ESTABLISHED: u8 = 1;
    /// Our SYN is on its way.
    pub const SYN_SENT: u8 = 2;
    /// The peer's SYN has come, our answer is on its way.
    pub const SYN_RECV: u8 = 3;
    /// We closed, the peer has not acknowledged that yet.
    pub const FIN_WAIT1: u8 = 4;
    /// We closed, the peer knows and may still send.
    pub const FIN_WAIT2: u8 = 5;
    /// Only the kernel remembers the connection.
    pub const TIME_WAIT: u8 = 6;
    /// No connection.
    pub const CLOSE: u8 = 7;
    /// The peer closed, we may still send.
    pub const CLOSE_WAIT: u8 = 8;
    /// Both closed, the peer first; it has not acknowledged ours yet.
    pub const LAST_ACK: u8 = 9;
    /// Waits for connections.
    pub const LISTEN: u8 = 10;
    /// Both closed, neither has seen the other's acknowledgement.
    pub const CLOSING: u8 = 11;
}

/// Bits of [`Info::options`].
pub mod option {
    /// Timestamps (RFC 7323).
    pub const TIMESTAMPS: u8 = 1;
    /// Selective acknowledgements.
    pub const SACK: u8 = 2;
    /// Window scaling.
    pub const WSCALE: u8 = 4;
}

/// What TCP_INFO says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// See [`state`].
    pub state: u8,
    /// See [`option`].
    pub options: u8,
    /// Shift of the windows that the peer announces.
    pub send_wscale: u8,
    /// Shift of the windows that we announce.
    pub receive_wscale: u8,
    /// Segments that are not acknowledged; of a listener, connections that wait to be accepted.
    pub unacknowledged: u32,
    /// Of a listener, the backlog.
    pub backlog: u32,
    /// Segments that may be on their way at once.
    pub congestion_window: u32,
}

/// Reads TCP_INFO.
pub fn info(socket: impl AsFd) -> io::Result<Info> {
    let mut raw = [0; 104];
    socket_option(socket, TCP, libc::TCP_INFO, &mut raw)?;
    let word = |at: usize| raw[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    Ok(Info {
        state: raw[0],
        options: raw[5],
        send_wscale: raw[6] & 15,
        receive_wscale: raw[6] >> 4,
        unacknowledged: word(24),
        backlog: word(28),
        congestion_window: word(80),
    })
}

/// Bytes in the queues of a connection; a FIN that is in the send queue counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Received and not read (SIOCINQ).
    pub unread: u32,
    /// Written and not acknowledged (SIOCOUTQ).
    pub unacknowledged: u32,
    /// Of these, not sent yet (SIOCOUTQNSD).
    pub unsent: u32,
}

/// Asks for the lengths of the queues.
pub fn lengths(socket: impl AsFd) -> io::Result<Lengths> {
    const SIOCOUTQNSD: u64 = 0x894b;
    let socket = socket.as_fd();
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    Ok(Lengths {
        // SAFETY: SIOCINQ writes one int.
        unread: count(unsafe { ioctl_int(socket, libc::FIONREAD) }?),
        // SAFETY: SIOCOUTQ writes one int.
        unacknowledged: count(unsafe { ioctl_int(socket, libc::TIOCOUTQ) }?),
        // SAFETY: SIOCOUTQNSD writes one int.
        unsent: count(unsafe { ioctl_int(socket, SIOCOUTQNSD) }?),
    })
}

/// Name of the congestion control (TCP_CONGESTION).
pub fn congestion_control(socket: impl AsFd) -> io::Result<String> {
    let mut name = [0; 16];
    let len = socket_option(socket, TCP, libc::TCP_CONGESTION, &mut name)?;
    let text = name[..len].iter().copied().take_while(|b| *b != 0).collect();
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Whether segments are signed with TCP-AO keys (kernel 6.7).
pub fn has_authentication(socket: impl AsFd) -> bool {
    // struct tcp_ao_info_opt; ENOENT without keys.
    socket_option(socket, TCP, TCP_AO_INFO, &mut [0; 64]).is_ok()
}

/// A queue of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What came and was not read.
    Receive = 1,
    /// What was written and not acknowledged.
    Send = 2,
}

/// struct tcp_repair_window: what the two sides allowed each other. Sequence numbers and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Sequence number of the segment that last changed the peer's window.
    pub snd_wl1: u32,
    /// The peer's window.
    pub snd_wnd: u32,
    /// The largest window that the peer ever had.
    pub max_window: u32,
    /// Our window.
    pub rcv_wnd: u32,
    /// What we had received when we last announced it.
    pub rcv_wup: u32,
}

/// An option of the protocol that both sides agreed upon (struct tcp_repair_opt).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// Largest segment that the peer takes.
    Mss(u16),
    /// Shifts of the peer's windows and of ours.
    WindowScale(u8, u8),
    /// SACK.
    Sack,
    /// Timestamps.
    Timestamps,
}

impl Agreed {
    /// Kind as in a TCP header, and value.
    fn code(self) -> [u32; 2] {
        match self {
            Agreed::Mss(size) => [2, size.into()],
            Agreed::WindowScale(send, receive) => [3, u32::from(send) | u32::from(receive) << 16],
            Agreed::Sack => [4, 0],
            Agreed::Timestamps => [8, 0],
        }
    }
}

/// A socket in repair mode. Dropping this leaves the socket as it is.
#[derive(Debug)]
pub struct Repair<'a>(BorrowedFd<'a>);

impl<'a> Repair<'a> {
    /// Enters repair mode. EPERM without CAP_NET_ADMIN over the socket's namespace, and on listeners.
    pub fn enter(socket: &'a impl AsFd) -> io::Result<Self> {
        set_socket_int(socket, TCP, TCP_REPAIR, 1)?;
        Ok(Repair(socket.as_fd()))
    }

    /// A socket that entered it before.
    pub fn of(socket: &'a impl AsFd) -> Self {
        Repair(socket.as_fd())
    }

    /// Leaves repair mode and sends nothing (kernel 4.17).
    pub fn leave(self) -> io::Result<()> {
        const WITHOUT_PROBE: i32 = -1;
        set_socket_int(self.0, TCP, TCP_REPAIR, WITHOUT_PROBE)
    }

    /// Leaves repair mode; an established connection asks its peer at once what it has received (the
    /// probe of a window).
    pub fn leave_and_ask(self) -> io::Result<()> {
        set_socket_int(self.0, TCP, TCP_REPAIR, 0)
    }

    fn select(&self, queue: Queue) -> io::Result<()> {
        set_socket_int(self.0, TCP, TCP_REPAIR_QUEUE, queue as i32)
    }

    /// Sequence number after the last byte of the queue.
    pub fn sequence(&self, queue: Queue) -> io::Result<u32> {
        self.select(queue)?;
        Ok(socket_int(self.0, TCP, TCP_QUEUE_SEQ)? as u32)
    }

    /// Sets the sequence number of the next byte; before the socket is connected.
    pub fn set_sequence(&self, queue: Queue, sequence: u32) -> io::Result<()> {
        self.select(queue)?;
        set_socket_int(self.0, TCP, TCP_QUEUE_SEQ, sequence as i32)
    }

    /// Reads `len` bytes from the front of a queue, which keeps them.
    pub fn peek(&self, queue: Queue, len: usize) -> io::Result<Vec<u8>> {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;
        let mut bytes = vec![0; len];
        if len == 0 {
            return Ok(bytes);
        }
        self.select(queue)?;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let got = recv(self.0.as_raw_fd(), &mut bytes, flags)?;
        if got != len {
            return Err(io::Error::other(format!("the queue has {got} bytes and said {len}")));
        }
        Ok(bytes)
    }

    /// Puts bytes at the end of a queue: as received, or as sent and not acknowledged.
    pub fn fill(&self, queue: Queue, mut bytes: &[u8]) -> io::Result<()> {
        use nix::sys::socket::{MsgFlags, send};
        use std::os::fd::AsRawFd;
        // One allocation in the kernel each.
        const CHUNK: usize = 32 * 1024;
        if bytes.is_empty() {
            return Ok(());
        }
        self.select(queue)?;
        while !bytes.is_empty() {
            let part = &bytes[..bytes.len().min(CHUNK)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let put = send(self.0.as_raw_fd(), part, flags)?;
            bytes = &bytes[put..];
        }
        Ok(())
    }

    /// Selects the send queue: what the socket sends from now on counts as sent and goes nowhere.
    pub fn pretend_to_send(&self) -> io::Result<()> {
        self.select(Queue::Send)
    }

    /// Reads the windows.
    pub fn window(&self) -> io::Result<Window> {
        let mut raw = [0; 20];
        socket_option(self.0, TCP, TCP_REPAIR_WINDOW, &mut raw)?;
        let word =
            |at: usize| raw[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
        Ok(Window {
            snd_wl1: word(0),
            snd_wnd: word(4),
            max_window: word(8),
            rcv_wnd: word(12),
            rcv_wup: word(16),
        })
    }

    /// Sets the windows; EINVAL if they contradict the sequence numbers.
    pub fn set_window(&self, window: &Window) -> io::Result<()> {
        let w = window;
        let words = [w.snd_wl1, w.snd_wnd, w.max_window, w.rcv_wnd, w.rcv_wup];
        let raw: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        set_socket_option(self.0, TCP, TCP_REPAIR_WINDOW, &raw)
    }

    /// Largest segment that the peer takes.
    pub fn mss(&self) -> io::Result<u32> {
        Ok(socket_int(self.0, TCP, libc::TCP_MAXSEG)? as u32)
    }

    /// Sets what was agreed upon; on a connected socket without data.
    pub fn agree(&self, options: &[Agreed]) -> io::Result<()> {
        let raw: Vec<u8> =
            options.iter().flat_map(|o| o.code()).flat_map(u32::to_ne_bytes).collect();
        set_socket_option(self.0, TCP, TCP_REPAIR_OPTIONS, &raw)
    }

    /// The clock of our timestamps; the lowest bit tells microseconds from milliseconds (kernel 6.7).
    pub fn timestamp(&self) -> io::Result<u32> {
        Ok(socket_int(self.0, TCP, TCP_TIMESTAMP)? as u32)
    }

    /// Sets the clock of our timestamps.
    pub fn set_timestamp(&self, timestamp: u32) -> io::Result<()> {
        set_socket_int(self.0, TCP, TCP_TIMESTAMP, timestamp as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn queues_are_looked_at_and_stay() {
        let (mut a, mut b) = pair();
        a.write_all(b"unread").unwrap();
        let mut byte = [0];
        b.peek(&mut byte).unwrap();
        let lengths = lengths(&b).unwrap();
        assert_eq!((lengths.unread, lengths.unacknowledged), (6, 0));
        let Ok(repair) = Repair::enter(&b) else { return };
        assert_eq!(repair.peek(Queue::Receive, 6).unwrap(), b"unread");
        assert!(repair.peek(Queue::Receive, 7).is_err());
        let sequence = repair.sequence(Queue::Receive).unwrap();
        let window = repair.window().unwrap();
        assert!(window.rcv_wup.wrapping_sub(1) < sequence && window.rcv_wnd > 0);
        repair.leave().unwrap();
        let mut text = [0; 6];
        b.read_exact(&mut text).unwrap();
        b.write_all(b"x").unwrap();
        a.read_exact(&mut byte).unwrap();
        assert_eq!((&text, byte[0]), (b"unread", b'x'));
    }

    #[test]
    fn listeners_and_connections_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let waiting = info(&listener).unwrap();
        assert_eq!((waiting.state, waiting.unacknowledged), (state::LISTEN, 1));
        assert!(waiting.backlog >= 128);
        let connected = info(&client).unwrap();
        assert_eq!(connected.state, state::ESTABLISHED);
        assert!(!congestion_control(&client).unwrap().is_empty());
        assert!(!has_authentication(&client));
    }
}
