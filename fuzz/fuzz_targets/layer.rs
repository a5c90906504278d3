//! The unpacker of layers and root file system changes: raw bytes, and blocks with a right sum.
#![no_main]

use std::fs;

use arctern_storage::tarstream::TarStream;
use arctern_storage::unpack::{Unpacker, Whiteouts};
use libfuzzer_sys::fuzz_target;
use tar::Header;

/// What lies beside the directory that is unpacked into.
const KEPT: &[u8] = b"kept";

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    bytes: Vec<u8>,
    /// Blocks that get a right checksum, so that more than the first check is reached.
    headers: Vec<u8>,
    overlay: bool,
}

fuzz_target!(|input: Input| {
    let Input { mut bytes, headers, overlay } = input;
    for block in headers {
        let start = usize::from(block) * 512;
        if let Some(block) = bytes.get_mut(start..start + 512) {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    let outside = tempfile::tempdir().expect("temporary directory");
    fs::write(outside.path().join("out"), KEPT).expect("write");
    let root = outside.path().join("root");
    fs::create_dir(&root).expect("make");
    std::os::unix::fs::symlink("..", root.join("a")).expect("link");
    let whiteouts = if overlay { Whiteouts::ToOverlay } else { Whiteouts::Literal };
    let mut unpacker = Unpacker::new(&root, whiteouts).expect("open");
    if unpacker.unpack(&mut TarStream::new(&bytes[..])).is_ok() {
        let _ = unpacker.finish();
    }
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 2);
    assert_eq!(fs::read(outside.path().join("out")).expect("read"), KEPT);
});
