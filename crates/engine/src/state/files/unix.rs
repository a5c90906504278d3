//! Unix sockets: capture. The restore is in [`super::unix_restore`].
//!
//! sock_diag tells state, peer, backlog, what waits and what was shut down; the socket itself its
//! options; SIOCUNIXFILE the file that it is bound to. Queues are in [`super::unix_queue`].
//!
//! Peers outside of the tree are in [`super::unix_outside`]. Connections that wait to be accepted
//! are in [`super::unix_pending`], whom a socket shows as its peer in [`super::unix_peer`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use arctern_image::messages::{FdTypes, FileEntry, FilePermsEntry, UnixPeerEntry, UnixSkEntry};
use arctern_sys::diag::{UnixSocket, unix_sockets};
use arctern_sys::fd::{socket_address, unix_socket_file};
use arctern_sys::{Pid, proc};

use super::capture::FileCollector;
use super::descriptor::{Descriptor, entry};
use super::sockopts;
use super::unix_outside::{Outside, other_end};
use super::unix_peer::shown_peer;
use super::unix_pending::Waiting;
use super::unix_queue::Message;
use crate::error::{CaptureError, Refusal, Remedy};
use crate::tree::FrozenTree;

pub(super) const ESTABLISHED: u32 = 1;
pub(super) const LISTEN: u32 = 10;
/// In `uflags`: the socket lives outside.
pub(super) const EXTERNAL: u32 = 1;

/// Unix sockets of one capture.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// All sockets of the network namespaces that were met, by the namespace's inode.
    pub namespaces: HashMap<u64, HashMap<u32, UnixSocket>>,
    pub members: Vec<Member>,
    /// Connections that wait to be accepted, and are not just clients that have sent nothing.
    pub pending: Vec<Waiting>,
    /// Whom sockets show as their peer.
    pub peers: Vec<UnixPeerEntry>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub id: u32,
    pub index: usize,
    pub fd: i32,
    pub passed: bool,
    pub part: String,
    pub namespace: u64,
    pub ino: u32,
    /// Descriptors that were sent to it and not received.
    pub descriptors: u32,
    /// What is unread, where it was looked at before everything else is.
    pub queue: Option<Vec<Message>>,
    /// Pid as we see it, uid and gid of the peer that it shows.
    pub peer: Option<[u32; 3]>,
}

/// What a socket is bound to in the file system.
#[derive(Default)]
struct Bound {
    perms: Option<FilePermsEntry>,
    directory: Option<String>,
    deleted: bool,
    mnt_id: Option<i32>,
}

impl FileCollector {
    /// A descriptor of a unix socket.
    pub(super) fn unix(
        &mut self,
        d: &Descriptor<'_>,
        namespace: u64,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let ino = d.stat.st_ino as u32;
        if !self.unix.namespaces.contains_key(&namespace) {
            let list = network(d.task().pid, namespace)
                .and_then(|other| unix_sockets(other.as_ref().map(AsFd::as_fd)))
                .map_err(d.failed("list the unix sockets of its network namespace"))?;
            self.unix.namespaces.insert(namespace, list);
        }
        let Some(socket) = self.unix.namespaces[&namespace].get(&ino).cloned() else {
            return Err(d.failed("find the socket among those of its namespace")(
                io::ErrorKind::NotFound.into(),
            ));
        };
        let address = socket_address(&d.file, false).map_err(d.failed("read its name"))?;
        let name = address.get(2..).unwrap_or_default().to_vec();
        let bound = if name.first().is_some_and(|first| *first != 0) {
            match self.bound(d, &name)? {
                Ok(bound) => bound,
                Err((cause, remedy)) => {
                    refusals.push(d.refuse(cause, remedy));
                    return Ok(None);
                }
            }
        } else {
            Bound::default()
        };
        let Some(opts) = sockopts::capture(d, true, refusals)? else { return Ok(None) };
        let peer = shown_peer(d)?;
        let id = self.new_id();
        let listening = u32::from(socket.state) == LISTEN;
        self.unix.members.push(Member {
            id,
            index: d.index,
            fd: d.fd,
            passed: d.passed,
            part: d.part(),
            namespace,
            ino,
            descriptors: d.info.scm_fds,
            queue: None,
            peer,
        });
        Ok(Some(FileEntry {
            usk: Some(Box::new(UnixSkEntry {
                id,
                ino,
                r#type: socket.kind.into(),
                state: socket.state.into(),
                flags: d.flags(),
                uflags: 0,
                backlog: if listening { socket.send_queue } else { 0 },
                peer: socket.peer.unwrap_or(0),
                fown: d.fown.clone(),
                opts,
                name,
                shutdown: (socket.shutdown != 0).then_some(socket.shutdown.into()),
                file_perms: bound.perms,
                name_dir: bound.directory,
                deleted: bound.deleted.then_some(true),
                ns_id: Some(self.options.net_ns_id),
                mnt_id: bound.mnt_id,
            })),
            ..entry(FdTypes::Unixsk, id)
        }))
    }

