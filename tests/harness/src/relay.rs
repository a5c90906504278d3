//! A long and lossy wire between two devices of a place: what comes in by one goes out by the other,
//! later, or not at all.

use crate::place::Place;
use crate::random::Random;
use anyhow::{Context, Result};
use arctern_sys::packet::PacketSocket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How bad a wire is.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// How long a frame takes, one way.
    pub delay: Duration,
    /// How many of a thousand frames get lost.
    pub loss: u64,
}

/// A wire that works until the value is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<()>>>,
    _place: Place,
}

struct End {
    tap: PacketSocket,
    index: u32,
    /// Frames that leave by this end, and when.
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

impl End {
    fn open(place: &Place, device: &str) -> Result<Self> {
        let index = place.ip(&format!("-o link show {device}"))?;
        let index = index.split(':').next().and_then(|n| n.trim().parse().ok());
        let index = index.with_context(|| format!("{device} has no index"))?;
        let tap = place.inside(|| Ok(PacketSocket::tap(index)?))?;
        Ok(Self { tap, index, waiting: VecDeque::new() })
    }
}

impl Relay {
    /// Begins to carry frames between two devices of a place, which are up and have no addresses.
    pub fn start(place: Place, devices: [&str; 2], wire: Wire) -> Result<Self> {
        let ends = [End::open(&place, devices[0])?, End::open(&place, devices[1])?];
        let (ended, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let thread = std::thread::spawn(move || carry(ends, wire, &ended));
        Ok(Self { stop: Some(stop), thread: Some(thread), _place: place })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("the wire broke: {error:#}");
        }
    }
}

fn carry(mut ends: [End; 2], wire: Wire, ended: &OwnedFd) -> Result<()> {
    let mut random = Random::seeded();
    let mut buffer = vec![0; 72 << 10];
    loop {
        let next = ends.iter().filter_map(|end| end.waiting.front()).map(|(at, _)| *at).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut polled = [ended.as_fd(), ends[0].tap.as_fd(), ends[1].tap.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot poll"),
        }
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
        for from in [0, 1] {
            while let Ok(received) = ends[from].tap.receive(&mut buffer) {
                if !received.outgoing && random.below(1000) >= wire.loss {
                    let frame = buffer[..received.length].to_vec();
                    ends[1 - from].waiting.push_back((Instant::now() + wire.delay, frame));
                }
            }
        }
        for end in &mut ends {
            while end.waiting.front().is_some_and(|(at, _)| *at <= Instant::now()) {
                if let Some((_, frame)) = end.waiting.pop_front() {
                    // Lost, as on any wire that is too thin.
                    let _ = end.tap.send(end.index, &frame);
                }
            }
        }
    }
}
