//! Reading a page store through its chain of parents.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{PAGE_SIZE, Run, read_runs};
use crate::images::{ImageDir, ImageError, ImageErrorKind, ImageKind};

/// The longest chain of parent dumps that is followed; a longer one is a loop of links.
pub const MAX_CHAIN: usize = 256;

/// Neighbouring pages whose bytes lie one after another in one pages file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Address of the first page in the task, or its byte offset in a shared object.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// Which dump of the chain has the bytes: 0 for the newest.
    pub level: usize,
    /// Byte offset of the first page in that dump's pages file.
    pub offset: u64,
    /// The newest dump allows the pages to be brought in later.
    pub lazy: bool,
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.nr_pages * PAGE_SIZE
    }

    /// Always false; extents are not empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address after the last page.
    pub fn end(&self) -> u64 {
        self.vaddr + self.len()
    }
}

/// An open page store: every stored page with its place, parents included.
#[derive(Debug)]
pub struct PagemapReader {
    /// Pages file of every dump of the chain; None where the dump stores no page of its own.
    files: Vec<Option<File>>,
    extents: Vec<Extent>,
    path: PathBuf,
}

impl PagemapReader {
    /// Opens the page store of a task ([`ImageKind::Pagemap`], by pid) or a shared object
    /// ([`ImageKind::PagemapShmem`]); None if there is no such file.
    ///
    /// # Errors
    /// A pagemap is damaged ([`read_runs`]); a pages file is missing or shorter than its pagemap
    /// says; pages are nowhere ([`resolve`]); the chain of parents is longer than [`MAX_CHAIN`].
    pub fn open(images: &ImageDir, kind: ImageKind, id: u64) -> Result<Option<Self>, ImageError> {
        let path = images.path_of(kind, id);
        let Some((runs, file)) = open_level(images, kind, id)? else {
            return Ok(None);
        };
        let mut more = needs_parent(&runs);
        let mut levels = vec![runs];
        let mut files = vec![file];
        let mut parent = None::<ImageDir>;
        while more {
            if levels.len() >= MAX_CHAIN {
                return Err(ImageErrorKind::ChainTooLong { limit: MAX_CHAIN }.at(&path));
            }
            let dir = parent.as_ref().unwrap_or(images);
            let Some(next) = dir.parent()? else {
                return Err(ImageErrorKind::NoParent.at(dir.path_of(kind, id)));
            };
            let Some((runs, file)) = open_level(&next, kind, id)? else {
                return Err(ImageErrorKind::Missing.at(next.path_of(kind, id)));
            };
            more = needs_parent(&runs);
            levels.push(runs);
            files.push(file);
            parent = Some(next);
        }
        let extents = resolve(&levels).map_err(|kind| kind.at(&path))?;
        Ok(Some(Self { files, extents, path }))
    }

    /// Every stored page, ascending.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Number of stored pages.
    pub fn total_pages(&self) -> u64 {
        self.extents.iter().map(|extent| extent.nr_pages).sum()
    }

    /// The pages file of an extent of this store.
    ///
    /// # Errors
    /// The extent is not of this store.
    pub fn file(&self, extent: &Extent) -> Result<&File, ImageError> {
        self.files
            .get(extent.level)
            .and_then(Option::as_ref)
            .ok_or_else(|| ImageErrorKind::NotStored { vaddr: extent.vaddr }.at(&self.path))
    }

    /// The extent that holds the page at `vaddr`, None if that page is not stored.
    pub fn find(&self, vaddr: u64) -> Option<&Extent> {
        let index = self.extents.partition_point(|extent| extent.end() <= vaddr);
        self.extents.get(index).filter(|extent| extent.vaddr <= vaddr)
    }

    /// Reads the page at `vaddr` into `page`; false, and `page` untouched, if it is not stored.
    pub fn read_page(
        &self,
        vaddr: u64,
        page: &mut [u8; PAGE_SIZE as usize],
    ) -> Result<bool, ImageError> {
        let vaddr = vaddr & !(PAGE_SIZE - 1);
        let Some(extent) = self.find(vaddr) else {
            return Ok(false);
        };
        self.file(extent)?
            .read_exact_at(page, extent.offset + (vaddr - extent.vaddr))
            .map_err(|error| ImageErrorKind::io("read a page")(error).at(&self.path))?;
        Ok(true)
    }
}

