//! Unix sockets that are connected to a socket outside of the tree: capture, by policy.
//!
//! Refused, unless the caller says otherwise ([`ExternalUnix`]): closed, the other end is gone after
//! the restore, what it had sent can still be read; reconnected, the restore connects to the other
//! end's name anew, and the program there sees one connection end and another begin.

use std::collections::HashMap;
use std::path::Path;

use arctern_image::messages::{FdTypes, FileEntry, FownEntry, UnixSkEntry};
use arctern_sys::diag::{UnixSocket, unix_sockets};
use arctern_sys::proc;
use nix::sys::stat::stat;

use super::capture::FileCollector;
use super::descriptor::entry;
use super::unix::{ESTABLISHED, EXTERNAL, LISTEN, Member, shown};
use crate::error::Remedy;
use crate::options::{External, ExternalUnix};
use crate::tree::FrozenTask;

/// What becomes of the other end.
pub(super) enum Outside {
    /// It is closed after the restore.
    Closed,
    /// The restore connects to this socket's name.
    Named(UnixSocket),
}

/// The socket at the other end of `member`'s, as its inode: the peer, or the listener that has not
/// accepted it yet. None: there is none.
pub(super) fn other_end(member: &Member, sockets: &HashMap<u32, UnixSocket>) -> Option<u32> {
    let socket = &sockets[&member.ino];
    if let Some(peer) = socket.peer.filter(|peer| *peer != 0) {
        return Some(peer);
    }
    let mut listeners = sockets.values().filter(|other| u32::from(other.state) == LISTEN);
    listeners.find(|listener| listener.waiting.contains(&member.ino)).map(|listener| listener.ino)
}

impl FileCollector {
    /// What is done about the other end of a socket, which is outside of the tree and has inode
    /// `peer`. The error is a refusal: cause and remedy.
    pub(super) fn outside(
        &self,
        task: &FrozenTask,
        socket: &UnixSocket,
        peer: u32,
        sockets: &HashMap<u32, UnixSocket>,
    ) -> Result<Outside, (String, Remedy)> {
        let declared = self.options.externals.contains(&External::Unix { ino: peer.into() });
        let policy = if declared { ExternalUnix::Reconnect } else { self.options.external_unix };
        // Paths lead to sockets of other network namespaces: a container's to those of the host.
        let own = || unix_sockets(None).unwrap_or_default();
        let other = sockets.get(&peer).cloned().or_else(|| own().remove(&peer));
        let name = other.as_ref().map_or_else(|| "unknown".to_owned(), |other| shown(&other.name));
        let whom = format!("a socket outside of the tree ({name}, inode {peer})");
        let refuse =
            |why: &str, remedy: Remedy| Err((format!("it is connected to {whom}{why}"), remedy));
        let otherwise = "include the other process, or let the connection be closed \
                         (--ext-unix-sk=close)";
        match policy {
            ExternalUnix::Close => return Ok(Outside::Closed),
            ExternalUnix::Reconnect => {}
            ExternalUnix::Refuse => {
                let remedy = "include the other process; or connect to its name again \
                              (--ext-unix-sk) or let the connection be closed \
                              (--ext-unix-sk=close)";
                return refuse("", remedy.into());
            }
        }
        let Some(other) = other.filter(|other| !other.name.is_empty()) else {
            return refuse(", which cannot be connected to again by name", otherwise.into());
        };
        if socket.kind as i32 != libc::SOCK_DGRAM {
            let listens = |s: &&UnixSocket| {
                u32::from(s.state) == LISTEN && s.kind == other.kind && s.name == other.name
            };
            if !sockets.values().any(|s| listens(&s)) && !own().values().any(|s| listens(&s)) {
                return refuse(", and nobody listens under that name", otherwise.into());
            }
            if socket.receive_queue != 0 {
                let remedy = Remedy::try_again("when the program has read what was sent to it");
                return refuse(", which has sent what is unread", remedy);
            }
        }
        if !reachable(task, &other.name) {
            return refuse(", whose name leads nowhere in the tree", otherwise.into());
        }
        Ok(Outside::Named(other))
    }

    /// Lists a socket that lives outside, so that `by` can be connected to its name again.
    pub(super) fn add_external(&mut self, by: u32, peer: &UnixSocket) {
        if let Some(socket) = self.usk_mut(by) {
            socket.peer = peer.ino;
        }
        let known = |file: &FileEntry| file.usk.as_deref().is_some_and(|usk| usk.ino == peer.ino);
        if self.files.iter().any(known) {
            return;
        }
        let Some(opts) = self.usk_mut(by).map(|usk| usk.opts.clone()) else { return };
        let id = self.new_id();
        let datagrams = peer.kind as i32 == libc::SOCK_DGRAM;
        self.files.push(FileEntry {
            usk: Some(Box::new(UnixSkEntry {
                id,
                ino: peer.ino,
                r#type: peer.kind.into(),
                state: if datagrams { peer.state.into() } else { ESTABLISHED },
                flags: libc::O_RDWR as u32,
                uflags: EXTERNAL,
                fown: FownEntry::default(),
                opts,
                name: peer.name.clone(),
                ns_id: Some(self.options.net_ns_id),
                ..UnixSkEntry::default()
            })),
            ..entry(FdTypes::Unixsk, id)
        });
    }
}

/// Whether the task can connect to the name: an abstract one, or the absolute path of a socket.
fn reachable(task: &FrozenTask, name: &[u8]) -> bool {
    let name = name.split_last().filter(|(end, _)| **end == 0).map_or(name, |(_, name)| name);
    match name.strip_prefix(b"/") {
        None => name.first() == Some(&0),
        Some(path) => {
            let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path);
            let stat = stat(&proc::path(task.pid, "root").join(Path::new(path)));
            stat.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK)
        }
    }
}