    /// The file of a socket with a path: permissions, and the directory in which a relative name
    /// was meant. The inner error is a refusal.
    fn bound(
        &self,
        d: &Descriptor<'_>,
        name: &[u8],
    ) -> Result<Result<Bound, (&'static str, &'static str)>, CaptureError> {
        let file = unix_socket_file(&d.file).map_err(d.failed("find the file it is bound to"))?;
        let stat = nix::sys::stat::fstat(&file)
            .map_err(|e| d.failed("look at the file it is bound to")(e.into()))?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(d.failed("find the path it is bound to"))?;
        let mut bound = Bound {
            perms: Some(FilePermsEntry { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid }),
            ..Bound::default()
        };
        if self.options.mount_namespace {
            let me = Pid(std::process::id() as i32);
            let info = proc::fdinfo::read(me, file.as_raw_fd());
            bound.mnt_id = Some(info.map_err(d.failed("find the mount of its file"))?.mnt_id);
        }
        let text = link.to_string_lossy();
        let text = if stat.st_nlink == 0 {
            bound.deleted = true;
            text.strip_suffix(" (deleted)").unwrap_or(&text)
        } else {
            &text
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(Err(("its path is not UTF-8", "bind it to another path")));
        };
        if !name.starts_with('/') {
            bound.directory = directory(text, name);
            if bound.directory.is_none() {
                // The name climbs up: it is the working directory that it was meant from.
                let cwd = proc::read_link(d.task().pid, "cwd").unwrap_or_default();
                let root = proc::path(d.task().pid, "cwd");
                let meant = nix::sys::stat::stat(&root.join(Path::new(name)));
                let same = meant.is_ok_and(|m| (m.st_dev, m.st_ino) == (stat.st_dev, stat.st_ino));
                match cwd.to_str().filter(|_| same) {
                    Some(cwd) => bound.directory = Some(cwd.to_owned()),
                    None => {
                        return Ok(Err((
                            "its relative path leads elsewhere by now",
                            "bind it to an absolute path",
                        )));
                    }
                }
            }
        }
        Ok(Ok(bound))
    }

    /// Checks the other ends, when every socket of the tree is known.
    pub(super) fn resolve_unix(&mut self, tree: &FrozenTree, refusals: &mut Vec<Refusal>) {
        let inside: HashMap<u32, usize> =
            self.unix.members.iter().enumerate().map(|(at, m)| (m.ino, at)).collect();
        let mut peers: HashMap<u32, u32> = HashMap::new();
        let mut outside: Vec<(u32, Outside)> = Vec::new();
        let mut pending = Vec::new();
        // Where nobody is stopped, what is in flight was not looked at: a peer may be among it.
        let in_flight =
            self.options.observing && self.unix.members.iter().any(|m| m.descriptors != 0);
        for member in &self.unix.members {
            let sockets = &self.unix.namespaces[&member.namespace];
            let socket = &sockets[&member.ino];
            let task = &tree.tasks[member.index];
            let mut refuse = |cause: String, remedy: Remedy| {
                refusals.push(task.refuse(member.part.clone(), cause, remedy));
            };
            if u32::from(socket.state) == LISTEN {
                match self.waiting(task, member, sockets, &inside) {
                    Ok(found) => {
                        // As CRIU has it: the peer of a waiting client is the listener.
                        peers.extend(found.clients.iter().map(|client| (*client, member.ino)));
                        pending.extend(found.listed);
                    }
                    Err((cause, remedy)) => refuse(cause, remedy),
                }
                continue;
            }
            let Some(peer) = other_end(member, sockets) else { continue };
            if inside.contains_key(&peer) || in_flight {
                continue;
            }
            match self.outside(task, socket, peer, sockets) {
                Ok(what) => outside.push((member.id, what)),
                Err((cause, remedy)) => refuse(cause, remedy),
            }
        }
        self.unix.pending = pending;
        for (listed, peer) in peers {
            if let Some(at) = inside.get(&listed) {
                let id = self.unix.members[*at].id;
                if let Some(socket) = self.usk_mut(id) {
                    socket.peer = peer;
                }
            }
        }
        for (id, what) in outside {
            match what {
                Outside::Named(peer) => self.add_external(id, &peer),
                Outside::Closed => {
                    if let Some(socket) = self.usk_mut(id) {
                        socket.peer = 0;
                    }
                }
            }
        }
    }

    pub(super) fn usk_mut(&mut self, id: u32) -> Option<&mut UnixSkEntry> {
        self.files.iter_mut().find(|file| file.id == id).and_then(|file| file.usk.as_deref_mut())
    }
}

/// The network namespace with inode `namespace`, which task `pid` is in; None if it is our own.
pub(super) fn network(pid: Pid, namespace: u64) -> io::Result<Option<std::fs::File>> {
    let own = proc::namespace(Pid(std::process::id() as i32), "net").ok().flatten();
    if own == Some(namespace) {
        return Ok(None);
    }
    std::fs::File::open(proc::path(pid, "ns/net")).map(Some)
}

/// The directory from which `name` leads to the file at `path`, if it is plain to see.
fn directory(path: &str, name: &str) -> Option<String> {
    let name = name.trim_start_matches("./");
    let before = path.strip_suffix(name)?.strip_suffix('/')?;
    if name.split('/').any(|part| part == "..") {
        return None;
    }
    Some(if before.is_empty() { "/".to_owned() } else { before.to_owned() })
}

/// A socket's name for people.
pub(super) fn shown(name: &[u8]) -> String {
    match name.split_first() {
        None => "without a name".to_owned(),
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Path::new(std::ffi::OsStr::from_bytes(&name[..end])).display().to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_relative_names() {
        assert_eq!(directory("/run/x/s", "s").as_deref(), Some("/run/x"));
        assert_eq!(directory("/run/x/s", "./x/s").as_deref(), Some("/run"));
        assert_eq!(directory("/s", "s").as_deref(), Some("/"));
        assert_eq!(directory("/run/as", "s"), None);
        assert_eq!(directory("/run/s", "../run/s"), None);
    }

    #[test]
    fn names_are_shown() {
        assert_eq!(shown(b"\0abc"), "@abc");
        assert_eq!(shown(b"/run/s\0"), "/run/s");
        assert_eq!(shown(b""), "without a name");
    }
}
