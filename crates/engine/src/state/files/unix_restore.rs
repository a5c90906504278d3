//! Unix sockets: restore. A group of sockets that are connected is made in one task.
//!
//! Pairs without names are socketpair(2). Where an end has a name, it was accepted from a listening
//! socket of that name: it is connected and accepted again, so that both sides see the same names as
//! before. Order: listeners, datagram sockets, connections, unread data, then what was shut down,
//! options and flags, since each of them would forbid the one before.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{SkPacketEntry, UnixSkEntry};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::sockopts;
use super::table::Opener;
use super::unix::{ESTABLISHED, EXTERNAL, LISTEN};
use super::unix_peer_restore::Makers;
use super::unix_pending::Waiting;
use super::unix_senders::{deliver, target};
use crate::error::RestoreError;

/// An unread message.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub data: Vec<u8>,
    /// Pid inside, uid and gid of its sender, where the reader asks for them.
    pub sender: Option<[u32; 3]>,
    /// The name of the sender of a datagram, where the images tell; empty without one.
    pub from: Option<Vec<u8>>,
    /// Ids of the descriptions that come with it.
    pub rights: Vec<u32>,
}

/// Unread messages by the id of the socket that will read them.
pub(super) type Queues = HashMap<u32, Vec<Message>>;

/// Reads the queues.
pub(super) fn read_queues(images: &ImageDir) -> Result<Queues, RestoreError> {
    let mut queues = Queues::new();
    let Some(mut reader) = images.reader(ImageKind::SkQueues, 0)? else { return Ok(queues) };
    while let Some(packet) = reader.next_record::<SkPacketEntry>()? {
        let data = reader.payload(packet.length.into())?;
        let sender = packet.sender.as_slice().try_into().ok();
        let from = packet.from;
        let rights = packet.scm.into_iter().flat_map(|scm| scm.rights).collect();
        queues.entry(packet.id_for).or_default().push(Message { data, sender, from, rights });
    }
    Ok(queues)
}

/// What is done to sockets when every description is in place, since descriptors come with what is
/// unread.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// Receiving socket, sending socket, and whom the sender is shown as.
    pub queues: Vec<(u32, OwnedFd, i32)>,
    /// Sockets to shut down, with how (as of shutdown(2)).
    pub shutdowns: Vec<(OwnedFd, i32)>,
}

/// Makes the sockets of a group: ids with their numbers.
pub(super) fn open(
    o: &mut Opener<'_>,
    members: &[&UnixSkEntry],
    queues: &Queues,
    pending: &[Waiting],
    makers: Makers<'_>,
    late: &mut Late,
) -> Result<Vec<(u32, i32)>, RestoreError> {
    let by_ino = members.iter().map(|m| (m.ino, *m)).collect();
    let with_rights = |m: &&UnixSkEntry| {
        queues.get(&m.id).is_some_and(|queue| queue.iter().any(|m| !m.rights.is_empty()))
    };
    let rights = members.iter().filter(|m| with_rights(m)).map(|m| m.id).collect();
    let (made, extra) = (HashMap::new(), HashMap::new());
    let mut group = Group { members, by_ino, made, extra, rights, late, makers };
    group.listeners(o)?;
    group.datagrams(o)?;
    group.connections(o, pending)?;
    group.makers.end(o)?;
    group.queues(o, queues)?;
    group.settle(o)?;
    Ok(members.iter().filter_map(|m| Some((m.id, *group.made.get(&m.id)?))).collect())
}

pub(super) struct Group<'a> {
    pub members: &'a [&'a UnixSkEntry],
    by_ino: HashMap<u32, &'a UnixSkEntry>,
    /// Numbers by id.
    pub made: HashMap<u32, i32>,
    /// Other ends that nobody holds, by the id of their peer.
    extra: HashMap<u32, i32>,
    /// Sockets whose queues wait until every description is in place.
    rights: HashSet<u32>,
    late: &'a mut Late,
    pub makers: Makers<'a>,
}

impl<'a> Group<'a> {
    fn listeners(&mut self, o: &mut Opener<'_>) -> Result<(), RestoreError> {
        for socket in self.members.iter().filter(|m| m.state == LISTEN && m.uflags & EXTERNAL == 0)
        {
            let fd = new_socket(o, socket);
            bind(o, fd, socket)?;
            let args = [fd.into(), socket.backlog.into()];
            self.as_peer(o, socket.id, |o| {
                o.call(libc::SYS_listen, &args, "listen on the unix socket");
            })?;
            self.made.insert(socket.id, fd);
        }
        Ok(())
    }

