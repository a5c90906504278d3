//! Which pages of a process hold something (PAGEMAP_SCAN, kernel 6.7; /proc/PID/pagemap before).
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::memory::RemoteAddr;
use crate::{PAGE_SIZE, Pid};

/// The page is written (not write-protected) since tracking began.
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// The page belongs to a file or to shared memory: it is not private.
pub const PAGE_IS_FILE: u64 = 1 << 2;
/// The page is in memory.
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// The page is swapped out.
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page is the shared page of zeros.
pub const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// The page is part of a huge page.
pub const PAGE_IS_HUGE: u64 = 1 << 6;
/// The page was written since the marks were cleared ([`crate::memory::clear_soft_dirty`]).
pub const PAGE_IS_SOFT_DIRTY: u64 = 1 << 7;
/// The page is a guard page (MADV_GUARD_INSTALL, kernel 6.13).
pub const PAGE_IS_GUARD: u64 = 1 << 8;

/// A run of pages of one kind, `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// `PAGE_IS_*` bits, as far as they were asked for.
    pub categories: u64,
}

/// What to look for: a page counts when `(categories ^ inverted) & all == all` and, if `any` is not
/// zero, `(categories ^ inverted) & any != 0`.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Bits that are inverted before the test.
    pub inverted: u64,
    /// Bits that must all be set.
    pub all: u64,
    /// Bits of which one must be set.
    pub any: u64,
    /// Bits that are reported and that split regions.
    pub report: u64,
}

impl Query {
    /// The same, without asking for a category.
    fn without(self, category: u64) -> Query {
        Query {
            inverted: self.inverted & !category,
            all: self.all & !category,
            any: self.any & !category,
            report: self.report & !category,
        }
    }
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Regions that one call tells. The kernel collects as many at a time as 2 MiB has pages; with room for
/// more it says of a scan that it completed in its second pass that it ended where the first one did,
/// and the regions after that place would be told again (seen in 6.18).
const REGIONS: usize = 512;

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610; // _IOWR('f', 16, struct pm_scan_arg)

/// An open `/proc/PID/pagemap`.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    regions: Vec<Region>,
    has_scan: bool,
}

impl Pagemap {
    /// Opens the page map of `pid`.
    pub fn open(pid: Pid) -> io::Result<Self> {
        Ok(Pagemap {
            file: File::open(format!("/proc/{pid}/pagemap"))?,
            regions: vec![Region::default(); REGIONS],
            has_scan: true,
        })
    }

    /// Calls `found` for every run of pages between `start` and `end` that matches `query`, in
    /// ascending order.
    pub fn scan(
        &mut self,
        start: RemoteAddr,
        end: RemoteAddr,
        query: Query,
        found: impl FnMut(Region),
    ) -> io::Result<()> {
        self.walk(start, end, query, 0, found)
    }

    /// As [`Pagemap::scan`], and write-protects the pages that it tells of, each in one step: a page
    /// that is written later is [`PAGE_IS_WRITTEN`] again.
    ///
    /// # Errors
    /// `PermissionDenied`: a part of the range is not tracked ([`crate::userfaultfd`]); nothing before
    /// that part was left out. `Unsupported`: the kernel has no such scan.
    pub fn scan_and_protect(
        &mut self,
        start: RemoteAddr,
        end: RemoteAddr,
        query: Query,
        found: impl FnMut(Region),
    ) -> io::Result<()> {
        self.walk(start, end, query, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, found)
    }

