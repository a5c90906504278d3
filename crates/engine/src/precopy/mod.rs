//! Memory is copied ahead, round after round, while the tasks run; the capture then takes the rest.
//!
//! A round stops the tasks for a moment only: to list their mappings, and to find and protect the pages
//! that were written since the round before ([`crate::tracking`]). The bytes are read while the tasks
//! run. A page that is written meanwhile may be read half old and half new; it was written after it was
//! protected, so it is told by the next round or by the capture, which stores it again.
//!
//! ```ignore
//! let mut precopy = Precopy::begin(pid, timeout)?;
//! while policy.goes_on(&precopy.round(&mut sink)?) {}
//! precopy.finish(images_dir, Some(&mut sink), options, events)?;
//! ```

mod preload;
mod sink;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use arctern_image::messages::MmEntry;
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::pagemap::{Pagemap, Query};
use arctern_sys::{PAGE_SIZE, Pid, proc};

pub use self::preload::Preloaded;
pub use self::sink::{PageDirectory, PageSink};
use crate::capture::{MemoryPart, capture_with};
use crate::error::CaptureError;
use crate::freeze::{Depth, freeze};
use crate::options::{CaptureOptions, CaptureReport, Events};
use crate::patience::patiently;
use crate::state::memory::vma;
use crate::tracking::{Look, Method, PRIVATE_DATA, Ranges, Tracking};

/// Bytes given to the sink at a time.
const CHUNK: usize = 1 << 20;

/// What a round did. Bytes are of pages.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RoundFigures {
    /// Looked at.
    pub scanned: u64,
    /// Found written since the round before (in the first round: holding anything).
    pub dirty: u64,
    /// Given to the sink.
    pub sent: u64,
    /// Left out because they hold zeros.
    pub zeros: u64,
    /// Unchanged since a round before.
    pub unchanged: u64,
    /// Gone before they could be read.
    pub vanished: u64,
    /// How long the tasks stood still, microseconds.
    pub frozen_us: u64,
    /// The whole round, microseconds.
    pub total_us: u64,
}

/// A tree whose memory is copied ahead. Dropped, the tracking ends.
#[derive(Debug)]
pub struct Precopy {
    root: Pid,
    tracking: Tracking,
    timeout: Duration,
    /// Whose memory the last round looked at, as the controller sees them and inside.
    seen: Vec<(Pid, i32)>,
    /// The sink is told the mappings of the root task too.
    with_mappings: bool,
}

impl Precopy {
    /// Begins with the tree under `root`, whose tasks run on. `timeout` limits each attempt to stop them.
    ///
    /// # Errors
    /// The kernel has no way to track writes.
    pub fn begin(root: Pid, timeout: Duration) -> Result<Self, CaptureError> {
        let method = Method::probe().ok_or(CaptureError::NoTracking)?;
        Ok(Self::go_on(root, Tracking::new(method), timeout))
    }

    /// Goes on with what was tracked before.
    pub fn go_on(root: Pid, tracking: Tracking, timeout: Duration) -> Self {
        Precopy { root, tracking, timeout, seen: Vec::new(), with_mappings: false }
    }

    /// Tells the sink the mappings of the root task too ([`PageSink::mappings`]).
    #[must_use]
    pub fn with_mappings(self) -> Self {
        Precopy { with_mappings: true, ..self }
    }

    /// What is tracked, to be kept by somebody else.
    pub fn into_tracking(self) -> Tracking {
        self.tracking
    }

    /// Gives the sink what was written since the last round, in the first one everything.
    ///
    /// # Errors
    /// The tasks cannot be stopped, or the sink fails. The tasks go on, and pages that the sink did not
    /// get are in the next round.
    pub fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFigures, CaptureError> {
        let started = Instant::now();
        let mut frozen = patiently(self.timeout, || {
            let mut refusals = Vec::new();
            let before = proc::tree(self.root);
            let frozen = freeze(self.root, &before, self.timeout, Depth::Threads, &mut refusals)?;
            if !refusals.is_empty() {
                frozen.resume()?;
                return Err(CaptureError::Refused(refusals));
            }
            Ok(frozen)
        })?;
        let looks = self.tracking.look(&mut frozen.tree)?;
        let since = frozen.since;
        frozen.resume()?;
        let mut figures = RoundFigures {
            frozen_us: since.elapsed().as_micros() as u64,
            ..RoundFigures::default()
        };
        self.seen = looks.iter().map(|look| (look.pid, look.inner_pid)).collect();
        for look in looks {
            let pid = look.inner_pid;
            sink.space(pid).map_err(CaptureError::Hook)?;
            if self.with_mappings && look.pid == self.root {
                sink.mappings(&anonymous(self.root)).map_err(CaptureError::Hook)?;
            }
            let (stored, zeros) = send(look, sink, &mut figures)?;
            self.tracking.stored(pid, stored, zeros);
        }
        figures.total_us = started.elapsed().as_micros() as u64;
        Ok(figures)
    }

    /// Bytes that were written since the last round, as far as its mappings go: an estimate, made
    /// without stopping anybody.
    pub fn written(&self) -> u64 {
        let written = self.tracking.method().written();
        let query = Query { all: PRIVATE_DATA.all | written, report: written, ..PRIVATE_DATA };
        let mut bytes = 0;
        for (pid, inner) in &self.seen {
            // One that has ended meanwhile has nothing to send.
            let Ok(mut pagemap) = Pagemap::open(*pid) else { continue };
            for (start, end) in self.tracking.registered(*inner) {
                let found = |region: arctern_sys::pagemap::Region| {
                    bytes += region.end - region.start;
                };
                let _ = pagemap.scan(RemoteAddr(start), RemoteAddr(end), query, found);
            }
        }
        bytes
    }

