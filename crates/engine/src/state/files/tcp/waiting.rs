//! Connections that are complete and that the program has not accepted.
//!
//! Capture: when the network is locked the controller accepts them through its duplicate of the
//! listener, reads them like all others, closes them silently and gives them back at once, so that the
//! tasks may go on. Restore: they are given back to the restored listener. Given back means: the last
//! segment of the handshake arrives once more ([`arctern_sys::handshake`]), then the unread data and,
//! if it had come, the FIN. CRIU's images have no place for them: `arctern-accept.json` lists them
//! beside their `tcp-stream-%x.img`, and CRIU drops them.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{TcpOptsEntry, TcpStreamEntry};
use arctern_sys::diag::TcpSocket;
use arctern_sys::fd::socket_int;
use arctern_sys::handshake::{Agreement, Handshakes};
use arctern_sys::namespace::{Kind, inside};
use arctern_sys::tcp::{self, Repair, option, state};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::capture::{Listener, Live, failed, on_wire};
use super::inject::{Injector, Stream};
use super::packet::Segment;
use super::shape::shape;
use crate::error::CaptureError;
use crate::options::Connection;
use crate::state::files::capture::FileCollector;
use crate::state::files::inet;
use crate::tree::FrozenTree;

/// Name of the list in the images directory.
pub(super) const FILE_NAME: &str = "arctern-accept.json";

/// Unread bytes of a connection that can be given back: what a new connection's window takes.
pub(super) const MOST_UNREAD: u32 = 48 * 1024;

/// Bytes of a list.
const LONGEST_LIST: u64 = 8 << 20;

/// One connection of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// Inode of its listener, as `files.img` has it.
    pub listener: u32,
    /// Its own inode: names `tcp-stream-%x.img`.
    pub ino: u32,
    /// [`state::ESTABLISHED`] or [`state::CLOSE_WAIT`].
    pub state: u8,
    /// The listener's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

/// The list of a directory; empty if there is none.
pub(super) fn list(images: &ImageDir) -> io::Result<Vec<Waiting>> {
    let Some(file) = images.open_other(FILE_NAME).map_err(io::Error::other)? else {
        return Ok(Vec::new());
    };
    let mut text = Vec::new();
    file.take(LONGEST_LIST).read_to_end(&mut text)?;
    let list: Vec<Waiting> = serde_json::from_slice(&text)?;
    match list.iter().find(|one| !one.is_possible()) {
        Some(one) => {
            Err(io::Error::other(format!("there is no connection {} -> {}", one.local, one.peer)))
        }
        None => Ok(list),
    }
}

impl Waiting {
    /// Whether a connection can have such ends.
    fn is_possible(&self) -> bool {
        let one_host = |end: &SocketAddr| {
            let ip = end.ip().to_canonical();
            let all = ip == std::net::Ipv4Addr::BROADCAST;
            end.port() != 0 && !ip.is_multicast() && !ip.is_unspecified() && !all
        };
        let kind = |end: &SocketAddr| end.ip().to_canonical().is_ipv4();
        one_host(&self.local) && one_host(&self.peer) && kind(&self.local) == kind(&self.peer)
    }
}

/// Reads the list, for whoever only wants to know whether it can be read.
pub(crate) fn examine(images: &ImageDir) -> io::Result<()> {
    list(images).map(drop)
}

impl FileCollector {
    /// Whether connections that wait can be given back, in the tree's network namespace.
    pub(super) fn gives_back(&mut self, tree: &FrozenTree) -> bool {
        let takes = self.options.takes_waiting;
        let probe = || inside(tree.tasks[0].pid, &[Kind::Net], Handshakes::probe).ok();
        self.tcp.handshakes.get_or_insert_with(|| if takes { probe() } else { None }).is_some()
    }

    /// Writes the connections that wait to be accepted, and gives them back. The network must be
    /// locked.
    pub fn write_waiting(
        &mut self,
        tree: &FrozenTree,
        images: &ImageDir,
    ) -> Result<(), CaptureError> {
        let handshakes = self.tcp.handshakes.take().flatten();
        let mut injector = Injector::new(tree.tasks[0].pid, handshakes);
        let taken = self.take_waiting(images, &mut injector);
        // Also after an error: their peers do not send again what was acknowledged.
        let confirmed = injector.confirm();
        let list = taken?;
        confirmed.map_err(tree.tasks[0].failed("", "give connections back to their listeners"))?;
        let path = images.path().join(FILE_NAME);
        let written = match list.is_empty() {
            true => std::fs::remove_file(&path).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            }),
            false => std::fs::write(&path, serde_json::to_vec(&list).expect("plain numbers")),
        };
        written.map_err(tree.tasks[0].failed("", format!("write {}", path.display())))
    }

    /// Takes the connections from their listeners, writes them, and gives them back.
    fn take_waiting(
        &self,
        images: &ImageDir,
        injector: &mut Injector,
    ) -> Result<Vec<Waiting>, CaptureError> {
        let mut list = Vec::new();
        for listener in &self.tcp.listeners {
            // What is given back comes last: the order stays.
            for _ in 0..listener.complete()? {
                let Some(live) = take(listener)? else { break };
                let stream = live.read().map_err(failed(&live.subject, "read the connection"));
                // Silent, whatever came out.
                let silent = Repair::enter(&live.socket).map(drop);
                silent.map_err(failed(&live.subject, "make its end silent"))?;
                let (entry, received, sent) = stream?;
                let waiting = Waiting {
                    listener: listener.ino,
                    ino: live.ino,
                    state: live.state,
                    local: live.ends.local,
                    peer: live.ends.peer,
                };
                let subject = live.subject.clone();
                drop(live);
                give_back(injector, &listener.socket, &waiting, &entry, &received)
                    .map_err(failed(&subject, "give the connection back to the listener"))?;
                let mut writer = images.writer(ImageKind::TcpStream, waiting.ino.into())?;
                writer.record(&entry)?;
                writer.payload(&received)?;
                writer.payload(&sent)?;
                writer.finish()?;
                list.push(waiting);
            }
        }
        Ok(list)
    }
}

