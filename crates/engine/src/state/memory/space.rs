//! The address space of a task as the images describe it, checked before anything is made of it.

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{MmEntry, VmaEntry};
use arctern_image::pages::{Extent, PagemapReader};
use arctern_sys::PAGE_SIZE;
use arctern_tracee::stub::GADGET_SIZE;

use super::vma::{has_private_pages, status};
use crate::error::RestoreError;

/// End of the user part of the address space with four-level page tables.
pub(super) const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The address space of one task, as the images describe it.
#[derive(Debug)]
pub struct AddressSpace {
    /// The image.
    pub mm: MmEntry,
    /// Its pages, if it has any.
    pub pages: Option<PagemapReader>,
}

impl AddressSpace {
    /// Reads and checks the address space of a task.
    pub fn load(images: &ImageDir, pid: i32) -> Result<Self, RestoreError> {
        let mm: MmEntry = images.read_one(ImageKind::Mm, pid as u64)?;
        check(&mm).map_err(|what| RestoreError::Inconsistent(format!("mm-{pid}.img: {what}")))?;
        let pages = PagemapReader::open(images, ImageKind::Pagemap, pid as u64)?;
        if let Some(pages) = &pages {
            for extent in pages.extents() {
                if !is_covered(&mm, extent.vaddr, extent.end()) {
                    return Err(RestoreError::Inconsistent(format!(
                        "pagemap-{pid}.img: pages at {:#x} are in no private mapping",
                        extent.vaddr
                    )));
                }
            }
        }
        Ok(AddressSpace { mm, pages })
    }

    pub(super) fn mapped(&self) -> impl Iterator<Item = &VmaEntry> {
        self.mm.vmas.iter().filter(|v| v.status & (status::GUARD | status::VSYSCALL) == 0)
    }

    /// How many files the task has open at most while its mappings are made: each may be needed for
    /// reading and for writing.
    pub fn mapped_files(&self) -> usize {
        let ids: std::collections::HashSet<u64> = self.mapped().map(|vma| vma.shmid).collect();
        2 * ids.len() + 16
    }

    /// Whether the images hold pages of this mapping.
    pub(super) fn has_stored_pages(&self, vma: &VmaEntry) -> bool {
        let Some(pages) = &self.pages else { return false };
        let extents = pages.extents();
        let index = extents.partition_point(|e| e.end() <= vma.start);
        has_private_pages(vma) && extents.get(index).is_some_and(|e| e.vaddr < vma.end)
    }

    /// Pages in the images.
    pub fn stored_pages(&self) -> u64 {
        self.pages.as_ref().map_or(0, PagemapReader::total_pages)
    }

    /// The lowest address that it has.
    pub fn lowest(&self) -> Option<u64> {
        self.mm.vmas.iter().map(|vma| vma.start).min()
    }

    /// The vDSO, if there is one.
    pub fn vdso(&self) -> Option<&VmaEntry> {
        self.mm.vmas.iter().find(|v| v.status & status::VDSO != 0)
    }
}

/// Addresses are aligned, ascending, apart from each other and in user space.
fn check(mm: &MmEntry) -> Result<(), String> {
    let mut after = 0;
    for vma in &mm.vmas {
        if vma.status & status::VSYSCALL != 0 {
            continue;
        }
        if vma.start % PAGE_SIZE != 0 || vma.end % PAGE_SIZE != 0 || vma.start >= vma.end {
            return Err(format!("mapping {:#x}-{:#x} is not made of pages", vma.start, vma.end));
        }
        if vma.end > TASK_SIZE {
            return Err(format!("mapping at {:#x} is outside of user space", vma.start));
        }
        if vma.status & status::GUARD != 0 {
            continue;
        }
        if vma.start < after {
            return Err(format!("mapping at {:#x} overlaps the one before", vma.start));
        }
        after = vma.end;
        let refused = status::AIORING | status::SHSTK;
        if vma.status & refused != 0 {
            return Err(format!("mapping at {:#x} is of a kind that cannot be rebuilt", vma.start));
        }
    }
    Ok(())
}

/// Whether private mappings cover every byte of a range.
fn is_covered(mm: &MmEntry, start: u64, end: u64) -> bool {
    let mut at = start;
    let mut index = mm.vmas.partition_point(|v| v.end <= start && v.status & status::GUARD == 0);
    while at < end {
        let Some(vma) = mm.vmas.get(index) else { return false };
        if vma.start > at || vma.end <= at || !has_private_pages(vma) {
            return false;
        }
        at = vma.end;
        index += 1;
    }
    true
}

