//! The tracked memory of one process.

use std::fs::File;
use std::io;

use arctern_sys::memory::{self, RemoteAddr};
use arctern_sys::pagemap::{
    PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, Pagemap, Query,
};
use arctern_sys::proc::smaps::{self, Mapping};
use arctern_sys::userfaultfd::{OPEN_FLAGS, WriteTracker};
use arctern_sys::{PAGE_SIZE, Pid};
use arctern_tracee::Batch;
use arctern_tracee::live::{LiveSession, ThreadSignals, Vdso};

use super::{Method, Ranges};
use crate::error::CaptureError;
use crate::tree::FrozenTask;

/// Private pages with something in them.
pub(crate) const PRIVATE_DATA: Query = Query {
    inverted: PAGE_IS_PFNZERO | PAGE_IS_FILE | PAGE_IS_GUARD,
    all: PAGE_IS_PFNZERO | PAGE_IS_FILE | PAGE_IS_GUARD,
    any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    report: 0,
};

/// What is known of one address space.
#[derive(Debug)]
pub(super) struct Space {
    /// When its process began (`/proc/PID/stat`), so that a pid is never taken for another's.
    pub(super) started: u64,
    pub(super) tracker: Option<WriteTracker>,
    /// Ranges that the tracker was asked to track; the kernel knows which of them still are.
    pub(super) registered: Ranges,
    /// Mappings that are tracked at the moment of a capture.
    pub(super) tracked: Ranges,
    /// Pages that were stored, as they are as long as nobody writes them.
    pub(super) stored: Ranges,
    /// Pages that were all zeros.
    pub(super) zeros: Ranges,
}

/// What one look at a process found.
#[derive(Debug)]
pub struct Look {
    /// As the controller sees it.
    pub pid: Pid,
    /// In its own pid namespace.
    pub inner_pid: i32,
    /// Its memory, also when it has executed another program since.
    pub mem: File,
    /// Pages that were stored before and are unchanged.
    pub unchanged: Ranges,
    /// Pages of zeros that are unchanged.
    pub zeros: Ranges,
    /// Pages to be stored: begin, end, and whether a page of zeros may be left out.
    pub wanted: Vec<(u64, u64, bool)>,
    /// Pages looked at.
    pub scanned: u64,
}

impl Space {
    pub(super) fn new(started: u64) -> Self {
        Space {
            started,
            tracker: None,
            registered: Ranges::default(),
            tracked: Ranges::default(),
            stored: Ranges::default(),
            zeros: Ranges::default(),
        }
    }

    /// Whether all of `start..end`, a part of one mapping, is tracked at the moment of the capture.
    pub(super) fn is_tracked(&self, start: u64, end: u64) -> bool {
        self.tracked.overlaps(start, end)
    }