    /// Captures the tree with what was written since the last round. `sink` gets the memory; without
    /// one it goes into `images_dir`, whose `parent` link must lead to the last round then. All other
    /// images go to `images_dir` in either case.
    ///
    /// # Errors
    /// As [`crate::capture`]; the tasks go on, and so may the rounds.
    pub fn finish(
        &mut self,
        images_dir: &Path,
        sink: Option<&mut (dyn PageSink + '_)>,
        options: CaptureOptions<'_>,
        events: &mut dyn Events,
    ) -> Result<CaptureReport, CaptureError> {
        let memory = MemoryPart { tracking: Some(&mut self.tracking), go_on: false, sink };
        capture_with(self.root, images_dir, options, events, memory)
    }

    /// As [`Precopy::finish`] without a sink, and the tracking goes on from there: the images are the
    /// parent of what follows.
    ///
    /// # Errors
    /// As [`crate::capture`]. What is tracked is of no use then.
    pub fn capture_and_go_on(
        &mut self,
        images_dir: &Path,
        options: CaptureOptions<'_>,
        events: &mut dyn Events,
    ) -> Result<CaptureReport, CaptureError> {
        let memory = MemoryPart { tracking: Some(&mut self.tracking), go_on: true, sink: None };
        capture_with(self.root, images_dir, options, events, memory)
    }
}

/// The private anonymous mappings of a running process, as the images describe them: none if it has
/// ended. They may be others by the time of the capture, whose own are what counts.
fn anonymous(pid: Pid) -> MmEntry {
    let mut vmas = Vec::new();
    for mut mapping in proc::smaps::read(pid).unwrap_or_default() {
        // The mark is our own, or the capture will refuse the mapping.
        let flags = mapping.vm_flags.split_ascii_whitespace().filter(|flag| *flag != "uw");
        mapping.vm_flags = flags.collect::<Vec<_>>().join(" ");
        if let Ok(kind @ vma::Kind::Anonymous) = vma::classify(&mapping) {
            vmas.push(vma::entry(&mapping, kind, 0));
        }
    }
    MmEntry { vmas, ..MmEntry::default() }
}

/// Gives the sink the pages of one process; what it got, and what are zeros.
fn send(
    look: Look,
    sink: &mut dyn PageSink,
    figures: &mut RoundFigures,
) -> Result<(Ranges, Ranges), CaptureError> {
    let (mut stored, mut zeros) = (Vec::new(), look.zeros.iter().collect::<Vec<_>>());
    let mut buffer = vec![0; CHUNK];
    let mut unchanged = look.unchanged.iter().peekable();
    figures.scanned += look.scanned * PAGE_SIZE;
    figures.unchanged += look.unchanged.bytes();
    let mut pass = |until: u64, sink: &mut dyn PageSink| {
        while let Some((start, end)) = unchanged.next_if(|(start, _)| *start < until) {
            sink.unchanged(start, (end - start) / PAGE_SIZE).map_err(CaptureError::Hook)?;
            stored.push((start, end));
        }
        Ok::<_, CaptureError>(())
    };
    let mut sent = Vec::new();
    for &(start, end, zeros_may_go) in &look.wanted {
        pass(start, sink)?;
        figures.dirty += end - start;
        let mut at = start;
        while at < end {
            let want = (end - at).min(CHUNK as u64) as usize;
            let got = read(&look.mem, at, &mut buffer[..want]);
            if got == 0 {
                // Unmapped meanwhile, or all of the process is gone.
                figures.vanished += PAGE_SIZE;
                at += PAGE_SIZE;
                continue;
            }
            for (run, zero) in runs(&buffer[..got], zeros_may_go) {
                let (from, to) = (at + run.start as u64, at + run.end as u64);
                if zero {
                    zeros.push((from, to));
                    figures.zeros += to - from;
                } else {
                    sink.stored(from, &buffer[run]).map_err(CaptureError::Hook)?;
                    sent.push((from, to));
                    figures.sent += to - from;
                }
            }
            at += got as u64;
        }
    }
    pass(u64::MAX, sink)?;
    sink.end().map_err(CaptureError::Hook)?;
    let all = stored.into_iter().chain(sent).collect();
    Ok((all, zeros.into_iter().collect()))
}

/// Reads whole pages from the memory of a running process: as many as there are.
///
/// Through its `mem` file: process_vm_readv would pin the pages, and to pin a page that is shared with
/// other processes the kernel first gives the reader's victim a copy of its own.
fn read(mem: &File, at: u64, buffer: &mut [u8]) -> usize {
    let got = memory::pread_mem_some(mem, RemoteAddr(at), buffer).unwrap_or(0);
    got & !(PAGE_SIZE as usize - 1)
}

/// Cuts bytes into runs of pages: with something in them, or all zeros (true) if those are looked for.
fn runs(bytes: &[u8], zeros: bool) -> Vec<(std::ops::Range<usize>, bool)> {
    const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut all: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    for (i, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
        let zero = zeros && page == ZEROS;
        let at = i * PAGE_SIZE as usize;
        match all.last_mut() {
            Some((run, kind)) if *kind == zero => run.end = at + page.len(),
            _ => all.push((at..at + page.len(), zero)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_zeros_are_told_apart() {
        const P: usize = PAGE_SIZE as usize;
        let mut bytes = vec![0; 4 * P];
        bytes[P] = 1;
        bytes[3 * P - 1] = 1;
        assert_eq!(runs(&bytes, true), [(0..P, true), (P..3 * P, false), (3 * P..4 * P, true)]);
        assert_eq!(runs(&bytes, false), [(0..4 * P, false)]);
    }
}
