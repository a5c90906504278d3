//! Every record decoder: the first byte chooses the kind of file, the rest is the file.
#![no_main]

use std::path::Path;

use arctern_image::describe::describe_records;
use arctern_image::images::{ImageKind, RecordReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else {
        return;
    };
    let kind = ImageKind::ALL[usize::from(choice) % ImageKind::ALL.len()];
    // The magic words are put in front, so that the fuzzer need not find them.
    let mut bytes = kind.head().word().map_or(Vec::new(), |word| word.to_le_bytes().to_vec());
    if kind.type_word() != 0 {
        bytes.extend(kind.type_word().to_le_bytes());
    }
    bytes.extend(rest);
    let length = bytes.len() as u64;
    let name = Path::new("fuzz.img");
    if let Ok(mut reader) = RecordReader::new(bytes.as_slice(), length, kind, name) {
        let _ = describe_records(kind, &mut reader);
    }
    // And as it is, for the magic words themselves.
    let _ = RecordReader::new(rest, rest.len() as u64, kind, name);
});
