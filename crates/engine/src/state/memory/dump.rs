//! Copying private pages out of stopped tasks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{MmEntry, VmaEntry};
use arctern_image::pages::{PageFlags, PagemapWriter};
use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::pagemap::{
    PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Pagemap, Query,
};
use arctern_sys::{PAGE_SIZE, Pid};

use super::vma::{has_private_pages, status};
use crate::error::CaptureError;
use crate::options::HookError;
use crate::precopy::PageSink;
use crate::tracking::{Known, Origin, Ranges};
use crate::tree::FrozenTask;

/// Private pages with something in them, and guard pages.
const PRIVATE: Query = Query {
    inverted: PAGE_IS_PFNZERO | PAGE_IS_FILE,
    all: PAGE_IS_PFNZERO | PAGE_IS_FILE,
    any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    report: PAGE_IS_GUARD,
};

/// Bytes copied at a time by one worker.
const CHUNK: usize = 1 << 20;
/// From this size on two workers copy.
const PARALLEL_FROM: u64 = 16 << 20;

/// How pages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// process_vm_readv: fast. It pins the pages, and to pin a page that is shared copy-on-write
    /// the kernel first makes a copy of it for the reader.
    Pin,
    /// `/proc/PID/mem`: leaves shared pages shared, and reads what the task itself may not.
    Mem,
}

/// A run of pages to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copy {
    from: u64,
    len: u64,
    to: u64,
    how: How,
}

/// Pages of one task: where they are and where they go.
#[derive(Debug)]
pub struct Plan {
    /// As the controller sees it.
    pub pid: Pid,
    inner_pid: i32,
    copies: Vec<Copy>,
    /// Pages that the images before have: begin and end.
    unchanged: Vec<(u64, u64)>,
    /// None where the pages go elsewhere ([`give`]).
    pages: Option<File>,
    /// Bytes of the vDSO that our own code hides, and where they go.
    hidden: Option<(u64, Vec<u8>)>,
    /// Pages looked at.
    pub scanned: u64,
    /// Pages to be stored.
    pub stored: u64,
}

/// Finds the pages of a task, writes its pagemap (into `files`, where its pages have this id), and
/// appends guard regions to the mappings of `mm` as CRIU does. What is `known` to be unchanged is left to
/// the images before. The bytes are copied later by [`copy_pages`] or [`give`].
pub(crate) fn plan(
    task: &FrozenTask,
    mm: &mut MmEntry,
    files: Option<(&ImageDir, u32)>,
    known: Option<Known<'_>>,
) -> Result<Plan, CaptureError> {
    let failed = |what: &'static str| task.failed("", what);
    let mut pagemap = Pagemap::open(task.pid).map_err(failed("open its page map"))?;
    let id = task.inner_pid as u64;
    let mut writer = files
        .map(|(images, pages_id)| PagemapWriter::create(images, ImageKind::Pagemap, id, pages_id))
        .transpose()?;
    let query = Query { report: PRIVATE.report | known.map_or(0, |k| k.written), ..PRIVATE };
    let mut copies: Vec<Copy> = Vec::new();
    let mut unchanged = Vec::new();
    let mut stored = 0;
    let mut guards = Vec::new();
    let mut scanned = 0;
    let mut vdso = None;
    for vma in mm.vmas.iter().filter(|v| has_private_pages(v)) {
        scanned += (vma.end - vma.start) / PAGE_SIZE;
        let readable = vma.prot & libc::PROT_READ as u32 != 0;
        let how = if readable && !is_shared(task, vma) { How::Pin } else { How::Mem };
        let mut problem = None;
        let mut add = |start: u64, end: u64, origin: Origin| {
            let pages = (end - start) / PAGE_SIZE;
            let flags = match origin {
                Origin::Zeros => return,
                Origin::Parent => {
                    unchanged.push((start, end));
                    PageFlags::IN_PARENT
                }
                Origin::Task => {
                    let to = stored * PAGE_SIZE;
                    copies.push(Copy { from: start, len: end - start, to, how });
                    stored += pages;
                    PageFlags::STORED_LAZY
                }
            };
            if let Some(writer) = &mut writer
                && let Err(e) = writer.push(start, pages, flags)
            {
                problem = Some(e);
            }
        };
        if vma.status & status::VDSO != 0 {
            // Stored whole: another kernel's differs, and the program may stand inside.
            add(vma.start, vma.end, Origin::Task);
            vdso = Some(vma.start);
        } else {
            let found = |region: arctern_sys::pagemap::Region| {
                if region.categories & PAGE_IS_GUARD != 0 {
                    guards.push((region.start, region.end));
                } else if let Some(known) = known {
                    let written = region.categories & known.written != 0;
                    known.cut(region.start, region.end, written, &mut add);
                } else {
                    add(region.start, region.end, Origin::Task);
                }
            };
            pagemap
                .scan(RemoteAddr(vma.start), RemoteAddr(vma.end), query, found)
                .map_err(failed("scan its page map"))?;
        }
        if let Some(e) = problem {
            return Err(e.into());
        }
    }
    for (start, end) in guards {
        mm.vmas.push(VmaEntry {
            start,
            end,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            status: status::GUARD,
            fd: -1,
            ..VmaEntry::default()
        });
    }
    let pages = match writer {
        None => None,
        Some(writer) => {
            let pages = writer
                .pages()
                .try_clone()
                .and_then(|pages| pages.set_len(stored * PAGE_SIZE).map(|()| pages))
                .map_err(failed("make its pages file"))?;
            writer.finish()?;
            Some(pages)
        }
    };
    let hidden = vdso.zip(task.session.as_ref()).and_then(|(vdso, session)| {
        let (at, bytes) = session.replaced_code();
        let whole = copies.iter().find(|c| c.from <= vdso && vdso < c.from + c.len)?;
        Some((whole.to + (at - whole.from), bytes))
    });
    let (pid, inner_pid) = (task.pid, task.inner_pid);
    Ok(Plan { pid, inner_pid, copies, unchanged, pages, hidden, scanned, stored })
}

