//! Which memory of a tree was written since it was looked at last.
//!
//! Two ways, asked of the kernel and not of its version:
//! - *Write protection*: a userfaultfd in asynchronous mode on all private anonymous memory, and PAGEMAP_SCAN,
//!   which tells and protects in one step (kernel 6.7). The descriptor is made by a remote call inside of
//!   the task, since it belongs to the address space of whoever made it, and leaves the task's table in
//!   the same stop: no program sees it, and nothing of it is left when its last copy is closed.
//! - *Soft-dirty* marks, where only those are there (CONFIG_MEM_SOFT_DIRTY).
//!
//! What appears meanwhile is never taken for old. A new mapping, one that was moved (mremap), one that
//! replaces another at its place, the memory of a forked child and of a program that was executed have no
//! userfaultfd of ours: their scan says so, and they count as written. Pages that were dropped
//! (MADV_DONTNEED) hold nothing or are new. A process that got the pid of another one has another start
//! time.
//!
//! Not tracked, and captured whole in the freeze: shared memory, which others may write through mappings
//! and descriptors of their own; and, with write protection, private pages of mapped files.

mod ranges;
mod saved;
mod space;

use std::collections::BTreeMap;
use std::fs::File;

use arctern_sys::{memory, pagemap, userfaultfd};

pub use self::ranges::Ranges;
pub use self::saved::SavedTracking;
pub use self::space::Look;
pub(crate) use self::space::PRIVATE_DATA;
use self::space::Space;
use crate::error::CaptureError;
use crate::tree::{FrozenTask, FrozenTree};

/// How writes are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Method {
    /// Asynchronous write protection.
    WriteProtect,
    /// Soft-dirty marks.
    SoftDirty,
}

impl Method {
    /// The better one of those that this kernel has.
    pub fn probe() -> Option<Method> {
        if userfaultfd::of_self().is_ok_and(can_scan) {
            return Some(Method::WriteProtect);
        }
        has_soft_dirty().then_some(Method::SoftDirty)
    }

    /// The category of a written page.
    pub(crate) fn written(self) -> u64 {
        match self {
            Method::WriteProtect => pagemap::PAGE_IS_WRITTEN,
            Method::SoftDirty => pagemap::PAGE_IS_SOFT_DIRTY,
        }
    }
}

/// Whether a tracked range can be scanned and protected: of a page of our own.
fn can_scan(tracker: userfaultfd::WriteTracker) -> bool {
    let own = arctern_sys::Pid(std::process::id() as i32);
    let page = vec![1u8; 2 * arctern_sys::PAGE_SIZE as usize];
    let start = (page.as_ptr() as u64).next_multiple_of(arctern_sys::PAGE_SIZE);
    let (start, end) =
        (memory::RemoteAddr(start), memory::RemoteAddr(start + arctern_sys::PAGE_SIZE));
    tracker.track(start, end).is_ok()
        && pagemap::Pagemap::open(own)
            .and_then(|mut map| map.scan_and_protect(start, end, space::PRIVATE_DATA, |_| {}))
            .is_ok()
}

/// A page that was just written has the mark, where there is one.
fn has_soft_dirty() -> bool {
    use std::os::unix::fs::FileExt;
    let page = std::hint::black_box(vec![1u8; 2 * arctern_sys::PAGE_SIZE as usize]);
    let mut entry = [0; 8];
    let at = (page.as_ptr() as u64 / arctern_sys::PAGE_SIZE + 1) * 8;
    File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, at)).is_ok()
        && u64::from_le_bytes(entry) & (1 << 55) != 0
}

/// What is known of the memory of a tree: which pages were stored before, and what tells which of them
/// were written since. Dropped, the tracking ends.
#[derive(Debug)]
pub struct Tracking {
    method: Method,
    /// By pid in the tree's own namespace, as in the images.
    spaces: BTreeMap<i32, Space>,
}

impl Tracking {
    /// Nothing is known yet.
    pub fn new(method: Method) -> Self {
        Tracking { method, spaces: BTreeMap::new() }
    }

    /// How writes are noticed.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Looks at the memory of every stopped task that has its own, and begins anew: what is written
    /// from here on is told by the next look. Tasks that cannot be tracked are left out, with the
    /// reason in the log; the capture stores them whole.
    pub(crate) fn look(&mut self, tree: &mut FrozenTree) -> Result<Vec<Look>, CaptureError> {
        self.forget_others(tree);
        let mut looks = Vec::new();
        for index in 0..tree.tasks.len() {
            let (before, rest) = tree.tasks.split_at_mut(index);
            let task = &mut rest[0];
            // One address space of two processes (vfork) is the first one's.
            let shared = before.iter().any(|t| !t.is_zombie() && t.ids.vm == task.ids.vm);
            if task.is_zombie() || shared {
                continue;
            }
            let started = task.stat.start_time;
            let space = self.spaces.entry(task.inner_pid).or_insert_with(|| Space::new(started));
            if let Some(look) = space.look(task, self.method)? {
                looks.push(look);
            }
        }
        Ok(looks)
    }

    /// What was stored of a task's memory is known by these ranges: its pages, and pages of zeros.
    pub(crate) fn stored(&mut self, pid: i32, stored: Ranges, zeros: Ranges) {
        if let Some(space) = self.spaces.get_mut(&pid) {
            space.stored = stored;
            space.zeros = zeros;
        }
    }

    /// Takes marks of ours off the mappings of a stopped tree, as they are to be captured.
    pub(crate) fn adopt(&mut self, tree: &mut FrozenTree) {
        self.forget_others(tree);
        for task in &mut tree.tasks {
            if let Some(space) = self.spaces.get_mut(&task.inner_pid) {
                space.adopt(task, self.method);
            }
        }
    }

    /// The tracked mappings of a process, by its pid in the tree's own namespace.
    pub(crate) fn registered(&self, pid: i32) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spaces.get(&pid).into_iter().flat_map(|space| space.registered.iter())
    }

    /// What is known of a task, if anything.
    pub(crate) fn known(&self, task: &FrozenTask) -> Option<Known<'_>> {
        let space = self.spaces.get(&task.inner_pid)?;
        Some(Known { space, written: self.method.written() })
    }

    /// Forgets processes that are gone, and those whose pid somebody else has now.
    fn forget_others(&mut self, tree: &FrozenTree) {
        self.spaces.retain(|pid, space| {
            tree.tasks.iter().any(|t| {
                !t.is_zombie() && t.inner_pid == *pid && t.stat.start_time == space.started
            })
        });
    }
}

/// What is known of one task's memory at its capture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    space: &'a Space,
    /// The category of a written page.
    pub written: u64,
}

/// Where a page that holds something is to be had from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From the task.
    Task,
    /// It was stored before and not written since.
    Parent,
    /// It is known to be all zeros.
    Zeros,
}

impl Known<'_> {
    /// Cuts a run of pages of one mapping into parts of one origin.
    pub fn cut(&self, start: u64, end: u64, written: bool, mut part: impl FnMut(u64, u64, Origin)) {
        if written || !self.space.is_tracked(start, end) {
            return part(start, end, Origin::Task);
        }
        self.space.stored.cut(start, end, |start, end, stored| {
            if stored {
                return part(start, end, Origin::Parent);
            }
            self.space.zeros.cut(start, end, |start, end, zeros| {
                part(start, end, if zeros { Origin::Zeros } else { Origin::Task });
            });
        });
    }
}