    fn datagrams(&mut self, o: &mut Opener<'_>) -> Result<(), RestoreError> {
        let sockets: Vec<&UnixSkEntry> = self
            .members
            .iter()
            .copied()
            .filter(|m| m.r#type == libc::SOCK_DGRAM as u32 && m.uflags & EXTERNAL == 0)
            .collect();
        let mut to_connect = Vec::new();
        for socket in sockets {
            if self.made.contains_key(&socket.id) {
                continue;
            }
            let peer = self.peer(socket);
            match peer {
                Some(peer)
                    if peer.peer == socket.ino
                        && peer.id != socket.id
                        && socket.name.is_empty()
                        && peer.name.is_empty() =>
                {
                    let [a, b] = self.as_peer(o, socket.id, |o| pair(o, socket))?;
                    self.made.insert(socket.id, a);
                    self.made.insert(peer.id, b);
                    continue;
                }
                Some(peer) if !peer.name.is_empty() => to_connect.push((socket, peer)),
                Some(_) => {
                    return Err(RestoreError::Inconsistent(format!(
                        "unix socket {} is connected to a socket without a name",
                        socket.id
                    )));
                }
                // The peer is closed: one end of a pair, or connected to a name that is gone.
                None if socket.state == ESTABLISHED && socket.name.is_empty() => {
                    let [a, b] = self.as_peer(o, socket.id, |o| pair(o, socket))?;
                    self.made.insert(socket.id, a);
                    self.extra.insert(socket.id, b);
                    continue;
                }
                None => {}
            }
            let fd = new_socket(o, socket);
            if !socket.name.is_empty() {
                bind(o, fd, socket)?;
            }
            self.made.insert(socket.id, fd);
        }
        for (socket, peer) in to_connect {
            connect(o, self.made[&socket.id], peer, "connect the datagram socket");
        }
        Ok(())
    }

    fn connections(&mut self, o: &mut Opener<'_>, pending: &[Waiting]) -> Result<(), RestoreError> {
        let streams: Vec<&UnixSkEntry> = self
            .members
            .iter()
            .copied()
            .filter(|m| m.r#type != libc::SOCK_DGRAM as u32 && m.state != LISTEN)
            .filter(|m| m.uflags & EXTERNAL == 0)
            .collect();
        let mut waiting = Vec::new();
        for socket in streams {
            if self.made.contains_key(&socket.id) {
                continue;
            }
            if socket.state != ESTABLISHED {
                let fd = new_socket(o, socket);
                if !socket.name.is_empty() {
                    bind(o, fd, socket)?;
                }
                self.made.insert(socket.id, fd);
                continue;
            }
            let peer = self.peer(socket);
            if peer.is_some_and(|peer| peer.state == LISTEN || peer.uflags & EXTERNAL != 0) {
                waiting.push(socket);
                continue;
            }
            let named = peer.filter(|peer| !peer.name.is_empty() && socket.name.is_empty());
            // `server` was accepted; a client may have bound itself to a name of its own.
            let (server, client) = match named {
                Some(peer) => (peer, Some(socket)),
                None => (socket, peer),
            };
            let [a, b] = if server.name.is_empty() {
                self.as_peer(o, server.id, |o| pair(o, server))?
            } else {
                self.accept(o, server, client)?
            };
            self.made.insert(server.id, a);
            match client {
                Some(client) => drop(self.made.insert(client.id, b)),
                None => drop(self.extra.insert(server.id, b)),
            }
        }
        self.connect_waiting(o, &waiting, pending)?;
        for socket in waiting {
            if !self.made.contains_key(&socket.id) {
                self.waiting_client(o, socket)?;
            }
        }
        Ok(())
    }

    /// Connects a socket to one that does not accept it now: a listener, or a socket outside.
    pub(super) fn waiting_client(
        &mut self,
        o: &mut Opener<'_>,
        socket: &UnixSkEntry,
    ) -> Result<i32, RestoreError> {
        let fd = new_socket(o, socket);
        if !socket.name.is_empty() {
            bind(o, fd, socket)?;
        }
        if let Some(listener) = self.peer(socket) {
            connect(o, fd, listener, "connect to the name of the other socket");
        }
        self.made.insert(socket.id, fd);
        Ok(fd)
    }

    /// A connection through the listening socket of `server`'s name; a passing one if that is
    /// closed. Accepted end, then connecting end.
    fn accept(
        &mut self,
        o: &mut Opener<'_>,
        server: &UnixSkEntry,
        client: Option<&UnixSkEntry>,
    ) -> Result<[i32; 2], RestoreError> {
        let same = |m: &&&UnixSkEntry| {
            m.state == LISTEN && m.name == server.name && m.name_dir == server.name_dir
        };
        let listener = self.members.iter().filter(same).find_map(|m| self.made.get(&m.id));
        let listener = listener.map(|fd| (*fd, false));
        let (listener, passing) = match listener {
            Some(found) => found,
            None => {
                let fd = new_socket(o, server);
                bind(o, fd, server)?;
                let listen = |o: &mut Opener<'_>| {
                    o.call(libc::SYS_listen, &[fd.into(), 1.into()], "listen for a moment");
                };
                match client {
                    Some(client) => self.as_peer(o, client.id, listen)?,
                    None => listen(o),
                }
                (fd, true)
            }
        };
        let to = new_socket(o, server);
        if let Some(client) = client.filter(|client| !client.name.is_empty()) {
            bind(o, to, client)?;
        }
        self.as_peer(o, server.id, |o| connect(o, to, server, "connect the unix socket"))?;
        let args = [listener.into(), 0.into(), 0.into(), libc::SOCK_NONBLOCK.into()];
        let accepted = o.create(libc::SYS_accept4, &args, "accept the connection");
        if passing {
            o.close(listener);
            remove_name(o, server);
        }
        Ok([accepted, to])
    }

    fn peer(&self, socket: &UnixSkEntry) -> Option<&'a UnixSkEntry> {
        (socket.peer != 0).then(|| self.by_ino.get(&socket.peer).copied()).flatten()
    }