    fn walk(
        &mut self,
        start: RemoteAddr,
        end: RemoteAddr,
        mut query: Query,
        flags: u64,
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut at = start.0;
        while self.has_scan && at < end.0 {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags,
                start: at,
                end: end.0,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: query.inverted,
                category_mask: query.all,
                category_anyof_mask: query.any,
                return_mask: query.report,
            };
            // SAFETY: `arg` has the layout of struct pm_scan_arg, and vec/vec_len describe the
            // vector, which is exclusively borrowed during the call.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n < 0 {
                let err = io::Error::last_os_error();
                let asked = query.report | query.all | query.inverted;
                if err.raw_os_error() == Some(libc::EINVAL) && asked & PAGE_IS_GUARD != 0 {
                    // A kernel with the call and without guard pages.
                    query = query.without(PAGE_IS_GUARD);
                    continue;
                }
                if err.raw_os_error() == Some(libc::ENOTTY) {
                    self.has_scan = false;
                    break;
                }
                return Err(err);
            }
            for region in &self.regions[..n as usize] {
                found(*region);
            }
            at = arg.walk_end;
        }
        match (self.has_scan, flags) {
            (true, _) => Ok(()),
            (false, 0) => self.scan_entries(at, end.0, query, found),
            (false, _) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The slow way for kernels before 6.7: one 64-bit entry a page. The zero page cannot be told
    /// from others here; it is copied, which costs space and is right.
    fn scan_entries(
        &self,
        start: u64,
        end: u64,
        query: Query,
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut entries = vec![0u8; 64 * 1024];
        let mut run: Option<Region> = None;
        let mut at = start;
        while at < end {
            let want = (((end - at) / PAGE_SIZE) as usize * 8).min(entries.len());
            let got = self.file.read_at(&mut entries[..want], at / PAGE_SIZE * 8)?;
            if got < 8 {
                break;
            }
            for entry in entries[..got].chunks_exact(8) {
                let categories = entry_categories(u64::from_le_bytes(
                    entry.try_into().expect("chunks of eight bytes"),
                ));
                let test = categories ^ query.inverted;
                let hit =
                    test & query.all == query.all && (query.any == 0 || test & query.any != 0);
                let report = categories & query.report;
                match &mut run {
                    Some(r) if hit && r.end == at && r.categories == report => r.end += PAGE_SIZE,
                    _ => {
                        if let Some(r) = run.take() {
                            found(r);
                        }
                        run = hit.then_some(Region {
                            start: at,
                            end: at + PAGE_SIZE,
                            categories: report,
                        });
                    }
                }
                at += PAGE_SIZE;
            }
        }
        if let Some(r) = run {
            found(r);
        }
        Ok(())
    }
}

