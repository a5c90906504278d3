//! Sockets: which family, and whether the socket belongs to the tree's network namespace.

use arctern_image::messages::{FileEntry, UnixSkEntry};
use arctern_sys::fd::{socket_int, socket_namespace};
use arctern_sys::proc;

use super::capture::FileCollector;
use super::descriptor::Descriptor;
use super::groups::{Bond, Group};
use super::restore::FilesRestore;
use super::table::Opener;
use super::unix_peer_restore::Makers;
use super::{inet, netlink, tcp, unix, unix_restore};
use crate::error::{CaptureError, Refusal, RestoreError};

impl FileCollector {
    /// A descriptor of a socket.
    pub(super) fn socket(
        &mut self,
        d: &Descriptor<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<FileEntry>, CaptureError> {
        let family = socket_int(&d.file, libc::SOL_SOCKET, libc::SO_DOMAIN)
            .map_err(d.failed("ask for the family of the socket"))?;
        let namespace = proc::namespace(d.task().pid, "net")
            .map_err(d.failed("find the network namespace of its process"))?
            .unwrap_or(0);
        // EPERM where the socket's namespace belongs to another user namespace; there the
        // question stays open.
        if let Ok(own) = socket_namespace(&d.file)
            && nix::sys::stat::fstat(&own).is_ok_and(|stat| stat.st_ino != namespace)
        {
            refusals.push(d.refuse(
                "the socket belongs to another network namespace than its process",
                "close it, or checkpoint the tree of that namespace",
            ));
            return Ok(None);
        }
        match family {
            libc::AF_UNIX => self.unix(d, namespace, refusals),
            libc::AF_INET | libc::AF_INET6 => self.inet(d, family, refusals),
            libc::AF_NETLINK => self.netlink(d, refusals),
            _ => {
                refusals.push(d.refuse(
                    format!("sockets of family {family} cannot be carried"),
                    "close it before the checkpoint",
                ));
                Ok(None)
            }
        }
    }
}

impl FilesRestore {
    /// Ties sockets together that must be made at once.
    pub(super) fn socket_bonds(&self, bonds: &mut Vec<(Bond, u32)>) {
        let sockets = self.ids().filter_map(|id| Some((id, self.files[&id].usk.as_deref()?)));
        for (id, socket) in sockets {
            bonds.push((Bond::Unix(socket.ino), id));
            if socket.peer != 0 {
                bonds.push((Bond::Unix(socket.peer), id));
            }
            // An accepted socket has the name of its listener.
            let stream = socket.r#type != libc::SOCK_DGRAM as u32;
            if stream && !socket.name.is_empty() {
                let directory = socket.name_dir.clone().unwrap_or_default();
                let name = [directory.as_bytes(), b"\0", &socket.name].concat();
                bonds.push((Bond::UnixName(name), id));
            }
            if !stream && !socket.name.is_empty() {
                bonds.push((Bond::UnixSender(socket.name.clone()), id));
            }
            let queue = self.queues.get(&id).filter(|_| !stream);
            for from in queue.into_iter().flatten().filter_map(|message| message.from.as_ref()) {
                if !from.is_empty() {
                    bonds.push((Bond::UnixSender(from.clone()), id));
                }
            }
        }
    }

    /// Sockets that cannot be restored.
    pub(super) fn check_sockets(&self, refusals: &mut Vec<Refusal>) {
        for id in self.ids() {
            let Some(socket) = self.files[&id].isk.as_deref() else { continue };
            let cause = inet::check(socket).or_else(|| match tcp::is_live(socket) {
                true if !self.holders.contains_key(&id) => Some((
                    "the live TCP connection was sent to the program and not received".to_owned(),
                    "checkpoint when the program has received it",
                )),
                true => tcp::check(socket, self.options.tcp, &self.images),
                false => None,
            });
            if let Some((cause, remedy)) = cause {
                refusals.push(Refusal {
                    subject: self.named_subject(id),
                    cause,
                    remedy: remedy.into(),
                });
            }
        }
    }

    /// Makes the sockets of a group: ids with their numbers.
    pub(super) fn make_sockets(
        &mut self,
        o: &mut Opener<'_>,
        group: &Group,
    ) -> Result<Vec<(u32, i32)>, RestoreError> {
        let mut members: Vec<&UnixSkEntry> = Vec::new();
        let mut made = Vec::new();
        for id in &group.ids {
            let file = &self.files[id];
            if let Some(socket) = &file.isk {
                let unread = self.datagrams.get(id).map_or(&[][..], Vec::as_slice);
                made.push((*id, inet::open(o, socket, unread)?));
            } else if let Some(socket) = &file.nlsk {
                made.push((*id, netlink::open(o, socket)));
            } else if let Some(socket) = &file.usk {
                members.push(socket);
            }
        }
        if !members.is_empty() {
            // Sockets outside have no descriptor and so are in no group.
            let outside = self.files.values().filter_map(|file| file.usk.as_deref());
            members.extend(outside.filter(|socket| socket.uflags & unix::EXTERNAL != 0));
            made.extend(unix_restore::open(
                o,
                &members,
                &self.queues,
                &self.pending,
                Makers::new(&self.peers, &self.tasks),
                &mut self.late_unix,
            )?);
        }
        Ok(made)
    }
}
