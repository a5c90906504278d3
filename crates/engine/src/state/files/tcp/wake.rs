//! Connections that were rebuilt come to life.
//!
//! First ([`FilesRestore::ready_connections`]), under the lock, everything is put into the kernel:
//! whoever is killed afterwards takes nothing with him. Data that was not sent waits in its queue, and
//! with it the last byte of what the peer did not acknowledge: they get there while the window of the
//! peer's seems closed, and nothing pushes them when it is what it was again. Then
//! ([`FilesRestore::open_connections`]) they are let out and pushed, before anything reaches them: a
//! segment that acknowledges the byte is dropped by a kernel that has not sent it, and is sent again only
//! by a timer of the peer's. The peer answers to the byte with what it really has, so that neither side
//! waits for a timer; what it lacks is sent again at once. The congestion window has room for the byte
//! ([`arctern_sys::flight`]). Where the peer's window, or a kernel that does not widen ours, would not
//! let it go, it counts as sent like all before it, because an answer must not be ahead of what we sent;
//! then the peer is asked by the probe of a window. Last of all it is told of our window
//! ([`super::window`]).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use arctern_image::messages::InetSkEntry;
use arctern_sys::fd::{attach_socket_filter, connect_socket, set_socket_int};
use arctern_sys::tcp::{self, Queue, Repair, Window};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::inject::Injector;
use super::packet::Segment;
use super::restore::{failed, is_clamp};
use super::window::Announcement;
use crate::error::{RestoreError, Subject};
use crate::options::{NetworkLock, TcpPolicy};
use crate::state::files::inet::{ends_of, raw_address};
use crate::state::files::restore::FilesRestore;
use crate::state::files::sockopts;

/// A connection that is complete, and what it has yet to send.
#[derive(Debug)]
pub(in crate::state::files) struct Built {
    pub(super) subject: Subject,
    pub(super) socket: OwnedFd,
    pub(super) entry: InetSkEntry,
    pub(super) nodelay: bool,
    pub(super) cork: bool,
    /// The last byte that was sent before.
    pub(super) last: Option<u8>,
    /// Data that was not sent before.
    pub(super) unsent: Vec<u8>,
    /// A FIN follows.
    pub(super) closes: bool,
    /// Has yet to connect.
    pub(super) connects: bool,
    /// Whether the peer has to be asked what it has; known when everything is in the kernel.
    pub(super) asks: bool,
    /// What its peer is told of our window, if it may send.
    pub(super) window: Option<Announcement>,
}

impl FilesRestore {
    /// Puts all that connections have to send into the kernel, where it waits for
    /// [`FilesRestore::open_connections`]. The network must be locked. They leave repair mode.
    pub fn ready_connections(&mut self) -> Result<(), RestoreError> {
        for built in &mut self.connections {
            built.make_ready().map_err(failed(&built.subject, "put back what it has to send"))?;
        }
        Ok(())
    }

    /// Whether somebody has to finish what [`FilesRestore::open_connections`] does, if we cannot.
    pub fn needs_guard(&self, locked: bool) -> bool {
        self.options.tcp == TcpPolicy::Established && (locked || !self.connections.is_empty())
    }

