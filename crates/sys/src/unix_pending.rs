//! What waits in connections of a unix socket that nobody has accepted yet, and where in a stream the
//! bytes begin that descriptors came with: recvmsg(2) shows neither.
//!
//! Such a connection has no descriptor through which it could be asked. The kernel's own structures
//! are read, by BPF ([`crate::bpf`]), where its description of itself ([`crate::btf`]) says: the
//! listener's queue holds one buffer for each connection, whose socket has the data in its queue.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};

use crate::bpf::{Reader, unix_sockets};
use crate::btf::Btf;

const LISTEN: u8 = 10;
/// How often the sockets are listed to find one.
const MOST_LISTINGS: u32 = 16;
/// Most entries of one queue, and most bytes of one message.
const MOST_ENTRIES: usize = 4096;
const MOST_BYTES: u32 = 4 << 20;

/// A connection that waits to be accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Inode of the socket that has connected, 0 when it is closed.
    pub client: u32,
    /// What it has sent, in order.
    pub messages: Vec<PendingMessage>,
}

/// What was sent at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingMessage {
    /// Its bytes; None where they lie in pages, which are not read (larger messages).
    pub data: Option<Vec<u8>>,
    /// Descriptors come with it.
    pub descriptors: bool,
}

/// Connections that wait at the listening socket with inode `listener`, the next to be accepted
/// first. `namespace`: its network namespace, None for our own. An error where the kernel does not
/// describe itself, or does not run the programs.
pub fn unix_pending(namespace: Option<BorrowedFd<'_>>, listener: u32) -> io::Result<Vec<Pending>> {
    within(namespace, |walk| walk.pending(listener))
}

/// What is unread in the socket with inode `ino`, in order: bytes that were sent at once, and whether
/// descriptors come with them. As [`unix_pending`].
pub fn unix_unread(namespace: Option<BorrowedFd<'_>>, ino: u32) -> io::Result<Vec<(usize, bool)>> {
    within(namespace, |walk| walk.unread(ino))
}

fn within<T: Send>(
    namespace: Option<BorrowedFd<'_>>,
    body: impl FnOnce(&Walk) -> io::Result<T> + Send,
) -> io::Result<T> {
    let Some(namespace) = namespace else { return body(&Walk::new()?) };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            body(&Walk::new()?)
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread failed")))
    })
}

/// Offsets of the fields on the way.
struct Walk {
    reader: Reader,
    /// What lists the sockets.
    list: u32,
    state: u64,
    queue: u64,
    socket: u64,
    /// From struct socket to the number of its inode.
    inode: i64,
    peer: u64,
    next: u64,
    owner: u64,
    len: u64,
    data_len: u64,
    data: u64,
    rights: u64,
    consumed: u64,
}

impl Walk {
    fn new() -> io::Result<Self> {
        let btf = Btf::load()?;
        let at = |structure, field| btf.offset(structure, field);
        let inode = at("socket_alloc", "vfs_inode")? + at("inode", "i_ino")?;
        Ok(Walk {
            reader: Reader::new()?,
            list: btf.function("bpf_iter_unix")?,
            state: at("sock_common", "skc_state")?,
            queue: at("sock", "sk_receive_queue")?,
            socket: at("sock", "sk_socket")?,
            inode: inode as i64 - at("socket_alloc", "socket")? as i64,
            peer: at("unix_sock", "peer")?,
            next: at("sk_buff", "next")?,
            owner: at("sk_buff", "sk")?,
            len: at("sk_buff", "len")?,
            data_len: at("sk_buff", "data_len")?,
            data: at("sk_buff", "data")?,
            rights: at("sk_buff", "cb")? + at("unix_skb_parms", "fp")?,
            consumed: at("sk_buff", "cb")? + at("unix_skb_parms", "consumed")?,
        })
    }