    /// Puts unread data back through the other end.
    fn queues(&mut self, o: &mut Opener<'_>, queues: &Queues) -> Result<(), RestoreError> {
        for socket in self.members {
            if let Some(fd) = self.made.get(&socket.id) {
                sockopts::set_buffers(o, *fd, &socket.opts);
            }
        }
        for socket in self.members {
            let Some(queue) = queues.get(&socket.id) else { continue };
            if !self.made.contains_key(&socket.id) {
                continue;
            }
            let nobody: &[u8] = &[];
            let peer = self.peer(socket);
            let sender = self
                .extra
                .get(&socket.id)
                .map(|fd| (*fd, nobody))
                .or_else(|| Some((*self.made.get(&peer?.id)?, &peer?.name[..])))
                .filter(|_| peer.is_none_or(|peer| peer.peer == socket.ino))
                .or_else(|| {
                    let sender = self.members.iter().find(|m| m.peer == socket.ino)?;
                    Some((*self.made.get(&sender.id)?, &sender.name[..]))
                });
            let (sender, name, passing) = match sender {
                Some((fd, name)) => (fd, name, false),
                None if !socket.name.is_empty() => {
                    let fd = new_socket(o, socket);
                    connect(o, fd, socket, "connect a sender of what is unread");
                    (fd, nobody, true)
                }
                None => {
                    return Err(RestoreError::Inconsistent(format!(
                        "unix socket {} has unread data, and nobody could have sent it",
                        socket.id
                    )));
                }
            };
            if socket.opts.so_passcred() {
                // Credentials travel only to a reader that asks for them.
                sockopts::set(o, self.made[&socket.id], libc::SOL_SOCKET, libc::SO_PASSCRED, 1);
            }
            let through = o.fetch(sender)?;
            let shown = o.stub.tid().0;
            if self.rights.contains(&socket.id) {
                self.late.queues.push((socket.id, through, shown));
            } else {
                for message in queue {
                    let sent = match self.other_sender(socket, name, message) {
                        Some(known) => {
                            let fd = known.unwrap_or_else(|| new_socket(o, socket));
                            let (to, other) = (target(o, socket)?, o.fetch(fd)?);
                            if known.is_none() {
                                o.close(fd);
                            }
                            deliver(&other, Some(&to.address), message, &[], shown)
                        }
                        None => deliver(&through, None, message, &[], shown),
                    };
                    sent.map_err(o.failed_here("put unread data back"))?;
                }
            }
            if passing {
                o.close(sender);
            }
        }
        Ok(())
    }

