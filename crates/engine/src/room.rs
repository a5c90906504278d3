//! How much room a capture and a restore take at least: figures for a look before anything is frozen
//! or built. What they cannot know in time (files without a name, what programs take or give back
//! meanwhile) they leave out, so that nothing is refused that would fit.

use std::collections::BTreeMap;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::PstreeEntry;
use arctern_image::pages::PagemapReader;
use arctern_sys::proc::smaps::{self, Mapping};
use arctern_sys::{PAGE_SIZE, Pid, proc};

use crate::error::RestoreError;

/// Bytes that a tree takes at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// As images: each process has its own pages there.
    pub images: u64,
    /// In memory: pages that processes share count once.
    pub memory: u64,
}

/// About the most that the tree under `root` may take in either form: quick, and enough to know when
/// [`at_least`] need not be asked, which looks at every page table.
pub fn about(root: Pid) -> u64 {
    let one = |pid: Pid| {
        let text = proc::read_single(pid, "status").unwrap_or_default();
        let kib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0)
        };
        (kib("VmRSS:") + kib("VmSwap:")) * 1024
    };
    proc::tree(root).into_iter().map(one).sum()
}

/// What the tree under `root` takes at least. A process that is gone takes nothing.
pub fn at_least(root: Pid) -> Amount {
    let mut amount = Amount::default();
    for pid in proc::tree(root) {
        let Ok(sum) = smaps::read_rollup(pid) else { continue };
        let mut shared = 0;
        if sum.pss_shmem > 0 {
            let mappings = smaps::read(pid).unwrap_or_default();
            shared = mappings.iter().filter(|m| is_of_the_kernel(m)).map(|m| m.pss).sum();
        }
        amount.images += sum.anonymous + sum.swap_pss + shared;
        amount.memory += sum.pss_anonymous + sum.swap_pss + shared;
    }
    amount
}

/// Whether a mapping is of shared memory without a file: anonymous, System V, memfd. That is captured
/// whatever else is mounted where.
fn is_of_the_kernel(mapping: &Mapping) -> bool {
    let begins = |prefix| mapping.name.starts_with(prefix);
    mapping.shared
        && mapping.name.ends_with(" (deleted)")
        && (begins("/dev/zero") || begins("/SYSV") || begins("/memfd:"))
}

/// Bytes of memory that the tree takes at least whose images are in `dir`. Of a process that was
/// forked from another one of the tree, pages at the addresses of its parent's may be the same ones.
///
/// # Errors
/// The images are damaged.
pub fn of_images(dir: &Path) -> Result<u64, RestoreError> {
    let images = ImageDir::open(dir)?;
    let tree: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, 0)?;
    let mut spaces: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for entry in &tree {
        let reader = PagemapReader::open(&images, ImageKind::Pagemap, u64::from(entry.pid))?;
        let extents = reader.iter().flat_map(|reader| reader.extents());
        spaces.insert(entry.pid, extents.map(|extent| (extent.vaddr, extent.end())).collect());
    }
    let none = Vec::new();
    let mut bytes = 0;
    for entry in &tree {
        let parent = spaces.get(&entry.ppid).filter(|_| entry.ppid != entry.pid).unwrap_or(&none);
        bytes += outside(&spaces[&entry.pid], parent);
    }
    for (kind, id) in images.list()? {
        if kind == ImageKind::PagemapShmem
            && let Some(reader) = PagemapReader::open(&images, kind, id)?
        {
            bytes += reader.total_pages() * PAGE_SIZE;
        }
    }
    Ok(bytes)
}

/// Bytes of `ranges` that are not in `others`; both ascend.
fn outside(ranges: &[(u64, u64)], others: &[(u64, u64)]) -> u64 {
    let mut bytes = 0;
    let mut next = 0;
    for &(start, end) in ranges {
        let mut at = start;
        while next < others.len() && others[next].1 <= at {
            next += 1;
        }
        let mut look = next;
        while at < end {
            match others.get(look) {
                Some(&(from, until)) if from < end => {
                    bytes += from.saturating_sub(at);
                    at = until;
                    look += 1;
                }
                _ => {
                    bytes += end - at;
                    at = end;
                }
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_parent_may_share_does_not_count() {
        let parent = [(10, 20), (30, 40), (50, 60)];
        assert_eq!(outside(&[(0, 5), (12, 18)], &parent), 5);
        assert_eq!(outside(&[(5, 35)], &parent), 5 + 10);
        assert_eq!(outside(&[(15, 16), (16, 55), (70, 71)], &parent), 10 + 10 + 1);
        assert_eq!(outside(&[(0, 100)], &[]), 100);
        assert_eq!(outside(&[(0, 8), (8, 16)], &[(4, 12)]), 8);
    }

    #[test]
    fn a_process_takes_what_it_has_touched() {
        let own = Pid(std::process::id() as i32);
        let before = at_least(own);
        let block = vec![7u8; 8 << 20];
        let after = at_least(own);
        assert!(after.memory >= before.memory + (7 << 20), "{before:?} {after:?}");
        assert!(after.images >= after.memory && about(own) >= after.memory);
        drop(block);
    }
}
