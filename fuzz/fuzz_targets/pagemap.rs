//! The pagemap reader, over a chain of up to three dumps.
#![no_main]

use std::path::Path;

use arctern_image::images::{ImageKind, RecordReader, RecordWriter};
use arctern_image::messages::{PagemapEntry, PagemapHead};
use arctern_image::pages::{read_runs, resolve};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, arbitrary::Arbitrary)]
struct Entry {
    page: u16,
    shift: u8,
    nr_pages: Option<u64>,
    compat_nr_pages: u16,
    in_parent: Option<bool>,
    flags: Option<u8>,
}

fuzz_target!(|dumps: Vec<Vec<Entry>>| {
    let name = Path::new("pagemap-1.img");
    let mut levels = Vec::new();
    for entries in dumps.iter().take(3) {
        let mut writer = RecordWriter::new(Vec::new(), ImageKind::Pagemap, name).unwrap();
        writer.record(&PagemapHead { pages_id: 1 }).unwrap();
        for entry in entries {
            let record = PagemapEntry {
                vaddr: u64::from(entry.page) << (entry.shift % 48),
                compat_nr_pages: entry.compat_nr_pages.into(),
                in_parent: entry.in_parent,
                flags: entry.flags.map(u32::from),
                nr_pages: entry.nr_pages,
            };
            writer.record(&record).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let length = bytes.len() as u64;
        let mut reader =
            RecordReader::new(bytes.as_slice(), length, ImageKind::Pagemap, name).unwrap();
        let Ok((_, runs, needed)) = read_runs(&mut reader) else {
            return;
        };
        let stored: u64 = runs.iter().filter(|run| run.flags.present).map(|run| run.len()).sum();
        assert_eq!(needed, stored);
        levels.push(runs);
    }
    if let Ok(extents) = resolve(&levels) {
        let wanted: u64 = levels.first().map_or(0, |runs| runs.iter().map(|run| run.nr_pages).sum());
        assert_eq!(extents.iter().map(|extent| extent.nr_pages).sum::<u64>(), wanted);
        assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].vaddr));
    }
});