impl Plan {
    /// Pages that the images before have.
    pub fn unchanged_pages(&self) -> u64 {
        self.unchanged.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum()
    }

    /// All pages that the images have, with those before.
    pub(crate) fn in_images(&self) -> Ranges {
        let copied = self.copies.iter().map(|c| (c.from, c.from + c.len));
        copied.chain(self.unchanged.iter().copied()).collect()
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match &self.pages {
            Some(pages) => pages.write_all_at(bytes, at),
            None => Err(io::Error::other("its pages go elsewhere")),
        }
    }
}

/// Why pages could not be given away.
pub(crate) enum GiveError {
    /// They cannot be read.
    Read(io::Error),
    /// The sink does not take them.
    Sink(HookError),
}

/// Gives the pages of all plans to a sink. Reports bytes as they are done.
pub(crate) fn give(
    plans: &[Plan],
    sink: &mut dyn PageSink,
    mut progress: impl FnMut(u64),
) -> Result<(), (Pid, GiveError)> {
    for plan in plans {
        give_one(plan, sink, &mut progress).map_err(|e| (plan.pid, e))?;
    }
    Ok(())
}

fn give_one(
    plan: &Plan,
    sink: &mut dyn PageSink,
    progress: &mut dyn FnMut(u64),
) -> Result<(), GiveError> {
    let mut buffer = vec![0u8; CHUNK];
    let mut mem = None;
    let mut unchanged = plan.unchanged.iter().peekable();
    let mut pass = |until: u64, sink: &mut dyn PageSink| {
        while let Some((start, end)) = unchanged.next_if(|(start, _)| *start < until) {
            sink.unchanged(*start, (end - start) / PAGE_SIZE).map_err(GiveError::Sink)?;
        }
        Ok(())
    };
    sink.space(plan.inner_pid).map_err(GiveError::Sink)?;
    for copy in &plan.copies {
        pass(copy.from, sink)?;
        let mut done = 0;
        while done < copy.len {
            let bytes = &mut buffer[..(copy.len - done).min(CHUNK as u64) as usize];
            let from = RemoteAddr(copy.from + done);
            match copy.how {
                How::Pin => memory::read(plan.pid, from, bytes),
                How::Mem => memory::open_once(&mut mem, plan.pid)
                    .and_then(|mem| memory::pread_mem(mem, from, bytes)),
            }
            .map_err(GiveError::Read)?;
            if let Some((at, hidden)) = &plan.hidden
                && let Some(at) = at.checked_sub(copy.to + done)
                && let Some(place) = bytes.get_mut(at as usize..at as usize + hidden.len())
            {
                place.copy_from_slice(hidden);
            }
            sink.stored(from.0, bytes).map_err(GiveError::Sink)?;
            progress(bytes.len() as u64);
            done += bytes.len() as u64;
        }
    }
    pass(u64::MAX, sink)?;
    sink.end().map_err(GiveError::Sink)
}

