//! Gives sockets their connections back.
//!
//! All of a connection is rebuilt in repair mode, in which it is silent and dies silently. How it comes
//! to life is [`super::wake`]'s.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{InetSkEntry, TcpStreamEntry};
use arctern_sys::fd::{
    bind_socket, connect_socket, set_socket_int, set_socket_option, socket_option,
};
use arctern_sys::flight::widen_full_windows;
use arctern_sys::namespace::{Kind, inside};
use arctern_sys::pidfd::PidFd;
use arctern_sys::tcp::{self, Agreed, Queue, Repair, Window, option, state};
use arctern_tracee::stub::Stub;
use nix::sys::socket::{Shutdown, shutdown};

use super::inject::Injector;
use super::packet::Segment;
use super::shape::{End, Shape, shape};
use super::waiting::{self, Waiting};
use super::wake::Built;
use super::window;
use crate::error::{Refusal, RestoreError, Subject};
use crate::options::{Connection, NetworkLock, TcpPolicy};
use crate::state::files::inet::{CLOSE, LISTEN, ends_of, raw_address};
use crate::state::files::restore::FilesRestore;

/// The kernel's own upper limits of SO_SNDBUFFORCE and SO_RCVBUFFORCE are far above.
const LARGEST_QUEUE: u32 = 256 << 20;

/// Whether an entry is a connection.
pub(in crate::state::files) fn is_live(socket: &InetSkEntry) -> bool {
    socket.proto == libc::IPPROTO_TCP as u32 && !matches!(socket.state, CLOSE | LISTEN)
}

/// What is in the way of a live connection.
pub(in crate::state::files) fn check(
    socket: &InetSkEntry,
    policy: TcpPolicy,
    images: &ImageDir,
) -> Option<(String, &'static str)> {
    const DAMAGED: &str = "restore from another checkpoint, or drop connections with --tcp-close";
    if policy == TcpPolicy::Close {
        return None;
    }
    let Some((local, peer)) = ends_of(socket) else {
        return Some(("the connection has damaged addresses".to_owned(), DAMAGED));
    };
    if policy == TcpPolicy::Refuse {
        return Some((
            format!("TCP {local} -> {peer} is a live connection"),
            "restore it with --tcp-established, or drop it with --tcp-close",
        ));
    }
    let known = u8::try_from(socket.state).ok();
    if !known.is_some_and(|s| s == state::SYN_SENT || shape(s).is_some()) {
        let state = socket.state;
        return Some((format!("TCP {local} -> {peer} is in the unknown state {state}"), DAMAGED));
    }
    match read_stream(images, socket.ino) {
        Ok(_) => None,
        Err(e) => Some((format!("TCP {local} -> {peer}: {e}"), DAMAGED)),
    }
}

/// Image and queues of a connection.
type Stream = (TcpStreamEntry, Vec<u8>, Vec<u8>);

fn read_stream(images: &ImageDir, ino: u32) -> Result<Stream, RestoreError> {
    let bad = |what: &str| RestoreError::Inconsistent(format!("tcp-stream-{ino:x}.img: {what}"));
    let mut reader =
        images.reader(ImageKind::TcpStream, ino.into())?.ok_or_else(|| bad("it is missing"))?;
    let entry: TcpStreamEntry = reader.required()?;
    if entry.inq_len > LARGEST_QUEUE || entry.outq_len > LARGEST_QUEUE {
        return Err(bad("a queue is too long"));
    }
    if entry.unsq_len.unwrap_or(0) > entry.outq_len {
        return Err(bad("more data is unsent than there is"));
    }
    let received = reader.payload(entry.inq_len.into())?;
    let sent = reader.payload(entry.outq_len.into())?;
    Ok((entry, received, sent))
}

