//! Who sends what is unread again, and how: the reader of a datagram may answer to the name that it
//! came from.
//!
//! The socket of the tree that has the name sends it, wherever it is connected to. A name that nobody
//! in the tree has is not carried: its socket may be somebody's outside, or closed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use arctern_image::messages::UnixSkEntry;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};

use super::sockopts::Room;
use super::table::Opener;
use super::unix_restore::{Group, Message, full_path, path};
use crate::error::RestoreError;

/// A socket's address as the controller can use it.
pub(super) struct Target {
    pub address: UnixAddr,
    _file: Option<OwnedFd>,
}

impl Group<'_> {
    /// Where a message that is unread in `socket` came from another than `default`'s name: the number
    /// of the socket that has the name, or None where it has no name or nobody in the tree has it.
    pub fn other_sender(
        &self,
        socket: &UnixSkEntry,
        default: &[u8],
        message: &Message,
    ) -> Option<Option<i32>> {
        let from = message.from.as_deref().filter(|from| *from != default)?;
        let datagrams = |m: &UnixSkEntry| m.r#type == libc::SOCK_DGRAM as u32;
        // What is connected takes datagrams of its peer only.
        if !datagrams(socket) || socket.peer != 0 || socket.name.is_empty() {
            return None;
        }
        if from.is_empty() {
            return Some(None);
        }
        let mut members = self.members.iter().filter(|m| datagrams(m) && m.name == from);
        Some(members.find_map(|m| self.made.get(&m.id).copied()))
    }
}

/// Where to send for `socket`: by its abstract name, or through a descriptor of its file, which lies
/// below the stub's root.
pub(super) fn target(o: &Opener<'_>, socket: &UnixSkEntry) -> Result<Target, RestoreError> {
    let failed = |errno: nix::Error| o.failed_here("find the socket by its name")(errno.into());
    if path(socket).is_none() {
        let name = socket.name.get(1..).unwrap_or_default();
        let address = UnixAddr::new_abstract(name).map_err(failed)?;
        return Ok(Target { address, _file: None });
    }
    let root = super::regular::root_of(o.stub.tid())?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = openat2(&root, OsStr::from_bytes(&full_path(socket)), how).map_err(failed)?;
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    let address = UnixAddr::new(through.as_str()).map_err(failed)?;
    Ok(Target { address, _file: Some(file) })
}

/// Sends without waiting. What one sender's buffer does not hold may have come from several: then
/// the buffer is larger for the moment. A message that shows its sender is sent in the name of the
/// process `pid` (as we see it), with the uid and gid of the real sender.
pub(super) fn deliver(
    through: &OwnedFd,
    to: Option<&UnixAddr>,
    message: &Message,
    descriptors: &[OwnedFd],
    pid: i32,
) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sender =
        message.sender.map(|[_, uid, gid]| UnixCredentials::from(libc::ucred { pid, uid, gid }));
    let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control: Vec<ControlMessage<'_>> =
        sender.iter().map(ControlMessage::ScmCredentials).collect();
    if !numbers.is_empty() {
        control.push(ControlMessage::ScmRights(&numbers));
    }
    let mut data = &message.data[..];
    let mut grown = None;
    let result = loop {
        let iov = [io::IoSlice::new(data)];
        match sendmsg(through.as_raw_fd(), &iov, &control, flags, to) {
            Ok(n) if n >= data.len() => break Ok(()),
            Ok(n) => {
                data = &data[n..];
                // They went with the first part.
                control.retain(|control| !matches!(control, ControlMessage::ScmRights(_)));
            }
            Err(nix::Error::EAGAIN | nix::Error::EMSGSIZE | nix::Error::ENOBUFS)
                if grown.is_none() =>
            {
                grown = Some(Room::make(through, libc::SO_SNDBUF)?);
            }
            Err(errno) => break Err(errno.into()),
        }
    };
    if let Some(room) = grown {
        room.give_back()?;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctern_sys::fd::socket_int;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn more_than_one_sender_could_hold_is_delivered() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let through = OwnedFd::from(b);
        let before = socket_int(&through, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
        for _ in 0..5 {
            let message = Message { data: vec![1; 100_000], ..Message::default() };
            deliver(&through, None, &message, &[], 0).unwrap();
        }
        let after = socket_int(&through, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
        assert_eq!(before, after);
        let mut buffer = vec![0; 100_001];
        for _ in 0..5 {
            assert_eq!(a.recv(&mut buffer).unwrap(), 100_000);
        }
    }
}
