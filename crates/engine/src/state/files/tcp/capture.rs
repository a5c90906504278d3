//! Reads the connections of a frozen tree.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{TcpOptsEntry, TcpStreamEntry};
use arctern_sys::diag::TcpSocket;
use arctern_sys::fd::{set_socket_int, socket_int};
use arctern_sys::guard::Guard;
use arctern_sys::handshake::Handshakes;
use arctern_sys::tcp::{self, Lengths, Queue, Repair, option, state};

use super::shape::shape;
use super::waiting::can_wait;
use crate::error::{CaptureError, Subject};
use crate::faults::Faults;
use crate::options::{Connection, NetworkLock};
use crate::state::files::capture::FileCollector;
use crate::state::files::descriptor::Descriptor;
use crate::tree::FrozenTree;

const SO_PEEK_OFF: i32 = 42;

/// A connection, as long as its tasks are frozen.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) subject: Subject,
    pub(super) socket: OwnedFd,
    pub(super) ino: u32,
    pub(super) state: u8,
    pub(super) ends: Connection,
    pub(super) reuse: bool,
    /// Where the program peeks next, if it moves.
    pub(super) peek: Option<i32>,
    pub(super) opts: TcpOptsEntry,
}

/// A listener, which may get connections until the network is locked.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) subject: Subject,
    pub(super) socket: OwnedFd,
    pub(super) address: SocketAddr,
    pub(super) ino: u32,
}

impl Listener {
    /// Whether a socket's own address is the listener's.
    pub(super) fn is_of(&self, socket: &TcpSocket) -> bool {
        let ip = self.address.ip();
        socket.local.port() == self.address.port()
            && (ip.is_unspecified() || ip.to_canonical() == socket.local.ip())
    }
}

pub(super) fn ends_of(socket: &TcpSocket) -> Connection {
    Connection { local: socket.local, peer: socket.peer }
}

/// The TCP sockets of a frozen tree for which the network matters.
#[derive(Debug, Default)]
pub(in crate::state::files) struct Collected {
    pub(super) live: Vec<Live>,
    pub(super) listeners: Vec<Listener>,
    /// All TCP sockets of the tree's network namespace, once somebody asked.
    pub(super) listing: Option<Vec<TcpSocket>>,
    /// Whether connections that wait can be given back, once somebody asked.
    pub(super) handshakes: Option<Option<Handshakes>>,
}

impl Collected {
    /// Notes a connection to be captured.
    pub fn add(
        &mut self,
        d: &Descriptor<'_>,
        state: u8,
        ends: Connection,
        opts: TcpOptsEntry,
    ) -> Result<(), CaptureError> {
        let failed = |e| d.failed("look at the connection")(e);
        self.live.push(Live {
            subject: d.task().subject(format!(
                "{} (TCP {} -> {})",
                d.part(),
                ends.local,
                ends.peer
            )),
            socket: d.file.try_clone().map_err(failed)?,
            ino: d.stat.st_ino as u32,
            state,
            ends,
            reuse: socket_int(&d.file, libc::SOL_SOCKET, libc::SO_REUSEADDR).map_err(failed)? != 0,
            peek: socket_int(&d.file, libc::SOL_SOCKET, SO_PEEK_OFF).ok().filter(|n| *n >= 0),
            opts,
        });
        Ok(())
    }

    /// Whether a socket without descriptor waits at one of the listeners.
    pub(super) fn waits(&self, socket: &TcpSocket) -> bool {
        let at = |listener: &Listener| listener.is_of(socket);
        socket.ino == 0 && can_wait(socket.state) && self.listeners.iter().any(at)
    }

    /// Notes a listener.
    pub fn add_listener(
        &mut self,
        d: &Descriptor<'_>,
        address: SocketAddr,
    ) -> Result<(), CaptureError> {
        let socket = d.file.try_clone().map_err(d.failed("look at the listener"))?;
        let subject = d.task().subject(format!("{} ({address})", d.part()));
        let ino = d.stat.st_ino as u32;
        self.listeners.push(Listener { subject, socket, address, ino });
        Ok(())
    }
}

impl FileCollector {
    /// The live connections, for the lock of the network, with those that wait to be accepted.
    pub fn connections(&self) -> Vec<Connection> {
        let listed = self.tcp.listing.as_deref().unwrap_or_default();
        let waiting = listed.iter().filter(|s| self.tcp.waits(s)).map(ends_of);
        self.tcp.live.iter().map(|live| live.ends).chain(waiting).collect()
    }