    /// What would forbid the earlier steps.
    fn settle(&mut self, o: &mut Opener<'_>) -> Result<(), RestoreError> {
        for fd in self.extra.values() {
            o.close(*fd);
        }
        for socket in self.members {
            let Some(&fd) = self.made.get(&socket.id) else { continue };
            if let Some(how @ 1..=3) = socket.shutdown.filter(|_| !self.rights.is_empty()) {
                let socket = o.fetch(fd)?;
                self.late.shutdowns.push((socket, how - 1));
            } else if let Some(how @ 1..=3) = socket.shutdown {
                let args = [fd.into(), (how - 1).into()];
                o.call(libc::SYS_shutdown, &args, "shut the unix socket down");
            }
            sockopts::set_after(o, fd, &socket.opts);
            o.force_status(fd, socket.flags);
            let owns_name = socket.state != ESTABLISHED || socket.r#type == libc::SOCK_DGRAM as u32;
            if owns_name && socket.deleted() {
                remove_name(o, socket);
            }
        }
        Ok(())
    }
}

/// All sockets are made without blocking: a connect that would wait is an error here.
pub(super) fn new_socket(o: &mut Opener<'_>, socket: &UnixSkEntry) -> i32 {
    let kind = socket.r#type as i32 | libc::SOCK_NONBLOCK;
    let args = [libc::AF_UNIX.into(), kind.into(), 0.into()];
    o.create(libc::SYS_socket, &args, "make the unix socket")
}

fn pair(o: &mut Opener<'_>, socket: &UnixSkEntry) -> [i32; 2] {
    let kind = socket.r#type as i32 | libc::SOCK_NONBLOCK;
    let args = [libc::AF_UNIX.into(), kind.into(), 0.into()];
    o.create_pair(libc::SYS_socketpair, &args, 0, "make the socket pair")
}

/// The path of a name in the file system, None for abstract names.
pub(super) fn path(socket: &UnixSkEntry) -> Option<&[u8]> {
    let name = socket.name.split(|byte| *byte == 0).next().unwrap_or_default();
    (!name.is_empty()).then_some(name)
}

/// The path of a name from the root.
pub(super) fn full_path(socket: &UnixSkEntry) -> Vec<u8> {
    let name = path(socket).unwrap_or_default();
    match socket.name_dir.as_deref() {
        Some(directory) if !name.starts_with(b"/") => [directory.as_bytes(), b"/", name].concat(),
        _ => name.to_vec(),
    }
}

/// sockaddr_un in the stub, after going to the directory in which the name was meant.
fn address(o: &mut Opener<'_>, socket: &UnixSkEntry) -> (arctern_tracee::Arena, usize) {
    if let Some(directory) = socket.name_dir.as_deref().filter(|_| path(socket).is_some()) {
        let directory = o.c_string(directory.as_bytes());
        o.call(libc::SYS_chdir, &[directory.into()], "enter the directory of the socket");
    }
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(&socket.name);
    let len = bytes.len();
    (o.bytes(&bytes), len)
}

pub(super) fn connect(o: &mut Opener<'_>, fd: i32, to: &UnixSkEntry, action: &'static str) {
    let (address, len) = address(o, to);
    o.call(libc::SYS_connect, &[fd.into(), address.into(), len.into()], action);
}

/// Binds a socket and gives its file owner and mode. The socket file that the captured task left
/// behind is removed first.
fn bind(o: &mut Opener<'_>, fd: i32, socket: &UnixSkEntry) -> Result<(), RestoreError> {
    if path(socket).is_some() {
        let full = full_path(socket);
        let root = super::regular::root_of(o.stub.tid())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let left_behind = openat2(&root, std::ffi::OsStr::from_bytes(&full), how)
            .and_then(nix::sys::stat::fstat)
            .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK);
        if left_behind {
            remove_name(o, socket);
        }
    }
    let (address, len) = address(o, socket);
    o.call(libc::SYS_bind, &[fd.into(), address.into(), len.into()], "bind the unix socket");
    if let (Some(name), Some(perms)) = (path(socket), &socket.file_perms) {
        let name = o.c_string(name);
        let at = libc::AT_FDCWD;
        let args = [at.into(), name.into(), perms.uid.into(), perms.gid.into(), 0.into()];
        o.call(libc::SYS_fchownat, &args, "give the socket file to its owner");
        let args = [at.into(), name.into(), (perms.mode & 0o7777).into()];
        o.call(libc::SYS_fchmodat, &args, "set the mode of the socket file");
    }
    Ok(())
}

fn remove_name(o: &mut Opener<'_>, socket: &UnixSkEntry) {
    let Some(name) = path(socket) else { return };
    if let Some(directory) = &socket.name_dir {
        let directory = o.c_string(directory.as_bytes());
        o.call(libc::SYS_chdir, &[directory.into()], "enter the directory of the socket");
    }
    let name = o.c_string(name);
    let args = [libc::AT_FDCWD.into(), name.into(), 0.into()];
    o.call(libc::SYS_unlinkat, &args, "remove the socket file");
}
