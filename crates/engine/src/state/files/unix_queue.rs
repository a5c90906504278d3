//! Unix sockets: what is unread in them. Data belongs to the socket that will read it.
//!
//! Queues are peeked at with SO_PEEK_OFF, which is put back. Descriptors that were sent along and not
//! received (SCM_RIGHTS) are peeked at too: the kernel gives the controller the same descriptions. The
//! sender's credentials are kept where the reader asks for them (SO_PASSCRED).
//!
//! In a stream, recvmsg(2) shows where the bytes end that descriptors came with; where they begin is
//! read from the kernel's own structures ([`arctern_sys::unix_pending`]), where it can be.
//!
//! Not kept: empty messages that were peeked at before, which the kernel does not show a second time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{ScmEntry, SkPacketEntry};
use arctern_sys::Pid;
use arctern_sys::fd::{set_socket_int, socket_int};
use arctern_sys::message::receive;
use arctern_sys::unix_pending::unix_unread;

use super::capture::FileCollector;
use super::unix::{LISTEN, Member, network};
use crate::error::CaptureError;
use crate::tree::FrozenTree;

const SO_PEEK_OFF: i32 = 42;
const SCM_CREDENTIALS: i32 = 2;
/// The largest unread message that is copied, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// An unread message.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub data: Vec<u8>,
    /// Pid as we see it, uid and gid of the sender, where the reader asks for them.
    pub sender: Option<[u32; 3]>,
    /// The name of the sender of a datagram, empty without one.
    pub from: Option<Vec<u8>>,
    /// Descriptors that come with it.
    pub descriptors: Vec<OwnedFd>,
    /// Ids of these, when they are known.
    pub rights: Vec<u32>,
}

impl FileCollector {
    /// Copies what is unread in a unix socket.
    pub(super) fn unread(
        &self,
        tree: &FrozenTree,
        member: &Member,
    ) -> Result<Vec<Message>, CaptureError> {
        let socket = &self.unix.namespaces[&member.namespace][&member.ino];
        let datagrams = socket.kind as i32 == libc::SOCK_DGRAM;
        // For datagrams the kernel tells the size of the first only, which may be 0.
        if u32::from(socket.state) == LISTEN || !datagrams && socket.receive_queue == 0 {
            return Ok(Vec::new());
        }
        let task = &tree.tasks[member.index];
        let file = self
            .again(task, member.fd, member.passed)
            .map_err(task.failed(&member.part, "duplicate it into the controller"))?;
        let messages = socket.kind as i32 != libc::SOCK_STREAM;
        let starts = match member.descriptors {
            0 => Vec::new(),
            _ if messages => Vec::new(),
            _ => starts(task.pid, member).unwrap_or_else(|error| {
                tracing::debug!("{}: where descriptors begin is not shown: {error}", member.part);
                Vec::new()
            }),
        };
        peek(&file, messages, socket.shutdown & 1 != 0, &starts)
            .map_err(task.failed(&member.part, "peek at what it has not read"))
    }

    /// Writes what is unread in the unix sockets.
    pub(super) fn write_queues(
        &self,
        tree: &FrozenTree,
        images: &ImageDir,
    ) -> Result<(), CaptureError> {
        let mut writer = None;
        for member in &self.unix.members {
            let fresh;
            let queue = match &member.queue {
                Some(queue) => queue,
                None => {
                    fresh = self.unread(tree, member)?;
                    &fresh
                }
            };
            for message in queue {
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(images.writer(ImageKind::SkQueues, 0)?),
                };
                let sender = message.sender.map(|sender| inner_credentials(tree, sender));
                let rights = message.rights.clone();
                let rights = ScmEntry { r#type: libc::SCM_RIGHTS as u32, rights };
                writer.record(&SkPacketEntry {
                    id_for: member.id,
                    length: message.data.len() as u32,
                    scm: Some(rights).into_iter().filter(|scm| !scm.rights.is_empty()).collect(),
                    sender: sender.unwrap_or_default(),
                    from: message.from.clone(),
                })?;
                writer.payload(&message.data)?;
            }
        }
        match writer {
            Some(writer) => drop(writer.finish()?),
            None => images.remove(ImageKind::SkQueues, 0)?,
        }
        Ok(())
    }
}

/// Pid inside, uid and gid of a sender.
fn inner_credentials(tree: &FrozenTree, [pid, uid, gid]: [u32; 3]) -> Vec<u32> {
    let inner = tree.tasks.iter().find(|task| task.pid.0 as u32 == pid);
    vec![inner.map_or(0, |task| task.inner_pid) as u32, uid, gid]
}

/// Where in the stream of a socket the bytes begin that descriptors come with.
fn starts(pid: Pid, member: &Member) -> io::Result<Vec<usize>> {
    let namespace = network(pid, member.namespace)?;
    let parts = unix_unread(namespace.as_ref().map(AsFd::as_fd), member.ino)?;
    let mut at = 0;
    let mut starts = Vec::new();
    for (len, descriptors) in parts {
        starts.extend(descriptors.then_some(at));
        at += len;
    }
    Ok(starts)
}

