//! A root task that was born with memory ([`Preloaded`]): what is missing of it, and what is too much.

use arctern_image::pages::Extent;
use arctern_sys::PAGE_SIZE;
use arctern_tracee::stub::Stub;

use super::rebuild::{Memory, drop_pages, own_pages};
use super::space::{AddressSpace, Kept};
use crate::error::RestoreError;
use crate::precopy::Preloaded;
use crate::restore_context::RestoreContext;
use crate::tracking::Ranges;

impl Memory {
    /// Puts those pages of the images into the task that were not there before it was made, and drops
    /// those that it does not have any more.
    pub(super) fn complete(
        &mut self,
        ctx: &mut RestoreContext,
        stub: &Stub,
        space: &AddressSpace,
        preloaded: &Preloaded,
        kept: &Kept,
    ) -> Result<(), RestoreError> {
        let mut here = Ranges::default();
        for vma in &kept.vmas {
            preloaded.pages().cut(vma.start, vma.end, |start, end, known| {
                if known {
                    here.push(start, end);
                }
            });
        }
        let wanted = missing(own_pages(space), &here);
        let all: Ranges = own_pages(space).map(|extent| (extent.vaddr, extent.end())).collect();
        let mut calls = Vec::new();
        for (start, end) in here.iter() {
            all.cut(start, end, |start, end, known| {
                if !known {
                    calls.push((start, end));
                }
            });
        }
        drop_pages(stub, calls)?;
        match &space.pages {
            Some(pages) => self.read_pages(ctx, stub, pages, &wanted),
            None => Ok(()),
        }
    }
}

/// The parts of extents that are not here already. What the newest images have themselves is newer than
/// what is here.
fn missing<'a>(extents: impl Iterator<Item = &'a Extent>, here: &Ranges) -> Vec<Extent> {
    let mut wanted = Vec::new();
    for extent in extents {
        if extent.level == 0 {
            wanted.push(*extent);
            continue;
        }
        here.cut(extent.vaddr, extent.end(), |start, end, known| {
            if !known {
                let nr_pages = (end - start) / PAGE_SIZE;
                let offset = extent.offset + (start - extent.vaddr);
                wanted.push(Extent { vaddr: start, nr_pages, offset, ..*extent });
            }
        });
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_not_read_but_for_the_newest() {
        let extent = |page: u64, nr_pages: u64, level: usize| Extent {
            vaddr: page * PAGE_SIZE,
            nr_pages,
            level,
            offset: page * 10 * PAGE_SIZE,
            lazy: false,
        };
        let here: Ranges = [(2 * PAGE_SIZE, 4 * PAGE_SIZE)].into_iter().collect();
        let wanted = missing([extent(1, 2, 1), extent(3, 1, 0), extent(4, 1, 2)].iter(), &here);
        assert_eq!(wanted, [extent(1, 1, 1), extent(3, 1, 0), extent(4, 1, 2)]);
        let tail = missing([extent(3, 3, 1)].iter(), &here);
        assert_eq!(tail[0].vaddr, 4 * PAGE_SIZE);
        assert_eq!((tail[0].nr_pages, tail[0].offset), (2, 31 * PAGE_SIZE));
    }
}