type Level = (Vec<Run>, Option<File>);

/// One dump's runs, with its pages file if it stores any page.
fn open_level(images: &ImageDir, kind: ImageKind, id: u64) -> Result<Option<Level>, ImageError> {
    let Some(mut reader) = images.reader(kind, id)? else {
        return Ok(None);
    };
    let (pages_id, runs, needed) = read_runs(&mut reader)?;
    if needed == 0 {
        return Ok(Some((runs, None)));
    }
    let path = images.path_of(ImageKind::Pages, pages_id.into());
    let file = images
        .open_file(ImageKind::Pages, pages_id.into())?
        .ok_or_else(|| ImageErrorKind::Missing.at(&path))?;
    let size = file
        .metadata()
        .map_err(|error: io::Error| ImageErrorKind::io("ask for its size")(error).at(&path))?
        .len();
    if size < needed {
        return Err(ImageErrorKind::PagesMissing { needed, size }.at(path));
    }
    Ok(Some((runs, Some(file))))
}

fn needs_parent(runs: &[Run]) -> bool {
    runs.iter().any(|run| run.flags.parent && !run.flags.present)
}

/// Finds the bytes of every page of the newest dump: `levels` has the runs of each dump, newest first,
/// each list ascending without overlap (as [`read_runs`] returns it).
///
/// # Errors
/// [`ImageErrorKind::NotStored`]: a page is marked as the parent's and the parent does not have it, or
/// is neither stored nor the parent's (a lazy dump, whose pages come from a page server).
pub fn resolve(levels: &[Vec<Run>]) -> Result<Vec<Extent>, ImageErrorKind> {
    let mut extents = Vec::new();
    for run in levels.first().into_iter().flatten() {
        resolve_range(levels, 0, (run.vaddr, run.end()), run.flags.lazy, &mut extents)?;
    }
    Ok(extents)
}

/// Resolves the pages of `start..end`, all of which must be in dump `level` or below.
fn resolve_range(
    levels: &[Vec<Run>],
    level: usize,
    (start, end): (u64, u64),
    lazy: bool,
    extents: &mut Vec<Extent>,
) -> Result<(), ImageErrorKind> {
    let runs = levels.get(level).ok_or(ImageErrorKind::NotStored { vaddr: start })?;
    let mut at = start;
    let first = runs.partition_point(|run| run.end() <= start);
    for run in &runs[first..] {
        if at == end {
            break;
        }
        if run.vaddr > at {
            return Err(ImageErrorKind::NotStored { vaddr: at });
        }
        let until = run.end().min(end);
        if run.flags.present {
            let offset = run.offset + (at - run.vaddr);
            let nr_pages = (until - at) / PAGE_SIZE;
            push(extents, Extent { vaddr: at, nr_pages, level, offset, lazy });
        } else if run.flags.parent {
            resolve_range(levels, level + 1, (at, until), lazy, extents)?;
        } else {
            return Err(ImageErrorKind::NotStored { vaddr: at });
        }
        at = until;
    }
    if at < end {
        return Err(ImageErrorKind::NotStored { vaddr: at });
    }
    Ok(())
}

