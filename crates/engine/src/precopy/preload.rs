//! Memory of a root task that is there before the task is.
//!
//! The root task of a restore begins as a clone of the process that restores it. What that process has
//! at the addresses of the task, the task has from the first moment, shared until either writes it: to
//! have it takes as long as a fork, not as long as a copy. So while memory still comes ahead, this
//! process keeps a copy of the mappings that are private and anonymous, and fills them round by round.
//!
//! A mapping that does not fit (its addresses are taken here, or it grows down, or is locked) is left
//! out; so is one that changed in a way that is not a new end. What is not here the task reads from the
//! images, as ever: they have all of it.

use std::collections::BTreeMap;
use std::path::Path;

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{MmEntry, VmaEntry};
use arctern_image::pages::PagemapReader;
use arctern_sys::placed::Placed;

use crate::error::RestoreError;
use crate::state::memory::vma::status;
use crate::tracking::Ranges;

/// Memory of one task in this process. Dropped, it is unmapped here.
#[derive(Debug, Default)]
pub struct Preloaded {
    /// By address of the first byte.
    mappings: BTreeMap<u64, (VmaEntry, Placed)>,
    /// The pages that are here, as the newest round has them.
    pages: Ranges,
}

impl Preloaded {
    /// Takes in a round: the directory that a [`PageSink`](super::PageSink) wrote, of the task with this
    /// pid. Rounds come in order, and none is left out.
    ///
    /// # Errors
    /// The round cannot be read. Nothing is here any more then.
    pub fn load(&mut self, round: &Path, pid: i32) -> Result<(), RestoreError> {
        let loaded = self.take_in(round, pid);
        if loaded.is_err() {
            *self = Preloaded::default();
        }
        loaded
    }

    fn take_in(&mut self, round: &Path, pid: i32) -> Result<(), RestoreError> {
        let images = ImageDir::open(round)?;
        let mm: Option<MmEntry> = images.read_optional(ImageKind::Mm, pid as u64)?;
        self.arrange(&mm.unwrap_or_default().vmas);
        let Some(reader) = PagemapReader::open(&images, ImageKind::Pagemap, pid as u64)? else {
            *self = Preloaded::default();
            return Ok(());
        };
        let mut pages: Vec<(u64, u64)> = self.pages.iter().collect();
        for extent in reader.extents().iter().filter(|extent| extent.level == 0) {
            for (_, placed) in self.mappings.values() {
                let (from, to) = (extent.vaddr.max(placed.start()), extent.end().min(placed.end()));
                if from < to {
                    let offset = extent.offset + (from - extent.vaddr);
                    placed.read_at(reader.file(extent)?, offset, from, to - from).map_err(|e| {
                        RestoreError::Inconsistent(format!("pages at {from:#x}: {e}"))
                    })?;
                    pages.push((from, to));
                }
            }
        }
        self.pages = union(pages);
        Ok(())
    }

    /// Brings the mappings to where the task's are.
    fn arrange(&mut self, vmas: &[VmaEntry]) {
        let wanted: BTreeMap<u64, &VmaEntry> =
            vmas.iter().filter(|vma| is_suitable(vma)).map(|vma| (vma.start, vma)).collect();
        self.mappings.retain(|start, (had, placed)| match wanted.get(start) {
            // What is smaller makes room before anything else grows.
            Some(vma) if vma.flags == had.flags => {
                vma.end >= placed.end() || placed.set_end(vma.end).is_ok()
            }
            _ => false,
        });
        for (start, vma) in wanted {
            match self.mappings.get_mut(&start) {
                Some((had, placed)) => {
                    // Where it cannot grow it stays as long as it is.
                    let _ = placed.set_end(vma.end.max(placed.end()));
                    *had = VmaEntry { end: placed.end(), ..vma.clone() };
                }
                None => {
                    let reserved = vma.flags & libc::MAP_NORESERVE as u32 == 0;
                    match Placed::map(vma.start, vma.end, reserved) {
                        Ok(placed) => {
                            self.mappings.insert(start, (vma.clone(), placed));
                        }
                        Err(e) => tracing::debug!("nothing is preloaded at {start:#x}: {e}"),
                    }
                }
            }
        }
        let mut pages = Vec::new();
        for (_, placed) in self.mappings.values() {
            self.pages.cut(placed.start(), placed.end(), |from, to, known| {
                if known {
                    pages.push((from, to));
                }
            });
        }
        self.pages = pages.into_iter().collect();
    }