    /// Finds the pages of the task that hold something and those among them that were written, and
    /// begins anew. None if the task cannot be tracked.
    pub(super) fn look(
        &mut self,
        task: &mut FrozenTask,
        method: Method,
    ) -> Result<Option<Look>, CaptureError> {
        let pid = task.pid;
        let mut look = Look {
            pid,
            inner_pid: task.inner_pid,
            mem: memory::open_mem(pid).map_err(task.failed("", "open its memory"))?,
            unchanged: Ranges::default(),
            zeros: Ranges::default(),
            wanted: Vec::new(),
            scanned: 0,
        };
        let mut mappings = smaps::read_maps(pid).map_err(task.failed("", "read its mappings"))?;
        let mut fresh = self.tracker.is_none();
        if method == Method::WriteProtect && fresh {
            match open_tracker(task, &mappings) {
                Ok(tracker) => self.begin(tracker),
                Err(e) => {
                    tracing::warn!("{}: its memory cannot be tracked: {e}", task.subject(""));
                    return Ok(None);
                }
            }
        }
        let ours = task.session.as_ref().map(LiveSession::data_range);
        mappings.retain(|m| is_eligible(m, method) && ours != Some((m.start, m.end)));
        let mut pagemap = Pagemap::open(pid).map_err(task.failed("", "open its page map"))?;
        let mut registered = Vec::with_capacity(mappings.len());
        let mut index = 0;
        while let Some(mapping) = mappings.get(index) {
            let found = match method {
                Method::WriteProtect => self.protect(&mut pagemap, mapping),
                Method::SoftDirty => soft_dirty(&mut pagemap, mapping).map(Some),
            };
            match found {
                Ok(Some(regions)) => {
                    look.scanned += (mapping.end - mapping.start) / PAGE_SIZE;
                    registered.push((mapping.start, mapping.end));
                    for (start, end, written) in regions {
                        self.sort(&mut look, mapping, (start, end), written);
                    }
                }
                // Another program's, or of a kind that cannot be tracked: the capture takes it whole.
                Ok(None) => {}
                Err(e) if is_another_space(&e) && !fresh => {
                    // The process has executed a program since: the tracker is of its old memory.
                    fresh = true;
                    let all =
                        smaps::read_maps(pid).map_err(task.failed("", "read its mappings"))?;
                    match open_tracker(task, &all) {
                        Ok(tracker) => self.begin(tracker),
                        Err(e) => {
                            tracing::warn!("{}: cannot be tracked: {e}", task.subject(""));
                            return Ok(None);
                        }
                    }
                    registered.clear();
                    look.unchanged = Ranges::default();
                    look.zeros = Ranges::default();
                    look.wanted.clear();
                    look.scanned = 0;
                    index = 0;
                    continue;
                }
                Err(e) => {
                    let part = format!("mapping {:x}-{:x}", mapping.start, mapping.end);
                    return Err(task.failed(part, "look for written pages")(e));
                }
            }
            index += 1;
        }
        self.registered = registered.into_iter().collect();
        if method == Method::SoftDirty {
            memory::clear_soft_dirty(pid)
                .map_err(task.failed("", "clear the marks of written pages"))?;
        }
        // Until the pages are stored nothing is known of them.
        self.stored = Ranges::default();
        self.zeros = Ranges::default();
        Ok(Some(look))
    }

    fn begin(&mut self, tracker: WriteTracker) {
        *self = Space { tracker: Some(tracker), ..Space::new(self.started) };
    }

    /// The pages of one mapping that hold something, with whether they were written; they are
    /// write-protected by this. None if the mapping cannot be tracked.
    fn protect(
        &self,
        pagemap: &mut Pagemap,
        mapping: &Mapping,
    ) -> io::Result<Option<Vec<(u64, u64, bool)>>> {
        let Some(tracker) = &self.tracker else { return Ok(None) };
        let (start, end) = (RemoteAddr(mapping.start), RemoteAddr(mapping.end));
        // What is not known to be ours may be watched by the program itself, and is not touched.
        if self.registered.overlaps(mapping.start, mapping.end) {
            match scan(pagemap, (start, end), Method::WriteProtect) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                result => return result.map(Some),
            }
        }
        match tracker.track(start, end) {
            // The scan tells every page of it as written.
            Ok(()) => scan(pagemap, (start, end), Method::WriteProtect).map(Some),
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINVAL | libc::EPERM)) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Puts a run of pages where it belongs.
    fn sort(&self, look: &mut Look, mapping: &Mapping, run: (u64, u64), written: bool) {
        let may_be_left_out = mapping.inode == 0;
        let (start, end) = run;
        if written {
            return look.wanted.push((start, end, may_be_left_out));
        }
        self.stored.cut(start, end, |start, end, stored| {
            if stored {
                return look.unchanged.push(start, end);
            }
            self.zeros.cut(start, end, |start, end, zeros| {
                if zeros {
                    look.zeros.push(start, end);
                } else {
                    look.wanted.push((start, end, may_be_left_out));
                }
            });
        });
    }

    /// Takes our own marks off the mappings, and keeps which of them are tracked.
    pub(super) fn adopt(&mut self, task: &mut FrozenTask, method: Method) {
        let mut tracked = Vec::new();
        for mapping in &mut task.mappings {
            let known = self.registered.overlaps(mapping.start, mapping.end);
            match method {
                Method::WriteProtect if known && mapping.has("uw") => {
                    tracked.push((mapping.start, mapping.end));
                    let flags = mapping.vm_flags.split_ascii_whitespace().filter(|f| *f != "uw");
                    mapping.vm_flags = flags.collect::<Vec<_>>().join(" ");
                }
                // A mapping that was made since is marked as a whole.
                Method::SoftDirty if known => tracked.push((mapping.start, mapping.end)),
                _ => {}
            }
        }
        self.tracked = tracked.into_iter().collect();
    }
}

