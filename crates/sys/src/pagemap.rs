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
            regions: vec![Region::default(); 1024],
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
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut at = start.0;
        let mut report = query.report;
        while self.has_scan && at < end.0 {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: 0,
                start: at,
                end: end.0,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: query.inverted,
                category_mask: query.all,
                category_anyof_mask: query.any,
                return_mask: report,
            };
            // SAFETY: `arg` has the layout of struct pm_scan_arg, and vec/vec_len describe the
            // vector, which is exclusively borrowed during the call.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n < 0 {
                let err = io::Error::last_os_error();
                if err.raw_os_error() == Some(libc::EINVAL) && report & PAGE_IS_GUARD != 0 {
                    // A kernel with the call and without guard pages.
                    report &= !PAGE_IS_GUARD;
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
        if self.has_scan { Ok(()) } else { self.scan_entries(at, end.0, query, found) }
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
/// 58 guard.
fn entry_categories(entry: u64) -> u64 {
    let mut categories = 0;
    for (bit, category) in
        [(63, PAGE_IS_PRESENT), (62, PAGE_IS_SWAPPED), (61, PAGE_IS_FILE), (58, PAGE_IS_GUARD)]
    {
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
}