    /// Somebody who sees to it that connections do not stay in repair mode if we are killed while they
    /// are read; and, from its commit on, that the tasks do not go on with connections that were made
    /// silent. None without connections.
    pub fn guard_connections(
        &self,
        tree: &FrozenTree,
        network: Option<&mut (dyn NetworkLock + '_)>,
    ) -> Result<Option<Guard>, CaptureError> {
        let live = &self.tcp.live;
        if live.is_empty() {
            return Ok(None);
        }
        let guard = Guard::start(|committed| match committed {
            true => {
                for task in &tree.tasks {
                    let _ = task.pidfd.send_signal(libc::SIGKILL);
                }
            }
            false => {
                live.iter().for_each(Live::wake);
                if let Some(network) = network {
                    network.abandon();
                }
            }
        });
        guard.map(Some).map_err(tree.tasks[0].failed("", "start a guard of its connections"))
    }

    /// Writes the images of all connections. The network must be locked; the sockets are as they were
    /// afterwards, also after an error.
    pub fn write_connections(&self, images: &ImageDir) -> Result<(), CaptureError> {
        for live in &self.tcp.live {
            let (entry, received, sent) =
                live.read().map_err(failed(&live.subject, "read the connection"))?;
            let mut writer = images.writer(ImageKind::TcpStream, live.ino.into())?;
            writer.record(&entry)?;
            writer.payload(&received)?;
            writer.payload(&sent)?;
            writer.finish()?;
        }
        Ok(())
    }

    /// Makes sure that the connections end without a word to their peers when the tasks are killed.
    /// They are as they were if this fails.
    pub fn silence_connections(&self) -> Result<(), CaptureError> {
        for (at, live) in self.tcp.live.iter().enumerate() {
            if let Err(e) = Repair::enter(&live.socket) {
                self.tcp.live[..at].iter().for_each(Live::wake);
                return Err(failed(&live.subject, "make its end silent")(e));
            }
        }
        Ok(())
    }
}

pub(super) fn failed(
    subject: &Subject,
    what: &str,
) -> impl FnOnce(io::Error) -> CaptureError + use<> {
    let (subject, what) = (subject.clone(), what.to_owned());
    move |source| CaptureError::Kernel { subject, what, source }
}

impl Live {
    /// The image and both queues.
    pub(super) fn read(&self) -> io::Result<(TcpStreamEntry, Vec<u8>, Vec<u8>)> {
        let info = tcp::info(&self.socket)?;
        if info.state != self.state {
            return Err(io::Error::other("its state changes while it is looked at"));
        }
        // Peeking moves the place where the program peeks next.
        if self.peek.is_some() {
            set_socket_int(&self.socket, libc::SOL_SOCKET, SO_PEEK_OFF, -1)?;
        }
        let result = Repair::enter(&self.socket).and_then(|repair| self.read_in(&repair, info));
        self.wake();
        result
    }

    fn read_in(
        &self,
        repair: &Repair<'_>,
        info: tcp::Info,
    ) -> io::Result<(TcpStreamEntry, Vec<u8>, Vec<u8>)> {
        let lengths = if self.state == state::SYN_SENT {
            Lengths::default()
        } else {
            without_fin(self.state, tcp::lengths(&self.socket)?)
        };
        Faults::point("capture", "in-repair").map_err(io::Error::other)?;
        let window = repair.window()?;
        let has = |bit| info.options & bit != 0;
        let received = repair.peek(Queue::Receive, lengths.unread as usize)?;
        let sent = repair.peek(Queue::Send, lengths.unacknowledged as usize)?;
        let entry = TcpStreamEntry {
            inq_len: lengths.unread,
            inq_seq: repair.sequence(Queue::Receive)?,
            outq_len: lengths.unacknowledged,
            outq_seq: repair.sequence(Queue::Send)?,
            opt_mask: info.options.into(),
            snd_wscale: info.send_wscale.into(),
            mss_clamp: repair.mss()?,
            rcv_wscale: has(option::WSCALE).then(|| info.receive_wscale.into()),
            timestamp: if has(option::TIMESTAMPS) { Some(repair.timestamp()?) } else { None },
            cork: self.opts.cork,
            nodelay: self.opts.nodelay,
            unsq_len: Some(lengths.unsent),
            snd_wl1: Some(window.snd_wl1),
            snd_wnd: Some(window.snd_wnd),
            max_window: Some(window.max_window),
            rcv_wnd: Some(window.rcv_wnd),
            rcv_wup: Some(window.rcv_wup),
        };
        Ok((entry, received, sent))
    }

    /// Leaves repair mode, which has cleared SO_REUSEADDR, and undoes what reading needs.
    pub(super) fn wake(&self) {
        let set = |name, value| set_socket_int(&self.socket, libc::SOL_SOCKET, name, value);
        let left = Repair::of(&self.socket).leave();
        let left = left.and_then(|()| match self.reuse {
            true => set(libc::SO_REUSEADDR, 1),
            false => Ok(()),
        });
        let left = left.and_then(|()| self.peek.map_or(Ok(()), |peek| set(SO_PEEK_OFF, peek)));
        if let Err(e) = left {
            tracing::error!("{}: cannot leave repair mode: {e}", self.subject);
        }
    }
}

/// Lengths of data alone.
fn without_fin(state: u8, lengths: Lengths) -> Lengths {
    let waits = shape(state).is_some_and(|s| s.sending == super::shape::End::Closed);
    let fin = u32::from(waits);
    Lengths {
        unacknowledged: lengths.unacknowledged.saturating_sub(fin),
        unsent: lengths.unsent.saturating_sub(fin),
        ..lengths
    }
}

/// Whether urgent data is in the receive queue: poll(2) shows it, whether it was read or not.
pub(in crate::state::files) fn has_urgent_data(socket: &impl AsFd) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLPRI)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLPRI)))
}

/// Addresses as they are on the wire: without the mapping of IPv4 into IPv6.
pub(in crate::state::files) fn on_wire(local: SocketAddr, peer: SocketAddr) -> Connection {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    Connection { local: plain(local), peer: plain(peer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fin_is_no_data() {
        let lengths = Lengths { unread: 3, unacknowledged: 11, unsent: 1 };
        let closing = without_fin(state::FIN_WAIT1, lengths);
        assert_eq!((closing.unread, closing.unacknowledged, closing.unsent), (3, 10, 0));
        assert_eq!(without_fin(state::ESTABLISHED, lengths), lengths);
        assert_eq!(without_fin(state::FIN_WAIT2, lengths), lengths);
    }

    #[test]
    fn mapped_addresses_are_plain_on_the_wire() {
        let ends =
            on_wire("[::ffff:10.0.0.1]:80".parse().unwrap(), "[2001:db8::1]:9".parse().unwrap());
        assert_eq!(ends.local, "10.0.0.1:80".parse().unwrap());
        assert_eq!(ends.peer, "[2001:db8::1]:9".parse().unwrap());
    }
}
