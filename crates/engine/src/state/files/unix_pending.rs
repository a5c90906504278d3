//! Unix connections that nobody has accepted yet.
//!
//! A client that waits is an ordinary socket whose peer is the listener, as CRIU has it. What it has
//! sent already has no descriptor to read it through: the kernel's own structures are read
//! ([`arctern_sys::unix_pending`]). Such data, and connections of clients that have closed their end
//! or are to be closed, are in a file of our own that CRIU passes over.
//!
//! Restore: connections are made in the order in which they are accepted.
//!
//! Refused: clients outside of the tree, unless the caller lets such connections be closed; data that
//! the kernel does not show (more than about 3 KiB at once); descriptors.

use std::collections::HashMap;
use std::os::fd::AsFd;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{UnixPendingEntry, UnixSkEntry};
use arctern_sys::diag::UnixSocket;
use arctern_sys::unix_pending::{Pending, unix_pending};

use super::capture::FileCollector;
use super::table::Opener;
use super::unix::{Member, network, shown};
use super::unix_restore::{Group, Message, connect, new_socket};
use super::unix_senders::deliver;
use crate::error::{CaptureError, Remedy, RestoreError};
use crate::options::ExternalUnix;
use crate::tree::FrozenTask;

/// A connection that waits, with what it has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// File id of the listening socket.
    pub listener: u32,
    /// File id of the socket that has connected; None where it is closed.
    pub client: Option<u32>,
    pub messages: Vec<Vec<u8>>,
}

/// Connections at one listener: inodes of the clients that stay, and what the file of our own lists.
#[derive(Debug, Default)]
pub(super) struct AtListener {
    pub clients: Vec<u32>,
    pub listed: Vec<Waiting>,
}

impl FileCollector {
    /// The connections that wait at `member`. `inside`: places of the tree's sockets by inode. The
    /// error is a refusal: cause and remedy.
    pub(super) fn waiting(
        &self,
        task: &FrozenTask,
        member: &Member,
        sockets: &HashMap<u32, UnixSocket>,
        inside: &HashMap<u32, usize>,
    ) -> Result<AtListener, (String, Remedy)> {
        let socket = &sockets[&member.ino];
        let quiet = |ino: &u32| {
            inside.contains_key(ino)
                && sockets.get(ino).is_some_and(|client| client.send_queue == 0)
        };
        if socket.waiting.iter().all(quiet) {
            return Ok(AtListener { clients: socket.waiting.clone(), listed: Vec::new() });
        }
        let refuse = |why: &str| {
            let cause = format!("a connection waits to be accepted ({}){why}", shown(&socket.name));
            (cause, Remedy::try_again("when the program has accepted it"))
        };
        let pending = network(task.pid, member.namespace)
            .and_then(|own| unix_pending(own.as_ref().map(|file| file.as_fd()), member.ino))
            .map_err(|e| {
                refuse(&format!(", and the kernel does not show what it has sent: {e}"))
            })?;
        let mut all = AtListener::default();
        for Pending { client, messages } in pending {
            let known = inside.get(&client).map(|at| self.unix.members[*at].id);
            let closed = client == 0 || self.options.external_unix == ExternalUnix::Close;
            if known.is_none() && !closed {
                return Err(refuse(", from outside of the tree"));
            }
            all.clients.extend(known.map(|_| client));
            let mut waiting = Waiting { listener: member.id, client: known, messages: Vec::new() };
            for message in messages {
                if message.descriptors {
                    return Err(refuse(", with descriptors"));
                }
                let Some(data) = message.data else {
                    return Err(refuse(", with more data than the kernel shows"));
                };
                waiting.messages.push(data);
            }
            all.listed.push(waiting);
        }
        Ok(all)
    }

    /// Writes what is known of connections that wait.
    pub(super) fn write_pending(&self, images: &ImageDir) -> Result<(), CaptureError> {
        if self.unix.pending.is_empty() {
            images.remove(ImageKind::UnixPending, 0)?;
            return Ok(());
        }
        let mut writer = images.writer(ImageKind::UnixPending, 0)?;
        for waiting in &self.unix.pending {
            writer.record(&UnixPendingEntry {
                listener: waiting.listener,
                client: waiting.client,
                lengths: waiting.messages.iter().map(|data| data.len() as u32).collect(),
            })?;
            writer.payload(&waiting.messages.concat())?;
        }
        writer.finish()?;
        Ok(())
    }
}

/// Reads the connections of a checkpoint.
pub(super) fn read(images: &ImageDir) -> Result<Vec<Waiting>, RestoreError> {
    let mut all = Vec::new();
    let Some(mut reader) = images.reader(ImageKind::UnixPending, 0)? else { return Ok(all) };
    while let Some(entry) = reader.next_record::<UnixPendingEntry>()? {
        let mut messages = Vec::with_capacity(entry.lengths.len());
        for length in &entry.lengths {
            messages.push(reader.payload((*length).into())?);
        }
        all.push(Waiting { listener: entry.listener, client: entry.client, messages });
    }
    Ok(all)
}

impl Group<'_> {
    /// Connects what waits to be accepted by the listeners of the group, and sends what it had sent.
    pub(super) fn connect_waiting(
        &mut self,
        o: &mut Opener<'_>,
        waiting: &[&UnixSkEntry],
        all: &[Waiting],
    ) -> Result<(), RestoreError> {
        for connection in all {
            let listener = self.members.iter().find(|m| m.id == connection.listener);
            let Some(&listener) = listener else { continue };
            let client = match connection.client {
                None => None,
                Some(id) => Some(waiting.iter().find(|m| m.id == id).ok_or_else(|| {
                    RestoreError::Inconsistent(format!(
                        "unix socket {id} does not wait at socket {}",
                        connection.listener
                    ))
                })?),
            };
            let fd = match client {
                Some(socket) => self.waiting_client(o, socket)?,
                None => {
                    let fd = new_socket(o, listener);
                    connect(o, fd, listener, "connect to the listening socket");
                    fd
                }
            };
            if !connection.messages.is_empty() {
                let through = o.fetch(fd)?;
                for data in &connection.messages {
                    let message = Message { data: data.clone(), ..Message::default() };
                    deliver(&through, None, &message, &[], o.stub.tid().0)
                        .map_err(o.failed_here("send what waits to be accepted"))?;
                }
            }
            if client.is_none() {
                o.close(fd);
            }
        }
        Ok(())
    }
}