/// Copies what can be read from a socket and leaves it there. `messages`: every message is an item
/// of its own. `ended`: nothing more can come. `starts`: where bytes with descriptors begin, as far
/// as is known.
fn peek(
    socket: impl AsFd,
    messages: bool,
    ended: bool,
    starts: &[usize],
) -> io::Result<Vec<Message>> {
    let socket = socket.as_fd();
    let before = socket_int(socket, libc::SOL_SOCKET, SO_PEEK_OFF)?;
    let result = peek_all(socket, messages, ended, starts);
    set_socket_int(socket, libc::SOL_SOCKET, SO_PEEK_OFF, before)?;
    result
}

fn peek_all(
    socket: impl AsFd,
    messages: bool,
    ended: bool,
    starts: &[usize],
) -> io::Result<Vec<Message>> {
    let socket = socket.as_fd();
    let go_to = |offset: usize| {
        let offset = i32::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        set_socket_int(socket, libc::SOL_SOCKET, SO_PEEK_OFF, offset)
    };
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let mut queue = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    go_to(at)?;
    loop {
        let mut received = match receive(socket, &mut buffer, flags) {
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(queue),
            Err(e) => return Err(e),
        };
        // In a stream, descriptors that come after the end of the buffer are shown with it.
        let full = received.cut || !received.descriptors.is_empty() && received.len == buffer.len();
        if full && buffer.len() < MAX_MESSAGE {
            // The offset has moved past what was seen: look again with more room.
            buffer.resize(buffer.len() * 4, 0);
            go_to(at)?;
            continue;
        }
        if full {
            return Err(io::Error::other(format!("a message has more than {MAX_MESSAGE} bytes")));
        }
        let mut len = received.len;
        let mut descriptors = std::mem::take(&mut received.descriptors);
        // What comes before them was sent by another call.
        let start = starts.iter().find(|start| (at + 1..at + len).contains(start));
        if let Some(start) = start.filter(|_| !descriptors.is_empty()) {
            len = start - at;
            descriptors.clear();
            go_to(*start)?;
        }
        if len == 0 && descriptors.is_empty() && (!messages || ended) {
            return Ok(queue);
        }
        let sender = received.control(libc::SOL_SOCKET, SCM_CREDENTIALS).and_then(|data| {
            let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
            Some([word(0)?, word(4)?, word(8)?])
        });
        let (data, rights) = (buffer[..len].to_vec(), Vec::new());
        let from = messages.then(|| received.name.get(2..).unwrap_or_default().to_vec());
        queue.push(Message { data, sender, from, descriptors, rights });
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn bytes(queue: Vec<Message>) -> Vec<Vec<u8>> {
        queue.into_iter().map(|message| message.data).collect()
    }

    #[test]
    fn a_stream_is_peeked_and_can_still_be_read() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        b.write_all(&data).unwrap();
        for _ in 0..2 {
            assert_eq!(bytes(peek(&a, false, false, &[]).unwrap()).concat(), data);
        }
        b.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(bytes(peek(&a, false, true, &[]).unwrap()).concat(), data);
        assert_eq!(socket_int(&a, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap(), -1);
        let mut read = Vec::new();
        (&a).read_to_end(&mut read).unwrap();
        assert_eq!(read, data);
    }

    #[test]
    fn datagrams_keep_their_limits() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for data in [&b"one"[..], b"", b"three", &[7; 150_000]] {
            b.send(data).unwrap();
        }
        let queue = bytes(peek(&a, true, false, &[]).unwrap());
        assert_eq!(queue.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 5, 150_000]);
        let mut buffer = [0; 10];
        assert_eq!(a.recv(&mut buffer).unwrap(), 3);
    }

    #[test]
    fn descriptors_come_with_the_bytes_up_to_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let send = |data: &[u8], fds: &[i32]| {
            let rights = [ControlMessage::ScmRights(fds)];
            let rights = if fds.is_empty() { &rights[..0] } else { &rights };
            let data = [io::IoSlice::new(data)];
            sendmsg::<()>(b.as_raw_fd(), &data, rights, MsgFlags::empty(), None).unwrap();
        };
        let own = [a.as_raw_fd(), b.as_raw_fd()];
        send(b"before", &[]);
        send(b"one", &own[..1]);
        send(b"two", &own);
        send(b"after", &[]);
        let seen = |starts: &[usize]| {
            let queue = peek(&a, false, false, starts).unwrap();
            let seen = queue.into_iter().map(|m| (m.data, m.descriptors.len()));
            seen.collect::<Vec<_>>()
        };
        let part = |data: &[u8], descriptors| (data.to_vec(), descriptors);
        let glued = [part(b"beforeone", 1), part(b"two", 2), part(b"after", 0)];
        assert_eq!(seen(&[]), glued);
        let apart = [part(b"before", 0), part(b"one", 1), part(b"two", 2), part(b"after", 0)];
        assert_eq!(seen(&[6, 9]), apart);
    }
}