    /// The mappings, as a parent's whose child the task is.
    pub(crate) fn mappings(&self) -> MmEntry {
        let vmas = self.mappings.values().map(|(vma, _)| vma.clone()).collect();
        MmEntry { vmas, ..MmEntry::default() }
    }

    /// The pages that are here.
    pub(crate) fn pages(&self) -> &Ranges {
        &self.pages
    }
}

/// Whether a mapping can stand in another process until the task is made.
fn is_suitable(vma: &VmaEntry) -> bool {
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
    vma.status & !status::HEAP == status::REGULAR | status::ANON_PRIVATE
        && vma.flags & !(libc::MAP_NORESERVE as u32) == anonymous
        && vma.start < vma.end
}

/// Ranges in any order, with what they have in common once.
fn union(mut list: Vec<(u64, u64)>) -> Ranges {
    list.sort_unstable();
    let mut all = Ranges::default();
    let mut after = 0;
    for (start, end) in list {
        all.push(start.max(after), end.max(after));
        after = after.max(end);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precopy::{PageDirectory, PageSink};
    use arctern_sys::memory::{self, RemoteAddr};

    const AT: u64 = 0x5b5b_0000_0000;
    const P: u64 = arctern_sys::PAGE_SIZE;

    fn vma(start: u64, end: u64) -> VmaEntry {
        VmaEntry {
            start: AT + start * P,
            end: AT + end * P,
            status: status::REGULAR | status::ANON_PRIVATE,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            prot: 3,
            fd: -1,
            ..VmaEntry::default()
        }
    }

    fn round(
        base: &Path,
        number: u32,
        vmas: Vec<VmaEntry>,
        stored: &[(u64, u8)],
        unchanged: &[u64],
    ) -> std::path::PathBuf {
        let dir = base.join(number.to_string());
        let parent = number.checked_sub(1).map(|n| format!("../{n}"));
        let mut sink = PageDirectory::create(&dir, parent.as_deref().map(Path::new)).unwrap();
        sink.space(1).unwrap();
        sink.mappings(&MmEntry { vmas, ..MmEntry::default() }).unwrap();
        let mut all: Vec<(u64, Option<u8>)> =
            stored.iter().map(|(page, byte)| (*page, Some(*byte))).collect();
        all.extend(unchanged.iter().map(|page| (*page, None)));
        all.sort_unstable();
        for (page, byte) in all {
            match byte {
                Some(byte) => sink.stored(AT + page * P, &[byte; P as usize]).unwrap(),
                None => sink.unchanged(AT + page * P, 1).unwrap(),
            }
        }
        sink.end().unwrap();
        sink.conclude().unwrap();
        dir
    }

    fn byte(page: u64) -> Option<u8> {
        let own = arctern_sys::Pid(std::process::id() as i32);
        let mut byte = [0];
        memory::read(own, RemoteAddr(AT + page * P), &mut byte).ok().map(|_| byte[0])
    }

    #[test]
    fn rounds_come_one_over_the_other_and_mappings_follow() {
        let base = tempfile::tempdir().unwrap();
        let mut preloaded = Preloaded::default();
        let first = round(
            base.path(),
            0,
            vec![vma(0, 4), vma(8, 10)],
            &[(0, 1), (1, 2), (3, 3), (8, 4)],
            &[],
        );
        preloaded.load(&first, 1).unwrap();
        assert_eq!([byte(0), byte(1), byte(2), byte(8)], [Some(1), Some(2), Some(0), Some(4)]);
        // One grows, one shrinks away from its page, and one page is written again.
        let second =
            round(base.path(), 1, vec![vma(0, 2), vma(8, 12)], &[(1, 5), (11, 6)], &[0, 8]);
        preloaded.load(&second, 1).unwrap();
        assert_eq!([byte(0), byte(1), byte(3)], [Some(1), Some(5), None]);
        assert_eq!([byte(8), byte(11)], [Some(4), Some(6)]);
        let pages: Vec<_> =
            preloaded.pages().iter().map(|(a, b)| ((a - AT) / P, (b - AT) / P)).collect();
        assert_eq!(pages, [(0, 2), (8, 9), (11, 12)]);
        assert_eq!(preloaded.mappings().vmas.len(), 2);
        assert!(preloaded.load(&base.path().join("none"), 1).is_err());
        assert_eq!(byte(0), None, "what is not whole is not there");
    }
}