/// Whether the tracker belongs to an address space that is not the task's: the old one is gone, or what
/// was registered there is not tracked here.
fn is_another_space(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ESRCH) || e.kind() == io::ErrorKind::PermissionDenied
}

/// Whether the mapping may hold private pages of the program's that can be tracked.
///
/// Where a page of a private mapping of a file is dropped, write protection leaves a mark of its own in
/// its place, which the scan does not tell from a page that is swapped out and unchanged.
fn is_eligible(mapping: &Mapping, method: Method) -> bool {
    const KERNELS: [&str; 5] = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"];
    let trackable = method == Method::SoftDirty || mapping.inode == 0;
    !mapping.shared && trackable && !KERNELS.contains(&mapping.name.as_str())
}

/// The pages that hold something between two addresses, and whether they were written.
fn scan(
    pagemap: &mut Pagemap,
    (start, end): (RemoteAddr, RemoteAddr),
    method: Method,
) -> io::Result<Vec<(u64, u64, bool)>> {
    let query = Query { report: method.written(), ..PRIVATE_DATA };
    let mut runs = Vec::new();
    let found = |region: arctern_sys::pagemap::Region| {
        runs.push((region.start, region.end, region.categories & method.written() != 0));
    };
    match method {
        Method::WriteProtect => pagemap.scan_and_protect(start, end, query, found)?,
        Method::SoftDirty => pagemap.scan(start, end, query, found)?,
    }
    Ok(runs)
}

fn soft_dirty(pagemap: &mut Pagemap, mapping: &Mapping) -> io::Result<Vec<(u64, u64, bool)>> {
    let range = (RemoteAddr(mapping.start), RemoteAddr(mapping.end));
    scan(pagemap, range, Method::SoftDirty)
}

/// Makes a userfaultfd in the task and takes it out: the task closes it in the same stop, and does so by
/// itself if this program dies meanwhile.
fn open_tracker(task: &mut FrozenTask, mappings: &[Mapping]) -> io::Result<WriteTracker> {
    let mut batch = Batch::new();
    let fd = batch.call(libc::SYS_userfaultfd, &[OPEN_FLAGS.into()]);
    let pause = batch.pause();
    batch.call(libc::SYS_close, &[fd.into()]);
    let pidfd = &task.pidfd;
    let fetch = |batch: &Batch| {
        let fd = batch.result(fd)?;
        WriteTracker::begin(pidfd.getfd(fd as i32)?)
    };
    if let Some(session) = &mut task.session {
        let thread = &mut task.threads[0];
        return session.run_paused(thread, &mut batch, pause, fetch).map_err(io::Error::other)?;
    }
    let vdso = mappings.iter().find(|m| m.name == "[vdso]");
    let vdso = vdso.ok_or_else(|| io::Error::other("it has no vDSO"))?;
    if task.threads[0].registers.cs != 0x33 {
        return Err(io::Error::other("it runs 32-bit code"));
    }
    let vdso = Vdso { start: vdso.start, end: vdso.end };
    let signals = ThreadSignals { inner_tgid: task.inner_pid, caught: task.status.caught };
    let thread = &mut task.threads[0];
    let mut session =
        LiveSession::open(task.pid, thread, vdso, signals).map_err(io::Error::other)?;
    let fetched = session.run_paused(thread, &mut batch, pause, fetch);
    let closed = session.close(thread);
    let tracker = fetched.map_err(io::Error::other)?;
    closed.map_err(io::Error::other)?;
    tracker
}