/// An address at which the gadget fits in every space and in this program itself.
pub fn find_hole<'a>(spaces: impl Iterator<Item = &'a AddressSpace>) -> Result<u64, RestoreError> {
    let own = arctern_sys::proc::smaps::own_ranges().map_err(|e| {
        RestoreError::Inconsistent(format!("cannot read this program's own mappings: {e}"))
    })?;
    let mut taken: Vec<(u64, u64)> = own;
    for space in spaces {
        taken.extend(space.mapped().map(|v| (v.start, v.end)));
    }
    taken.sort_unstable();
    // Not below 256 MiB, where programs without PIE and their heaps live.
    let mut at = 0x1000_0000;
    for (start, end) in taken {
        if start >= at + GADGET_SIZE {
            break;
        }
        // A stack grows down: keep away from the start of mappings too.
        at = at.max(end.next_multiple_of(PAGE_SIZE));
    }
    if at + GADGET_SIZE > TASK_SIZE {
        return Err(RestoreError::Inconsistent("no address is free in every process".to_owned()));
    }
    Ok(at)
}

/// Whether the two spaces have private memory in common, so that the child should be cloned after
/// the parent was filled.
pub fn have_common_memory(child: &AddressSpace, parent: &AddressSpace) -> bool {
    let mut theirs = parent.mapped().peekable();
    for vma in child.mapped() {
        while theirs.next_if(|p| p.start < vma.start).is_some() {}
        if theirs.peek().is_some_and(|p| is_inherited(vma, p)) {
            return true;
        }
    }
    false
}

/// Mappings that a child keeps from its parent.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) vmas: Vec<VmaEntry>,
    pub(super) vdso: bool,
}

impl Kept {
    pub(super) fn contains(&self, vma: &VmaEntry) -> bool {
        self.end_of(vma.start).is_some()
    }

    /// The end of the kept part of the mapping that begins at `start`.
    pub(super) fn end_of(&self, start: u64) -> Option<u64> {
        let index = self.vmas.binary_search_by_key(&start, |v| v.start).ok()?;
        Some(self.vmas[index].end)
    }

    pub(super) fn covers(&self, vaddr: u64) -> bool {
        let index = self.vmas.partition_point(|v| v.end <= vaddr);
        self.vmas.get(index).is_some_and(|v| v.start <= vaddr)
    }

    pub(super) fn touches(&self, extent: &Extent) -> bool {
        let index = self.vmas.partition_point(|v| v.end <= extent.vaddr);
        self.vmas.get(index).is_some_and(|v| v.start < extent.end())
    }
}

/// Whether a fork gives the child the mapping as the image wants it.
pub(super) fn is_inherited(child: &VmaEntry, parent: &VmaEntry) -> bool {
    let not_forked = 1u64 << libc::MADV_DONTFORK | 1u64 << libc::MADV_WIPEONFORK;
    parent.madv.unwrap_or(0) & not_forked == 0
        && child.madv.unwrap_or(0) & not_forked == 0
        && (child.start, child.pgoff, child.shmid) == (parent.start, parent.pgoff, parent.shmid)
        // A heap or an arena may have grown or shrunk since the fork; a stack grows at its start.
        && (child.end == parent.end || child.flags & libc::MAP_GROWSDOWN as u32 == 0)
        // A fork does not inherit locks.
        && (child.flags | libc::MAP_LOCKED as u32, child.status & !status::HEAP)
            == (parent.flags | libc::MAP_LOCKED as u32, parent.status & !status::HEAP)
        && child.status & (status::SYSVIPC | status::VVAR | status::VDSO) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64) -> VmaEntry {
        VmaEntry {
            start,
            end,
            status: status::REGULAR | status::ANON_PRIVATE,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            prot: 3,
            fd: -1,
            ..VmaEntry::default()
        }
    }

    fn mm(vmas: Vec<VmaEntry>) -> MmEntry {
        MmEntry { vmas, ..MmEntry::default() }
    }

    #[test]
    fn hostile_mappings_are_refused() {
        assert!(check(&mm(vec![vma(0x1000, 0x3000), vma(0x3000, 0x4000)])).is_ok());
        assert!(check(&mm(vec![vma(0x1000, 0x3000), vma(0x2000, 0x4000)])).is_err());
        assert!(check(&mm(vec![vma(0x1001, 0x3000)])).is_err());
        assert!(check(&mm(vec![vma(0x3000, 0x3000)])).is_err());
        assert!(check(&mm(vec![vma(0x1000, TASK_SIZE + 0x1000)])).is_err());
    }

    #[test]
    fn pages_must_lie_in_private_mappings() {
        let mm = mm(vec![vma(0x1000, 0x3000), vma(0x3000, 0x5000), vma(0x9000, 0xa000)]);
        assert!(is_covered(&mm, 0x2000, 0x5000));
        assert!(!is_covered(&mm, 0x2000, 0x6000));
        assert!(!is_covered(&mm, 0x8000, 0xa000));
        assert!(is_covered(&mm, 0x9000, 0xa000));
    }

    #[test]
    fn a_mapping_is_inherited_only_if_nothing_differs() {
        let a = vma(0x1000, 0x2000);
        assert!(is_inherited(&a, &a));
        assert!(!is_inherited(&a, &VmaEntry { shmid: 2, ..a.clone() }));
        let wiped = VmaEntry { madv: Some(1 << libc::MADV_WIPEONFORK), ..a.clone() };
        assert!(!is_inherited(&wiped, &wiped));
    }
}