/// Memory taken before the freeze, so that pages can be copied at the speed of memory in the freeze
/// and written afterwards.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// A buffer of `size` bytes whose pages are already there.
    pub fn new(size: usize) -> Self {
        // Ones, because the kernel would give zeros without making pages.
        Buffer { bytes: vec![1; size] }
    }

    /// Copies the pages of all plans into the buffer; false if they do not fit.
    pub fn fill(&mut self, plans: &[Plan]) -> Result<bool, (Pid, io::Error)> {
        let total: u64 = plans.iter().map(|p| p.stored * PAGE_SIZE).sum();
        if total > self.bytes.len() as u64 {
            return Ok(false);
        }
        let mut rest = &mut self.bytes[..];
        for plan in plans {
            let (part, after) = rest.split_at_mut((plan.stored * PAGE_SIZE) as usize);
            take(plan, part).map_err(|e| (plan.pid, e))?;
            rest = after;
        }
        Ok(true)
    }

    /// Writes what [`Buffer::fill`] took into the files.
    pub fn write(&self, plans: &[Plan]) -> Result<(), (Pid, io::Error)> {
        let mut rest = &self.bytes[..];
        for plan in plans {
            let (part, after) = rest.split_at((plan.stored * PAGE_SIZE) as usize);
            // In pieces: one write of 64 MiB to a new file on ext4 took 160 ms (kernel 6.18), pieces of
            // 1 MiB take 14 ms.
            let mut pieces = part.chunks(CHUNK).enumerate();
            let written = pieces
                .try_for_each(|(i, piece)| plan.write_at(piece, (i * CHUNK) as u64))
                .and_then(|()| restore_hidden(plan));
            written.map_err(|e| (plan.pid, e))?;
            rest = after;
        }
        Ok(())
    }
}

/// Copies the pages of a plan to where they lie in its file, in memory.
fn take(plan: &Plan, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    let mut copies = plan.copies.iter().peekable();
    let mut ranges: Vec<(RemoteAddr, usize)> = Vec::new();
    let mut mem = None;
    while let Some(first) = copies.peek() {
        let from = at;
        if first.how == How::Mem {
            let mem = memory::open_once(&mut mem, plan.pid)?;
            let len = first.len as usize;
            memory::pread_mem(mem, RemoteAddr(first.from), &mut buffer[at..at + len])?;
            at += len;
            copies.next();
            continue;
        }
        ranges.clear();
        while let Some(c) = copies.next_if(|c| c.how == How::Pin && ranges.len() < 512) {
            ranges.push((RemoteAddr(c.from), c.len as usize));
            at += c.len as usize;
        }
        memory::read_ranges(plan.pid, &ranges, &mut buffer[from..at])?;
    }
    Ok(())
}

/// Anonymous memory of a tree now, in bytes: what its capture will have to hold.
pub fn estimate(processes: &[Pid]) -> u64 {
    let mut total = 0;
    for pid in processes {
        let text = arctern_sys::proc::read_single(*pid, "statm").unwrap_or_default();
        let pages = |n: usize| -> u64 {
            text.split_ascii_whitespace().nth(n).and_then(|w| w.parse().ok()).unwrap_or(0)
        };
        // Resident less shared (file) pages.
        total += pages(1).saturating_sub(pages(2)) * PAGE_SIZE;
    }
    total
}

/// Whether a mapping may hold private pages that another process has too.
fn is_shared(task: &FrozenTask, vma: &VmaEntry) -> bool {
    let index = task.mappings.partition_point(|m| m.end <= vma.start);
    task.mappings[index..].iter().take_while(|m| m.start < vma.end).any(|m| {
        // Clean pages of a file are shared by nature and are not captured.
        m.shared_dirty != 0 || (m.inode == 0 && m.shared_clean != 0)
    })
}