/// The categories that a pagemap entry shows: bit 63 present, 62 swapped, 61 file or shared,
/// 58 guard, 55 soft-dirty.
fn entry_categories(entry: u64) -> u64 {
    let mut categories = 0;
    for (bit, category) in [
        (63, PAGE_IS_PRESENT),
        (62, PAGE_IS_SWAPPED),
        (61, PAGE_IS_FILE),
        (58, PAGE_IS_GUARD),
        (55, PAGE_IS_SOFT_DIRTY),
    ] {
        if entry & (1 << bit) != 0 {
            categories |= category;
        }
    }
    categories
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE_DATA: Query = Query {
        inverted: PAGE_IS_PFNZERO | PAGE_IS_FILE,
        all: PAGE_IS_PFNZERO | PAGE_IS_FILE,
        any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        report: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };

    #[test]
    fn both_ways_find_the_touched_pages() {
        let memory = vec![7u8; 64 * 4096];
        let start = (memory.as_ptr() as u64 + 4095) & !4095;
        let end = start + 32 * 4096;
        let mut pagemap = Pagemap::open(Pid(std::process::id() as i32)).unwrap();
        for has_scan in [true, false] {
            pagemap.has_scan = has_scan;
            let mut pages = 0;
            pagemap
                .scan(RemoteAddr(start), RemoteAddr(end), PRIVATE_DATA, |r| {
                    pages += (r.end - r.start) / PAGE_SIZE;
                })
                .unwrap();
            assert_eq!(pages, 32, "has_scan {has_scan}");
        }
        assert_eq!(memory[0], 7);
    }

    #[test]
    fn many_runs_are_each_told_once() {
        for runs in [300, 700, 1100, 3000] {
            let (length, memory) = mapping(2 * runs);
            for page in 0..runs {
                memory[2 * page * PAGE_SIZE as usize] = 1;
            }
            let start = RemoteAddr(memory.as_ptr() as u64);
            let mut found = Vec::new();
            Pagemap::open(Pid(std::process::id() as i32))
                .unwrap()
                .scan(start, start.offset(length as u64), PRIVATE_DATA, |r| found.push(r.start))
                .unwrap();
            let want = (0..runs as u64).map(|page| start.0 + 2 * page * PAGE_SIZE);
            assert_eq!(found, want.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mapping_that_became_one_with_a_moved_one_counts_as_written() {
        let Ok(tracker) = crate::userfaultfd::of_self() else {
            println!("skip: the kernel has no asynchronous write protection");
            return;
        };
        let (length, place) = mapping(32);
        let (half, elsewhere) = mapping(16);
        let elsewhere = elsewhere.as_mut_ptr().cast::<libc::c_void>();
        let start = RemoteAddr(place.as_ptr() as u64);
        let (middle, end) = (start.offset(half as u64), start.offset(length as u64));
        let upper = middle.0 as *mut libc::c_void;
        place[0] = 1;
        place[half] = 1;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: moves a mapping that nobody refers to from here on over another such one.
        assert_eq!(unsafe { libc::mremap(upper, half, half, flags, elsewhere) }, elsewhere);
        tracker.track(start, middle).unwrap();
        let moved = RemoteAddr(elsewhere as u64);
        tracker.track(moved, moved.offset(half as u64)).unwrap();
        let mut pagemap = Pagemap::open(Pid(std::process::id() as i32)).unwrap();
        let query = Query { report: PAGE_IS_WRITTEN, ..PRIVATE_DATA };
        pagemap.scan_and_protect(start, middle, query, |_| {}).unwrap();
        // SAFETY: as above, to where it was and nothing is now.
        assert_eq!(unsafe { libc::mremap(elsewhere, half, half, flags, upper) }, upper);
        place[0] = 2;
        let mut written = Vec::new();
        let found = |r: Region| written.push((r.start, r.categories & PAGE_IS_WRITTEN != 0));
        if pagemap.scan_and_protect(start, middle, query, found).is_err() {
            tracker.track(start, end).unwrap();
            let found = |r: Region| written.push((r.start, r.categories & PAGE_IS_WRITTEN != 0));
            pagemap.scan_and_protect(start, middle, query, found).unwrap();
        }
        assert_eq!(written, [(start.0, true)]);
        place[0] = 3;
        let mut again = Vec::new();
        let found = |r: Region| again.push((r.start, r.categories & PAGE_IS_WRITTEN != 0));
        pagemap.scan_and_protect(start, middle, query, found).unwrap();
        assert_eq!(again, [(start.0, true)]);
    }

    /// Empty private memory that stays until the end of the program.
    fn mapping(pages: usize) -> (usize, &'static mut [u8]) {
        let length = pages * PAGE_SIZE as usize;
        let (rw, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses changes no memory of ours.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), length, rw, private, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        // SAFETY: exactly the mapping made above, without huge pages.
        assert_eq!(unsafe { libc::madvise(mapped, length, libc::MADV_NOHUGEPAGE) }, 0);
        // SAFETY: exactly the mapping made above, which stays until the end of the program.
        (length, unsafe { std::slice::from_raw_parts_mut(mapped.cast::<u8>(), length) })
    }

    #[test]
    fn written_pages_are_told_once() {
        let Ok(tracker) = crate::userfaultfd::of_self() else {
            println!("skip: the kernel has no asynchronous write protection");
            return;
        };
        let (length, memory) = mapping(32);
        let start = RemoteAddr(memory.as_ptr() as u64);
        let end = start.offset(length as u64);
        let mut pagemap = Pagemap::open(Pid(std::process::id() as i32)).unwrap();
        let query = Query { report: PAGE_IS_WRITTEN, ..PRIVATE_DATA };
        let untracked = pagemap.scan_and_protect(start, end, query, |_| {}).unwrap_err();
        assert_eq!(untracked.kind(), io::ErrorKind::PermissionDenied);
        tracker.track(start, end).unwrap();
        let mut look = || {
            let mut found = (0, 0);
            let mut add = |r: Region| {
                let pages = (r.end - r.start) / PAGE_SIZE;
                found.0 += pages;
                found.1 += if r.categories & PAGE_IS_WRITTEN != 0 { pages } else { 0 };
            };
            pagemap.scan_and_protect(start, end, query, &mut add).unwrap();
            found
        };
        assert_eq!(look(), (0, 0));
        memory[3 * 4096] = 1;
        memory[9 * 4096] = 1;
        assert_eq!(look(), (2, 2));
        assert_eq!(look(), (2, 0));
        memory[9 * 4096 + 1] = 1;
        memory[10 * 4096] = 1;
        assert_eq!(look(), (3, 2));
        // What was dropped is no data, and written anew it counts.
        let mapped = start.0 as *mut libc::c_void;
        // SAFETY: the mapping made above; its bytes become zeros.
        assert_eq!(unsafe { libc::madvise(mapped, length, libc::MADV_DONTNEED) }, 0);
        memory[3 * 4096] = 2;
        assert_eq!(look(), (1, 1));
    }
}