impl FilesRestore {
    /// Gives every connection back to its socket. All listeners must be there: a listener cannot be
    /// bound beside a connection.
    ///
    /// # Errors
    /// Refused: all connections whose addresses are not to be had here. After an error the sockets
    /// close silently, once [`FilesRestore::silence_connections`] was called.
    pub fn build_connections(
        &mut self,
        stubs: &[(usize, Stub)],
        network: Option<&mut (dyn NetworkLock + '_)>,
    ) -> Result<(), RestoreError> {
        if self.options.tcp != TcpPolicy::Established {
            return Ok(());
        }
        let live: Vec<(u32, InetSkEntry)> = self
            .holders
            .keys()
            .filter_map(|id| Some((*id, self.files[id].isk.as_deref()?)))
            .filter(|(_, socket)| is_live(socket))
            .map(|(id, socket)| (id, socket.clone()))
            .collect();
        let waiting = waiting::list(&self.images)
            .map_err(|e| RestoreError::Inconsistent(format!("{}: {e}", waiting::FILE_NAME)))?;
        let waiting_ends = waiting.iter().map(|w| Connection { local: w.local, peer: w.peer });
        let ends = live.iter().filter_map(|(_, s)| wire(s)).chain(waiting_ends);
        let ends: Vec<Connection> = ends.collect();
        if let Some(network) = network {
            network.lock(&ends).map_err(RestoreError::Hook)?;
        }
        let Some((_, root)) = stubs.first() else { return Ok(()) };
        let mut injector = Injector::new(root.tid(), None);
        self.injector = Some(Injector::new(root.tid(), None));
        let mut refusals = Vec::new();
        for (id, entry) in live {
            let (Some(ends), Some(holder)) = (wire(&entry), self.holders[&id].first()) else {
                continue;
            };
            let mut subject = self.named_subject(id);
            subject.part = format!("{} (TCP {} -> {})", subject.part, ends.local, ends.peer);
            let stub = stubs.iter().find(|(task, _)| *task == holder.0).map(|(_, stub)| *stub);
            let stub = stub.ok_or_else(|| {
                RestoreError::Inconsistent(format!("{subject}: nobody holds the connection"))
            })?;
            let socket = PidFd::open(stub.tid())
                .and_then(|pidfd| pidfd.getfd(holder.1))
                .map_err(failed(&subject, "duplicate it into the controller"))?;
            let stream = read_stream(&self.images, entry.ino)?;
            match build(&socket, &entry, ends, stream, &mut injector) {
                Ok(made) => self.connections.push(Built { subject, socket, entry, ..made }),
                Err(Failure::Refused(cause, remedy)) => {
                    // Still silent: it dies with the others.
                    self.silenced.push(socket);
                    refusals.push(Refusal { subject, cause, remedy: remedy.into() });
                }
                Err(Failure::Kernel(what, e)) => {
                    self.silenced.push(socket);
                    return Err(failed(&subject, what)(e));
                }
            }
        }
        if !refusals.is_empty() {
            return Err(RestoreError::Refused(refusals));
        }
        if self.connections.iter().any(Built::is_crowded)
            && let Err(e) = inside(root.tid(), &[Kind::Net], widen_full_windows)
        {
            // Slower, where segments were lost.
            tracing::debug!("congestion windows stay those of new connections: {e}");
        }
        self.give_waiting_back(stubs, &mut injector, &waiting)
    }

    /// Gives listeners the connections that the program had not accepted.
    fn give_waiting_back(
        &self,
        stubs: &[(usize, Stub)],
        injector: &mut Injector,
        list: &[Waiting],
    ) -> Result<(), RestoreError> {
        for one in list {
            let of_listener = |id: &u32| {
                let socket = self.files[id].isk.as_deref();
                socket.is_some_and(|s| {
                    s.ino == one.listener
                        && s.state == LISTEN
                        && s.src_port == u32::from(one.local.port())
                })
            };
            let id = self.holders.keys().copied().find(of_listener);
            let holder = id.and_then(|id| Some((id, *self.holders[&id].first()?)));
            let (Some((id, (task, fd))), true) = (holder, waiting::can_wait(one.state)) else {
                return Err(RestoreError::Inconsistent(format!(
                    "{}: {} -> {} has no listener",
                    waiting::FILE_NAME,
                    one.local,
                    one.peer
                )));
            };
            let mut subject = self.named_subject(id);
            subject.part = format!("{}, waiting {} -> {}", subject.part, one.local, one.peer);
            let stub = stubs.iter().find(|(of, _)| *of == task).map(|(_, stub)| stub.tid());
            let listener = stub
                .ok_or(io::ErrorKind::NotFound.into())
                .and_then(|tid| PidFd::open(tid)?.getfd(fd))
                .map_err(failed(&subject, "duplicate the listener into the controller"))?;
            let (entry, received, _) = read_stream(&self.images, one.ino)?;
            if entry.inq_len > waiting::MOST_UNREAD + 1 {
                return Err(RestoreError::Inconsistent(format!(
                    "tcp-stream-{:x}.img: {} unread bytes of a connection that waits",
                    one.ino, entry.inq_len
                )));
            }
            waiting::give_back(injector, &listener, one, &entry, &received)
                .map_err(failed(&subject, "give the connection back to the listener"))?;
        }
        let root = &self.tasks[0];
        let subject = Subject { pid: root.pid, comm: root.comm.clone(), part: String::new() };
        injector.confirm().map_err(failed(&subject, "give connections back to their listeners"))
    }
}

pub(super) fn failed(
    subject: &Subject,
    what: &str,
) -> impl FnOnce(io::Error) -> RestoreError + use<> {
    let (subject, what) = (subject.clone(), what.to_owned());
    move |source| RestoreError::Kernel { subject, what, source }
}

/// The ends of an entry as they are on the wire.
fn wire(socket: &InetSkEntry) -> Option<Connection> {
    ends_of(socket).map(|(local, peer)| super::capture::on_wire(local, peer))
}

/// Why a connection was not built.
enum Failure {
    Refused(String, &'static str),
    Kernel(&'static str, io::Error),
}

fn kernel<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure::Kernel(what, e.into())
}

/// Builds one connection and leaves it in repair mode. Subject, entry and socket of the result are
/// the caller's to fill.
fn build(
    socket: &OwnedFd,
    entry: &InetSkEntry,
    ends: Connection,
    (stream, received, sent): Stream,
    injector: &mut Injector,
) -> Result<Built, Failure> {
    let state = entry.state as u8;
    let shape = shape(state);
    let repair = Repair::enter(socket).map_err(kernel("enter repair mode"))?;
    make_room(socket, &stream).map_err(kernel("enlarge its buffers"))?;
    // Of a connection that has yet to begin, the number of the SYN.
    let fin = shape.map_or(1, Shape::sent_fin);
    let first_sent = stream.outq_seq.wrapping_sub(fin).wrapping_sub(stream.outq_len);
    let received_fin = shape.map_or(0, Shape::received_fin);
    let first_received = stream.inq_seq.wrapping_sub(received_fin).wrapping_sub(stream.inq_len);
    repair
        .set_sequence(Queue::Send, first_sent)
        .and_then(|()| match shape {
            Some(_) => repair.set_sequence(Queue::Receive, first_received),
            None => Ok(()),
        })
        .map_err(kernel("set its sequence numbers"))?;
    if let Some(name) = &entry.congestion_control
        && tcp::congestion_control(socket).is_ok_and(|now| now != *name)
    {
        set_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes())
            .map_err(kernel("choose its congestion control"))?;
    }
    let Some((local, peer)) = ends_of(entry) else {
        return Err(Failure::Kernel("read its addresses", io::ErrorKind::InvalidData.into()));
    };
    bind_socket(socket, &raw_address(local)).map_err(|e| match e.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Failure::Refused(
            format!("this network has no address {}", ends.local.ip()),
            "restore it where the address is, or drop connections with --tcp-close",
        ),
        _ => Failure::Kernel("bind it", e),
    })?;
    let mut built = Built {
        subject: Subject { pid: 0, comm: String::new(), part: String::new() },
        socket: socket.try_clone().map_err(kernel("duplicate it"))?,
        entry: entry.clone(),
        nodelay: entry.tcp_opts.as_ref().map_or(stream.nodelay, |o| o.nodelay).unwrap_or(false),
        cork: entry.tcp_opts.as_ref().map_or(stream.cork, |o| o.cork).unwrap_or(false),
        last: None,
        unsent: Vec::new(),
        closes: false,
        connects: shape.is_none(),
        asks: false,
        window: shape.filter(|shape| !shape.peer_closed).and_then(|_| window::of(ends, &stream)),
    };
    let Some(shape) = shape else { return Ok(built) };
    connect_socket(socket, &raw_address(peer)).map_err(|e| match e.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Failure::Refused(
            "another connection has the same addresses and ports here".to_owned(),
            "end the program that has it, or drop connections with --tcp-close",
        ),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => Failure::Refused(
            format!("this network has no route to {}", ends.peer.ip()),
            "restore it where the peer can be reached, or drop connections with --tcp-close",
        ),
        _ => Failure::Kernel("connect it", e),
    })?;
    agree(&repair, &stream).map_err(kernel("set what its ends agreed upon"))?;
    if ends.local.is_ipv4() {
        // The size of segments was computed before the peer's was known, and is only computed again
        // when something in the header changes. Without options to lose this changes nothing.
        let mut options = [0; 40];
        if socket_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &mut options)
            .is_ok_and(|n| n == 0)
        {
            let _ = set_socket_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[]);
        }
    }
    repair.fill(Queue::Receive, &received).map_err(kernel("fill its receive queue"))?;
    drop(received);
    let unsent = stream.unsq_len.unwrap_or(0).min(stream.outq_len);
    let (before, after) = sent.split_at((stream.outq_len - unsent) as usize);
    let fill =
        |bytes: &[u8]| repair.fill(Queue::Send, bytes).map_err(kernel("fill its send queue"));
    // Both sides closed at once: the order of the two FINs would change if ours went out later.
    let all_sent = shape.peer_closed && !shape.peer_first;
    match before.split_last() {
        _ if all_sent => fill(&sent)?,
        Some((last, held)) => {
            fill(held)?;
            built.last = Some(*last);
        }
        None => {}
    }
    if !all_sent {
        built.unsent = after.to_vec();
    }
    let window = window(&stream);
    let reached = stream.inq_seq.wrapping_sub(received_fin);
    if let Some(window) = window {
        // Wide enough for a FIN to arrive.
        let open = Window { rcv_wup: reached, rcv_wnd: window.rcv_wnd.max(1 << 14), ..window };
        repair.set_window(&open).map_err(kernel("set its windows"))?;
    }
    let arriving = Segment {
        sequence: reached,
        acknowledges: first_sent,
        window: (stream.snd_wnd.unwrap_or(0) >> stream.snd_wscale.min(14)) as u16,
        fin: true,
        timestamp: None,
    };
    if shape.peer_first {
        deliver(injector, socket, &ends, arriving, state::CLOSE_WAIT)?;
    }
    let pretend_close = || {
        repair.pretend_to_send()?;
        shutdown(socket.as_raw_fd(), Shutdown::Write).map_err(io::Error::from)
    };
    match shape.sending {
        End::Open => {}
        End::Closed if !all_sent => built.closes = true,
        End::Closed => {
            pretend_close().map_err(kernel("close its direction"))?;
            deliver(injector, socket, &ends, arriving, state::CLOSING)?;
        }
        End::Acknowledged => {
            pretend_close().map_err(kernel("close its direction"))?;
            let known = Segment { acknowledges: stream.outq_seq, fin: false, ..arriving };
            deliver(injector, socket, &ends, known, state::FIN_WAIT2)?;
        }
    }
    if let Some(window) = window {
        repair.set_window(&window).map_err(kernel("set its windows"))?;
    }
    Ok(built)
}

