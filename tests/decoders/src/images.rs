//! CRIU's image files one by one, the manifest, the page maps, the network status.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use arctern_image::describe::describe_records;
use arctern_image::images::{ImageKind, RecordReader, RecordWriter};
use arctern_image::manifest::Manifest;
use arctern_image::messages::{CriuReq, CriuResp, PagemapEntry, PagemapHead};
use arctern_image::pages::{read_runs, resolve};
use prost::Message;

/// Every record decoder: the first byte chooses the kind of file, the rest is the file; and the
/// messages of CRIU's service.
pub fn images(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let kind = ImageKind::ALL[usize::from(choice) % ImageKind::ALL.len()];
    // The magic words are put in front, so that the fuzzer need not find them.
    let mut bytes = kind.head().word().map_or(Vec::new(), |word| word.to_le_bytes().to_vec());
    if kind.type_word() != 0 {
        bytes.extend(kind.type_word().to_le_bytes());
    }
    bytes.extend(rest);
    let name = Path::new("fuzz.img");
    if let Ok(mut reader) = RecordReader::new(bytes.as_slice(), bytes.len() as u64, kind, name) {
        let _ = describe_records(kind, &mut reader);
    }
    let _ = CriuReq::decode(rest);
    let _ = CriuResp::decode(rest);
    // And as it is, for the magic words themselves.
    let _ = RecordReader::new(rest, rest.len() as u64, kind, name);
}

/// The manifest: what is read is written so that it is read the same.
pub fn manifest(input: &[u8]) {
    if let Ok(manifest) = Manifest::from_json(input) {
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("own"), manifest);
    }
}

/// `network.status`, and the list of deleted files.
pub fn network_status(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = arctern_net::ArchivedStatus::from_podman(text);
    }
    let _ = arctern_storage::diff::parse_deleted(input);
}

#[derive(Debug, Arbitrary)]
struct Entry {
    page: u16,
    shift: u8,
    nr_pages: Option<u64>,
    compat_nr_pages: u16,
    in_parent: Option<bool>,
    flags: Option<u8>,
}

/// The reader of page maps, over a chain of up to three dumps.
pub fn pagemap(input: &[u8]) {
    let Ok(dumps) = Vec::<Vec<Entry>>::arbitrary(&mut Unstructured::new(input)) else { return };
    let name = Path::new("pagemap-1.img");
    let mut levels = Vec::new();
    for entries in dumps.iter().take(3) {
        let mut writer = RecordWriter::new(Vec::new(), ImageKind::Pagemap, name).expect("begin");
        writer.record(&PagemapHead { pages_id: 1 }).expect("head");
        for entry in entries {
            let record = PagemapEntry {
                vaddr: u64::from(entry.page) << (entry.shift % 48),
                compat_nr_pages: entry.compat_nr_pages.into(),
                in_parent: entry.in_parent,
                flags: entry.flags.map(u32::from),
                nr_pages: entry.nr_pages,
            };
            writer.record(&record).expect("record");
        }
        let bytes = writer.finish().expect("end");
        let length = bytes.len() as u64;
        let mut reader =
            RecordReader::new(bytes.as_slice(), length, ImageKind::Pagemap, name).expect("own");
        let Ok((_, runs, needed)) = read_runs(&mut reader) else { return };
        let stored: u64 = runs.iter().filter(|run| run.flags.present).map(|run| run.len()).sum();
        assert_eq!(needed, stored);
        levels.push(runs);
    }
    if let Ok(extents) = resolve(&levels) {
        let wanted: u64 =
            levels.first().map_or(0, |runs| runs.iter().map(|run| run.nr_pages).sum());
        assert_eq!(extents.iter().map(|extent| extent.nr_pages).sum::<u64>(), wanted);
        assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].vaddr));
    }
}