/// Appends an extent, to the one before where the bytes go on.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = extents.last_mut()
        && last.end() == extent.vaddr
        && last.level == extent.level
        && last.lazy == extent.lazy
        && last.offset + last.len() == extent.offset
    {
        last.nr_pages += extent.nr_pages;
    } else {
        extents.push(extent);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::images::RecordReader;
    use crate::messages::{PagemapEntry, PagemapHead};
    use crate::pages::{PageFlags, PagemapWriter, PagesIds};

    const P: u64 = PAGE_SIZE;

    fn page(byte: u8) -> [u8; P as usize] {
        [byte; P as usize]
    }

    /// Writes pages with recognisable contents.
    fn dump(images: &ImageDir, pages: &[(u64, PageFlags, u8)]) {
        let ids = PagesIds::new();
        let mut writer = PagemapWriter::create(images, ImageKind::Pagemap, 1, ids.next()).unwrap();
        for &(number, flags, byte) in pages {
            let offset = writer.push(number * P, 1, flags).unwrap();
            if flags.present {
                writer.pages().write_all_at(&page(byte), offset).unwrap();
            }
        }
        writer.finish().unwrap();
    }

    fn open(images: &ImageDir) -> Result<PagemapReader, ImageError> {
        Ok(PagemapReader::open(images, ImageKind::Pagemap, 1)?.unwrap())
    }

    #[test]
    fn neighbours_become_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let stored = PageFlags::STORED_LAZY;
        dump(&images, &[(1, stored, 1), (2, stored, 2), (4, stored, 3)]);
        let mut reader = images.reader(ImageKind::Pagemap, 1).unwrap().unwrap();
        assert_eq!(reader.required::<PagemapHead>().unwrap().pages_id, 1);
        let entries: Vec<PagemapEntry> = reader.all().unwrap();
        let got: Vec<_> = entries
            .iter()
            .map(|entry| (entry.vaddr, entry.nr_pages, entry.flags, entry.compat_nr_pages))
            .collect();
        assert_eq!(got, [(P, Some(2), Some(6), 0), (4 * P, Some(1), Some(6), 0)]);

        let store = open(&images).unwrap();
        assert_eq!(store.extents().len(), 2);
        assert_eq!(store.total_pages(), 3);
        let mut buffer = page(0);
        assert!(store.read_page(2 * P + 5, &mut buffer).unwrap());
        assert_eq!(buffer, page(2));
        assert!(!store.read_page(3 * P, &mut buffer).unwrap());
    }

    #[test]
    fn pages_are_found_down_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, parent: Option<&str>| {
            let path = dir.path().join(name);
            let images = ImageDir::create(&path).unwrap();
            if let Some(parent) = parent {
                std::os::unix::fs::symlink(parent, path.join("parent")).unwrap();
            }
            images
        };
        let (stored, parents) = (PageFlags::STORED, PageFlags::IN_PARENT);
        dump(&make("a", None), &[(1, stored, 1), (2, stored, 2), (3, stored, 3)]);
        dump(&make("b", Some("../a")), &[(1, parents, 0), (2, stored, 22), (3, parents, 0)]);
        let newest = make("c", Some("../b"));
        dump(&newest, &[(1, parents, 0), (2, parents, 0), (3, stored, 33)]);
        let store = open(&newest).unwrap();
        let levels: Vec<_> = store.extents().iter().map(|extent| extent.level).collect();
        assert_eq!(levels, [2, 1, 0]);
        for (number, byte) in [(1, 1), (2, 22), (3, 33)] {
            let mut buffer = page(0);
            assert!(store.read_page(number * P, &mut buffer).unwrap());
            assert_eq!(buffer, page(byte));
        }

        let orphan = make("d", None);
        dump(&orphan, &[(1, parents, 0)]);
        let error = open(&orphan).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::NoParent), "{error:?}");
        let looping = make("e", Some("../e"));
        dump(&looping, &[(1, parents, 0)]);
        let error = open(&looping).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::ChainTooLong { .. }), "{error:?}");
        let wider = make("f", Some("../a"));
        dump(&wider, &[(3, parents, 0), (4, parents, 0)]);
        let error = open(&wider).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::NotStored { vaddr } if vaddr == 4 * P));
    }

    #[test]
    fn a_short_pages_file_is_noticed_on_both_sides() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let mut writer = PagemapWriter::create(&images, ImageKind::Pagemap, 1, 1).unwrap();
        writer.push(0, 2, PageFlags::STORED).unwrap();
        writer.pages().write_all_at(&page(1), 0).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::PagesMissing { .. }), "{error:?}");
        let error = open(&images).unwrap_err();
        assert!(matches!(error.kind, ImageErrorKind::PagesMissing { .. }), "{error:?}");
    }

    fn parse(entries: &[PagemapEntry]) -> Result<(u32, Vec<Run>, u64), ImageError> {
        let name = Path::new("pagemap-1.img");
        let mut writer =
            crate::images::RecordWriter::new(Vec::new(), ImageKind::Pagemap, name).unwrap();
        writer.record(&PagemapHead { pages_id: 9 }).unwrap();
        for entry in entries {
            writer.record(entry).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let length = bytes.len() as u64;
        let mut reader =
            RecordReader::new(bytes.as_slice(), length, ImageKind::Pagemap, name).unwrap();
        read_runs(&mut reader)
    }

    #[test]
    fn old_entries_without_flags_are_understood() {
        let old = |vaddr, in_parent| PagemapEntry {
            vaddr,
            compat_nr_pages: 2,
            in_parent,
            flags: None,
            nr_pages: None,
        };
        let (id, runs, needed) =
            parse(&[old(0, None), old(2 * P, Some(true)), old(4 * P, Some(false))]).unwrap();
        assert_eq!((id, needed), (9, 4 * P));
        let flags: Vec<_> = runs.iter().map(|run| run.flags).collect();
        assert_eq!(flags, [PageFlags::STORED, PageFlags::IN_PARENT, PageFlags::STORED]);
        assert_eq!(runs[2].offset, 2 * P);
    }

    #[test]
    fn impossible_runs_are_refused() {
        let run = |vaddr, nr_pages, flags| PagemapEntry {
            vaddr,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(flags),
            nr_pages: Some(nr_pages),
        };
        for bad in [
            vec![run(1, 1, 4)],
            vec![run(0, 0, 4)],
            vec![run(P, u64::MAX / P + 1, 4)],
            vec![run(u64::MAX - P + 1, 1, 4)],
            vec![run(0, 2, 4), run(P, 1, 4)],
            vec![run(2 * P, 1, 4), run(0, 1, 4)],
            vec![run(0, 1, 8)],
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(matches!(error.kind, ImageErrorKind::Invalid { .. }), "{bad:?}");
        }
    }

    proptest! {
        /// Against a page-by-page model of the chain.
        #[test]
        fn resolution_agrees_with_a_page_by_page_model(
            dumps in prop::collection::vec(
                prop::collection::btree_map(0u64..24, prop::bool::ANY, 0..20), 1..4)
        ) {
            let mut levels = Vec::new();
            for pages in &dumps {
                let mut runs: Vec<Run> = Vec::new();
                let mut offset = 0;
                for (&number, &present) in pages {
                    let flags = if present { PageFlags::STORED } else { PageFlags::IN_PARENT };
                    match runs.last_mut() {
                        Some(run) if run.end() == number * P && run.flags == flags => {
                            run.nr_pages += 1;
                        }
                        _ => runs.push(Run { vaddr: number * P, nr_pages: 1, flags, offset }),
                    }
                    if present {
                        offset += P;
                    }
                }
                levels.push(runs);
            }
            let place = |number: u64| dumps.iter().enumerate().find_map(|(level, pages)| {
                match pages.get(&number) {
                    Some(true) => {
                        let before = pages.range(..number).filter(|(_, present)| **present).count();
                        Some(Ok((level, before as u64 * P)))
                    }
                    Some(false) => None,
                    None => Some(Err(())),
                }
            }).unwrap_or(Err(()));
            let model: Result<BTreeMap<u64, (usize, u64)>, ()> =
                dumps[0].keys().map(|&number| Ok((number, place(number)?))).collect();
            match (resolve(&levels), model) {
                (Ok(extents), Ok(model)) => {
                    let mut got = BTreeMap::new();
                    for extent in &extents {
                        for page in 0..extent.nr_pages {
                            let number = extent.vaddr / P + page;
                            got.insert(number, (extent.level, extent.offset + page * P));
                        }
                    }
                    prop_assert_eq!(got, model);
                }
                (got, model) => prop_assert_eq!(got.is_ok(), model.is_ok()),
            }
        }
    }
}