/// Room for both queues, with what the kernel adds to each piece of them.
fn make_room(socket: &OwnedFd, stream: &TcpStreamEntry) -> io::Result<()> {
    let room = |bytes: u32| i32::try_from(u64::from(bytes) * 2 + (1 << 20)).unwrap_or(i32::MAX / 2);
    // An own limit of the program's is set again at the end.
    set_socket_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room(stream.outq_len))?;
    if stream.inq_len != 0 {
        set_socket_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room(stream.inq_len))?;
    }
    Ok(())
}

fn agree(repair: &Repair<'_>, stream: &TcpStreamEntry) -> io::Result<()> {
    let has = |bit: u8| stream.opt_mask & u32::from(bit) != 0;
    let shift = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    let mut options = vec![Agreed::Mss(u16::try_from(stream.mss_clamp).unwrap_or(u16::MAX))];
    if has(option::WSCALE) {
        let receive = stream.rcv_wscale.unwrap_or(0);
        options.push(Agreed::WindowScale(shift(stream.snd_wscale), shift(receive)));
    }
    if has(option::SACK) {
        options.push(Agreed::Sack);
    }
    if has(option::TIMESTAMPS) {
        options.push(Agreed::Timestamps);
    }
    repair.agree(&options)?;
    match stream.timestamp {
        Some(timestamp) if has(option::TIMESTAMPS) => repair.set_timestamp(timestamp),
        _ => Ok(()),
    }
}