    /// Lets the connections send and unlocks the network. Nothing may fail after this.
    ///
    /// # Errors
    /// The network cannot be unlocked.
    pub fn open_connections(
        &mut self,
        network: Option<&mut (dyn NetworkLock + '_)>,
    ) -> Result<(), RestoreError> {
        if self.options.tcp != TcpPolicy::Established {
            return Ok(());
        }
        let mut network = network;
        if let Some(network) = &mut network {
            network.let_out().map_err(RestoreError::Hook)?;
        }
        for built in &self.connections {
            if let Err(e) = built.open() {
                tracing::warn!("{}: cannot send what was not sent before: {e}", built.subject);
            }
        }
        let mut tells = false;
        if let Some(network) = network {
            network.unlock().map_err(RestoreError::Hook)?;
            tells = network.drops();
        }
        if let (true, Some(injector)) = (tells, &mut self.injector) {
            self.connections.iter().for_each(|built| built.tell_window(injector));
        }
        Ok(())
    }

    /// Does what [`FilesRestore::open_connections`] does, or what is left of it, for somebody who was
    /// killed; the tasks may run.
    pub fn rescue_connections(&self, mut network: Option<&mut (dyn NetworkLock + '_)>) {
        if let Some(Err(e)) = network.as_mut().map(|network| network.let_out()) {
            tracing::error!("nothing gets out: {e}");
        }
        for built in &self.connections {
            if let Err(e) = built.rescue() {
                tracing::error!("{}: it stays silent: {e}", built.subject);
            }
        }
        if let Some(Err(e)) = network.map(|network| network.unlock()) {
            tracing::error!("the network stays locked: {e}");
        }
    }

    /// Makes sure that connections of a restore that failed end without a word to their peers.
    pub fn silence_connections(&self) {
        let built = self.connections.iter().map(|built| &built.socket);
        for socket in built.chain(&self.silenced) {
            if let Err(e) = Repair::enter(socket) {
                tracing::warn!("a connection cannot be made silent: {e}");
            }
        }
    }
}

impl Built {
    /// Whether more is on its way than a new connection may send.
    pub(super) fn is_crowded(&self) -> bool {
        tcp::info(&self.socket).is_ok_and(|info| info.unacknowledged >= info.congestion_window)
    }

    /// Puts the last things back that repair mode or packets of our own would meet, and into the
    /// queue what has to be sent.
    fn make_ready(&mut self) -> io::Result<()> {
        if !self.entry.opts.so_filter.is_empty() {
            attach_socket_filter(&self.socket, &sockopts::instructions(&self.entry.opts))?;
        }
        let clamp = self.entry.more_opts.iter().find(|o| is_clamp(o.level, o.name));
        if let Some(clamp) = clamp.filter(|clamp| clamp.value > 0) {
            set_socket_int(&self.socket, clamp.level, clamp.name, clamp.value)?;
        }
        let repair = Repair::of(&self.socket);
        if self.connects {
            repair.leave()?;
            return self.put_reuse_back();
        }
        let info = tcp::info(&self.socket)?;
        // A FIN behind nothing that is new may have been sent too.
        let mut fin = self.closes;
        let sent_before = self.last.is_some() || fin && self.unsent.is_empty();
        let window = repair.window()?;
        let fits = info.unacknowledged < info.congestion_window
            && tcp::lengths(&self.socket)?.unacknowledged < window.snd_wnd;
        self.asks = sent_before && !fits;
        let mut last = self.last;
        if self.asks {
            repair.fill(Queue::Send, last.take().as_slice())?;
        }
        if self.asks && fin && self.unsent.is_empty() {
            repair.pretend_to_send()?;
            shutdown(self.socket.as_raw_fd(), Shutdown::Write)?;
            fin = false;
        }
        let sends = last.is_some() || !self.unsent.is_empty() || fin;
        if sends {
            repair.set_window(&Window { snd_wnd: 0, ..window })?;
        }
        repair.leave()?;
        if sends {
            // A segment of its own, which goes out whether there is room for what follows or not.
            self.send_all(last.as_slice(), MsgFlags::MSG_EOR)?;
            self.send_all(&self.unsent, MsgFlags::empty())?;
            if fin {
                shutdown(self.socket.as_raw_fd(), Shutdown::Write)?;
            }
            let repair = Repair::enter(&self.socket)?;
            repair.set_window(&window)?;
            repair.leave()?;
        }
        self.put_reuse_back()
    }

    /// Repair mode clears it.
    fn put_reuse_back(&self) -> io::Result<()> {
        let reuse = self.entry.opts.reuseaddr().into();
        set_socket_int(&self.socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
    }

    /// Sends what has to go out, and puts back what stood in its way.
    fn open(&self) -> io::Result<()> {
        if self.connects {
            self.begin()?;
        }
        if self.asks {
            Repair::enter(&self.socket)?.leave_and_ask()?;
            self.put_reuse_back()?;
        }
        self.put_options_back()
    }

    /// As [`Built::open`], from wherever its maker got to. What waits counts as sent: it goes out
    /// with the kernel's next attempt, whatever the peer has of it.
    fn rescue(&self) -> io::Result<()> {
        if self.connects {
            self.begin()?;
            return self.put_options_back();
        }
        let repair = Repair::enter(&self.socket)?;
        if tcp::lengths(&self.socket)?.unsent != 0 {
            repair.pretend_to_send()?;
            self.push()?;
        }
        repair.leave_and_ask()?;
        self.put_reuse_back()?;
        self.put_options_back()
    }

    /// Tells the peer of our window: it may think that it is closed.
    fn tell_window(&self, injector: &mut Injector) {
        let Some(announcement) = self.window else { return };
        // A clock does not go back.
        let timestamp = match announcement.segment.timestamp {
            Some(_) => Repair::of(&self.socket).timestamp().ok(),
            None => None,
        };
        let segment = Segment { timestamp, ..announcement.segment };
        Announcement { segment, ..announcement }.tell(injector);
    }

    /// To set NODELAY pushes what waits.
    fn push(&self) -> io::Result<()> {
        set_socket_int(&self.socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
    }

    fn put_options_back(&self) -> io::Result<()> {
        let set = |name, on: bool| set_socket_int(&self.socket, libc::IPPROTO_TCP, name, on.into());
        self.push()?;
        set(libc::TCP_NODELAY, self.nodelay)?;
        set(libc::TCP_CORK, self.cork)?;
        sockopts::put_buffers_back(&self.socket, &self.entry.opts)
    }

    fn send_all(&self, mut bytes: &[u8], flags: MsgFlags) -> io::Result<()> {
        let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !bytes.is_empty() {
            let n = send(self.socket.as_raw_fd(), bytes, flags)?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Asks the peer for a connection again, with the sequence number that it was asked with.
    fn begin(&self) -> io::Result<()> {
        let Some((_, peer)) = ends_of(&self.entry) else { return Ok(()) };
        let flags = OFlag::from_bits_retain(fcntl(&self.socket, FcntlArg::F_GETFL)?);
        fcntl(&self.socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let result = connect_socket(&self.socket, &raw_address(peer));
        fcntl(&self.socket, FcntlArg::F_SETFL(flags))?;
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::EINPROGRESS | libc::EALREADY | libc::EISCONN)) => Ok(()),
            _ => result,
        }
    }
}
