//! Peers are told that our window is closed, where a lock of the network drops what they send.
//!
//! A peer whose segment is lost in such a lock waits for its timer, which doubles each time. One that
//! knows of a closed window keeps what it has to send instead, and sends it at once when it hears of
//! the window again. It may also ask for it by itself, so nothing depends on that it hears: all of this
//! is done as well as it can be. (The idea is known as Freeze-TCP.)

use std::collections::HashSet;

use arctern_image::messages::TcpStreamEntry;
use arctern_sys::Pid;
use arctern_sys::tcp::{self, Queue, Repair, option};

use super::capture::Live;
use super::inject::Injector;
use super::packet::Segment;
use super::shape::shape;
use crate::options::Connection;
use crate::state::files::capture::FileCollector;

/// What peers are told of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub ends: Connection,
    /// Ours, with nothing in it.
    pub segment: Segment,
}

impl Announcement {
    /// Of a window that is closed.
    fn closed(self) -> Self {
        Announcement { segment: Segment { window: 0, ..self.segment }, ..self }
    }

    /// Tells it.
    pub fn tell(&self, injector: &mut Injector) {
        if let Err(e) = injector.answer(&self.ends, self.segment) {
            tracing::debug!("{} is not told of a window: {e}", self.ends.peer);
        }
    }
}

/// Windows that were closed. Dropped, they are open.
pub(crate) struct ClosedWindows {
    injector: Injector,
    told: Vec<Announcement>,
}

impl ClosedWindows {
    /// They stay closed: the tasks are not going on here.
    pub fn keep(mut self) {
        self.told.clear();
    }
}

impl Drop for ClosedWindows {
    fn drop(&mut self) {
        for announcement in &self.told {
            announcement.tell(&mut self.injector);
        }
    }
}

impl FileCollector {
    /// Tells the peers outside of the tree that we take nothing now. `root` is a task of the tree's
    /// network namespace. Where the network is not locked yet the kernel may say something else later.
    pub(crate) fn close_windows(&self, root: Pid) -> ClosedWindows {
        let mut closed = ClosedWindows { injector: Injector::new(root, None), told: Vec::new() };
        let ours: HashSet<Connection> = self.connections().into_iter().collect();
        for live in &self.tcp.live {
            let other = Connection { local: live.ends.peer, peer: live.ends.local };
            let sends = shape(live.state).is_some_and(|shape| !shape.peer_closed);
            if !sends || ours.contains(&other) {
                continue;
            }
            match live.announcement() {
                Ok(announcement) => {
                    announcement.closed().tell(&mut closed.injector);
                    closed.told.push(announcement);
                }
                Err(e) => tracing::debug!("{}: its window stays as it is: {e}", live.subject),
            }
        }
        closed
    }
}

impl Live {
    /// What its peer knows of our window.
    fn announcement(&self) -> std::io::Result<Announcement> {
        let info = tcp::info(&self.socket)?;
        let segment = Repair::enter(&self.socket).and_then(|repair| {
            let window = repair.window()?;
            let reached = repair.sequence(Queue::Receive)?;
            let written = repair.sequence(Queue::Send)?;
            let timestamps = info.options & option::TIMESTAMPS != 0;
            Ok(Segment {
                sequence: written.wrapping_sub(tcp::lengths(&self.socket)?.unsent),
                acknowledges: reached,
                window: scaled(window.rcv_wup, window.rcv_wnd, reached, info.receive_wscale),
                fin: false,
                timestamp: if timestamps { Some(repair.timestamp()?) } else { None },
            })
        });
        self.wake();
        Ok(Announcement { ends: self.ends, segment: segment? })
    }
}

/// As [`Live::announcement`], of a connection that was captured. A clock is to be asked for.
pub(super) fn of(ends: Connection, stream: &TcpStreamEntry) -> Option<Announcement> {
    let shift = u8::try_from(stream.rcv_wscale.unwrap_or(0)).unwrap_or(u8::MAX);
    let clocked = stream.opt_mask & u32::from(option::TIMESTAMPS) != 0;
    let segment = Segment {
        sequence: stream.outq_seq.wrapping_sub(stream.unsq_len.unwrap_or(0)),
        acknowledges: stream.inq_seq,
        window: scaled(stream.rcv_wup?, stream.rcv_wnd?, stream.inq_seq, shift),
        fin: false,
        timestamp: stream.timestamp.filter(|_| clocked),
    };
    Some(Announcement { ends, segment })
}

/// What is left of a window of `window` bytes from `announced_at` on, when all before `reached` has
/// come; as the header has it.
pub(super) fn scaled(announced_at: u32, window: u32, reached: u32, shift: u8) -> u16 {
    let left = window.saturating_sub(reached.wrapping_sub(announced_at));
    u16::try_from(left >> shift.min(14)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_no_part_of_a_window() {
        assert_eq!(scaled(u32::MAX, 5000, 99, 2), 1225);
        assert_eq!(scaled(10, 5000, 6000, 2), 0);
        assert_eq!(scaled(0, u32::MAX, 0, 14), u16::MAX);
    }
}