fn window(stream: &TcpStreamEntry) -> Option<Window> {
    Some(Window {
        snd_wl1: stream.snd_wl1?,
        snd_wnd: stream.snd_wnd?,
        max_window: stream.max_window?,
        rcv_wnd: stream.rcv_wnd?,
        rcv_wup: stream.rcv_wup?,
    })
}

/// TCP_WINDOW_CLAMP: of a connection the kernel's own value too, which means nothing before it is
/// connected.
pub(in crate::state::files) fn is_clamp(level: i32, name: i32) -> bool {
    (level, name) == (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP)
}

/// Delivers a segment and waits until our end is in `state`.
fn deliver(
    injector: &mut Injector,
    end: &OwnedFd,
    ends: &Connection,
    segment: Segment,
    state: u8,
) -> Result<(), Failure> {
    injector.send(ends, segment, &[]).map_err(kernel("deliver the end of its stream"))?;
    injector.settled(|| Ok(tcp::info(end)?.state == state)).map_err(kernel("rebuild its state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_queues_are_refused_before_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::create(dir.path().join("images")).unwrap();
        let write = |entry: &TcpStreamEntry, bytes: &[u8]| {
            let mut writer = images.writer(ImageKind::TcpStream, 5).unwrap();
            writer.record(entry).unwrap();
            writer.payload(bytes).unwrap();
            writer.finish().unwrap();
        };
        assert!(read_stream(&images, 5).is_err());
        write(&TcpStreamEntry { inq_len: 3, outq_len: 2, ..Default::default() }, b"abcde");
        let (_, received, sent) = read_stream(&images, 5).unwrap();
        assert_eq!((&received[..], &sent[..]), (&b"abc"[..], &b"de"[..]));
        write(&TcpStreamEntry { inq_len: u32::MAX, ..Default::default() }, b"");
        assert!(read_stream(&images, 5).is_err());
        write(&TcpStreamEntry { outq_len: 9, ..Default::default() }, b"abc");
        assert!(read_stream(&images, 5).is_err());
        let unsent = TcpStreamEntry { outq_len: 1, unsq_len: Some(2), ..Default::default() };
        write(&unsent, b"a");
        assert!(read_stream(&images, 5).is_err());
    }
}