impl Listener {
    /// How many connections wait.
    pub(super) fn complete(&self) -> Result<u32, CaptureError> {
        let info = tcp::info(&self.socket);
        Ok(info.map_err(failed(&self.subject, "look at the listener"))?.unacknowledged)
    }
}

/// Accepts a connection; None when none waits.
fn take(listener: &Listener) -> Result<Option<Live>, CaptureError> {
    let failed = |e| failed(&listener.subject, "accept a connection for the program")(e);
    let mut fds = [PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO).map_err(|e| failed(e.into()))? == 0 {
        return Ok(None);
    }
    let socket = arctern_sys::fd::accept(&listener.socket).map_err(failed)?;
    let stat = nix::sys::stat::fstat(&socket).map_err(|e| failed(e.into()))?;
    let address = |peer| inet::address_of(&socket, peer);
    let (Some(local), Some(peer)) =
        (address(false).map_err(failed)?, address(true).map_err(failed)?)
    else {
        return Err(failed(io::ErrorKind::InvalidData.into()));
    };
    let ends = on_wire(local, peer);
    let mut subject = listener.subject.clone();
    subject.part = format!("{}, waiting {} -> {}", subject.part, ends.local, ends.peer);
    let state = tcp::info(&socket).map_err(failed)?.state;
    let opts = TcpOptsEntry::default();
    let ino = stat.st_ino as u32;
    Ok(Some(Live { subject, socket, ino, state, ends, reuse: false, peek: None, opts }))
}

/// Makes a listener take a connection; the network must be locked. Call [`Injector::confirm`] when all
/// are given back.
pub(super) fn give_back(
    injector: &mut Injector,
    listener: &impl AsFd,
    waiting: &Waiting,
    entry: &TcpStreamEntry,
    received: &[u8],
) -> io::Result<()> {
    let ends = Connection { local: waiting.local, peer: waiting.peer };
    let has = |bit: u8| entry.opt_mask & u32::from(bit) != 0;
    let shift = |n: u32| u8::try_from(n).unwrap_or(0);
    let agreement = Agreement {
        mss: u16::try_from(entry.mss_clamp).unwrap_or(u16::MAX),
        wscale: has(option::WSCALE)
            .then(|| (shift(entry.snd_wscale), shift(entry.rcv_wscale.unwrap_or(0)))),
        sack: has(option::SACK),
        timestamp: entry.timestamp.filter(|_| has(option::TIMESTAMPS)),
    };
    let fin = shape(waiting.state).map_or(0, |shape| shape.received_fin());
    let start = entry.inq_seq.wrapping_sub(fin).wrapping_sub(entry.inq_len);
    let first = Segment {
        sequence: start,
        acknowledges: entry.outq_seq,
        window: (entry.snd_wnd.unwrap_or(0) >> entry.snd_wscale.min(14)) as u16,
        fin: false,
        timestamp: None,
    };
    let before = tcp::info(listener)?.unacknowledged;
    let taken = || Ok(tcp::info(listener)?.unacknowledged > before);
    injector.shake_hands(&ends, &agreement, first, taken)?;
    injector.stream(Stream { ends, first, data: received.to_vec(), fin: fin != 0 });
    Ok(())
}

/// Whether the connections that wait at a listener can be given back to it: they have sent little, and
/// no other listener could get them.
pub(super) fn returnable(listener: &impl AsFd, port: u16, sockets: &[TcpSocket]) -> bool {
    let group = socket_int(listener, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|on| on != 0);
    let mut theirs = sockets.iter().filter(|s| s.ino == 0 && s.local.port() == port);
    !group && theirs.all(|s| s.receive_queue <= MOST_UNREAD && s.send_queue == 0)
}

/// Whether a state is one in which a connection can wait.
pub(super) fn can_wait(state: u8) -> bool {
    matches!(state, state::ESTABLISHED | state::CLOSE_WAIT)
}