/// Copies the pages of all plans into their files. Reports bytes as they are done.
pub fn copy_pages(plans: &[Plan], mut progress: impl FnMut(u64)) -> Result<(), (Pid, io::Error)> {
    let size = |plan: &Plan| plan.stored * PAGE_SIZE;
    let total: u64 = plans.iter().map(size).sum();
    // Reading another process's memory asks for permission, not for being its tracer, so any
    // thread of ours may do it. Two threads on one file wait for each other at its inode: only a
    // large process is halved, and small ones are handed out whole.
    let (large, small): (Vec<&Plan>, Vec<&Plan>) =
        plans.iter().partition(|plan| size(plan) >= PARALLEL_FROM);
    for plan in large {
        let blame = |e| (plan.pid, e);
        let mut halves = split(&plan.copies);
        let second = halves.pop().unwrap_or_default();
        let first = halves.pop().unwrap_or_default();
        let done: u64 = second.iter().map(|c| c.len).sum();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| copy(plan, &second, &mut |_| {}));
            copy(plan, &first, &mut progress)?;
            worker.join().map_err(|_| io::Error::other("a copying thread panicked"))?
        })
        .map_err(blame)?;
        restore_hidden(plan).map_err(blame)?;
        progress(done);
    }
    let next = AtomicUsize::new(0);
    let take_one = |progress: &mut dyn FnMut(u64)| -> Result<bool, (Pid, io::Error)> {
        let Some(plan) = small.get(next.fetch_add(1, Ordering::Relaxed)) else { return Ok(false) };
        let copied = copy(plan, &plan.copies, progress).and_then(|()| restore_hidden(plan));
        copied.map(|()| true).map_err(|e| (plan.pid, e))
    };
    if total < PARALLEL_FROM {
        while take_one(&mut progress)? {}
        return Ok(());
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut done = 0;
            while take_one(&mut |bytes| done += bytes)? {}
            Ok(done)
        });
        while take_one(&mut progress)? {}
        let done = worker
            .join()
            .map_err(|_| (Pid(0), io::Error::other("a copying thread panicked")))??;
        progress(done);
        Ok(())
    })
}

fn restore_hidden(plan: &Plan) -> io::Result<()> {
    match &plan.hidden {
        Some((at, bytes)) => plan.write_at(bytes, *at),
        None => Ok(()),
    }
}

/// Two lists of about the same number of bytes.
fn split(copies: &[Copy]) -> Vec<Vec<Copy>> {
    let half = (copies.iter().map(|c| c.len).sum::<u64>() / 2) & !(PAGE_SIZE - 1);
    let (mut first, mut second, mut taken) = (Vec::new(), Vec::new(), 0);
    for c in copies {
        let room = half.saturating_sub(taken).min(c.len);
        if room > 0 {
            first.push(Copy { len: room, ..*c });
        }
        if room < c.len {
            second.push(Copy { from: c.from + room, to: c.to + room, len: c.len - room, ..*c });
        }
        taken += room;
    }
    vec![first, second]
}

fn copy(plan: &Plan, copies: &[Copy], progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    let mut ranges: Vec<(RemoteAddr, usize)> = Vec::new();
    let mut filled = 0;
    let mut to = 0;
    let mut mem = None;
    let mut flush = |ranges: &mut Vec<(RemoteAddr, usize)>, filled: &mut usize, to: u64| {
        if *filled > 0 {
            memory::read_ranges(plan.pid, ranges, &mut buffer[..*filled])?;
            plan.write_at(&buffer[..*filled], to)?;
            progress(*filled as u64);
        }
        ranges.clear();
        *filled = 0;
        io::Result::Ok(())
    };
    for c in copies {
        let (mut from, mut left, mut at) = (c.from, c.len, c.to);
        while left > 0 {
            if c.how == How::Mem {
                let mem = memory::open_once(&mut mem, plan.pid)?;
                let mut page = vec![0; left.min(CHUNK as u64) as usize];
                memory::pread_mem(mem, RemoteAddr(from), &mut page)?;
                plan.write_at(&page, at)?;
                let n = page.len() as u64;
                (from, left, at) = (from + n, left - n, at + n);
                continue;
            }
            if filled == CHUNK || ranges.len() == 512 || (filled > 0 && to + filled as u64 != at) {
                flush(&mut ranges, &mut filled, to)?;
            }
            if filled == 0 {
                to = at;
            }
            let n = left.min((CHUNK - filled) as u64);
            ranges.push((RemoteAddr(from), n as usize));
            filled += n as usize;
            (from, left, at) = (from + n, left - n, at + n);
        }
    }
    flush(&mut ranges, &mut filled, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_split_in_the_middle_of_a_run() {
        let copies = [
            Copy { from: 0x1000, len: 0x1000, to: 0, how: How::Pin },
            Copy { from: 0x9000, len: 0x5000, to: 0x1000, how: How::Mem },
        ];
        let halves = split(&copies);
        assert_eq!(halves[0].iter().map(|c| c.len).sum::<u64>(), 0x3000);
        assert_eq!(halves[1], [Copy { from: 0xb000, len: 0x3000, to: 0x3000, how: How::Mem }]);
    }
}