    fn pending(&self, listener: u32) -> io::Result<Vec<Pending>> {
        let sock = self.find(listener)?;
        if self.reader.read(sock + self.state, 1)? != [LISTEN] {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.entries(sock)?.into_iter().map(|entry| self.connection(entry)).collect()
    }

    fn unread(&self, ino: u32) -> io::Result<Vec<(usize, bool)>> {
        self.entries(self.find(ino)?)?.into_iter().map(|entry| self.part(entry)).collect()
    }

    /// The address of the socket with inode `ino`. A list of sockets that come and go may leave one
    /// out, and is then asked for again; what is read of those that have gone is anything, or nothing.
    fn find(&self, ino: u32) -> io::Result<u64> {
        for _ in 0..MOST_LISTINGS {
            let mut sockets = unix_sockets(self.list)?.into_iter();
            let found = sockets.find(|sock| self.inode_of(*sock).is_ok_and(|found| found == ino));
            if let Some(sock) = found {
                return Ok(sock);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn part(&self, entry: u64) -> io::Result<(usize, bool)> {
        let len = self.reader.word(entry + self.len)?;
        let consumed = self.reader.word(entry + self.consumed)?;
        let descriptors = self.reader.pointer(entry + self.rights)? != 0;
        Ok((len.saturating_sub(consumed) as usize, descriptors))
    }

    /// The inode of a socket, 0 without one.
    fn inode_of(&self, sock: u64) -> io::Result<u32> {
        match self.reader.pointer(sock + self.socket)? {
            0 => Ok(0),
            socket => self.reader.word(socket.wrapping_add_signed(self.inode)),
        }
    }

    /// The buffers in a socket's queue, a ring that begins and ends with its head.
    fn entries(&self, sock: u64) -> io::Result<Vec<u64>> {
        let head = sock + self.queue;
        let mut entries = Vec::new();
        let mut at = self.reader.pointer(head)?;
        while at != head {
            if entries.len() == MOST_ENTRIES || at == 0 {
                return Err(io::Error::other("the queue has no end"));
            }
            entries.push(at);
            at = self.reader.pointer(at + self.next)?;
        }
        Ok(entries)
    }

    fn connection(&self, entry: u64) -> io::Result<Pending> {
        let sock = self.reader.pointer(entry + self.owner)?;
        let client = match self.reader.pointer(sock + self.peer)? {
            0 => 0,
            peer => self.inode_of(peer)?,
        };
        let messages = self.entries(sock)?.into_iter().map(|entry| self.message(entry));
        Ok(Pending { client, messages: messages.collect::<io::Result<_>>()? })
    }

    fn message(&self, entry: u64) -> io::Result<PendingMessage> {
        let len = self.reader.word(entry + self.len)?;
        let whole = self.reader.word(entry + self.data_len)? == 0 && len <= MOST_BYTES;
        let descriptors = self.reader.pointer(entry + self.rights)? != 0;
        let data = match whole {
            true => Some(self.reader.read(self.reader.pointer(entry + self.data)?, len as usize)?),
            false => None,
        };
        Ok(PendingMessage { data, descriptors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::Write;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    fn ino(fd: impl AsFd) -> u32 {
        nix::sys::stat::fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn what_waits_is_read_and_stays() {
        let name = format!("arctern-pending-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut first = UnixStream::connect_addr(&address).unwrap();
        first.write_all(b"one").unwrap();
        first.write_all(&[7; 3000]).unwrap();
        let second = UnixStream::connect_addr(&address).unwrap();
        let mut third = UnixStream::connect_addr(&address).unwrap();
        third.write_all(b"from one who has gone").unwrap();
        drop(third);
        let mut fourth = UnixStream::connect_addr(&address).unwrap();
        fourth.write_all(&[1; 30_000]).unwrap();
        let fds = [fourth.as_raw_fd()];
        let (iov, rights) = ([io::IoSlice::new(b"fd")], [ControlMessage::ScmRights(&fds)]);
        sendmsg::<()>(fds[0], &iov, &rights, MsgFlags::empty(), None).unwrap();
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        for namespace in [None, Some(own.as_fd())] {
            let pending = match unix_pending(namespace, ino(&listener)) {
                Ok(pending) => pending,
                Err(error) => {
                    eprintln!("skip: the kernel does not show pending connections: {error}");
                    return;
                }
            };
            let plain =
                |data: &[u8]| PendingMessage { data: Some(data.to_vec()), descriptors: false };
            let messages = vec![plain(b"one"), plain(&[7; 3000])];
            assert_eq!(pending[0], Pending { client: ino(&first), messages });
            assert_eq!(pending[1], Pending { client: ino(&second), messages: vec![] });
            let messages = vec![plain(b"from one who has gone")];
            assert_eq!(pending[2], Pending { client: 0, messages });
            assert_eq!(pending[3].messages[0].data, None);
            assert!(pending[3].messages.last().unwrap().descriptors);
            assert_eq!(pending.len(), 4);
        }
    }

    #[test]
    fn parts_of_a_stream_are_told_apart() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"before").unwrap();
        let fds = [a.as_raw_fd()];
        let (iov, rights) = ([io::IoSlice::new(b"with")], [ControlMessage::ScmRights(&fds)]);
        sendmsg::<()>(b.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        std::io::Read::read_exact(&mut a, &mut [0; 2]).unwrap();
        match unix_unread(None, ino(&a)) {
            Ok(parts) => assert_eq!(parts, [(4, false), (4, true)]),
            Err(error) => eprintln!("skip: the kernel does not show what is unread: {error}"),
        }
    }
}
