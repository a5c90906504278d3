//! Layers and changes of root file systems, and the archives that images come in.

use std::fs;
use std::os::unix::fs::symlink;

use arbitrary::{Arbitrary, Unstructured};
use arctern_storage::Store;
use arctern_storage::tarstream::TarStream;
use arctern_storage::unpack::{Unpacker, Whiteouts};
use tar::{Builder, Header};

use crate::scratch;

/// What lies beside the directory that is unpacked into.
const KEPT: &[u8] = b"kept";

#[derive(Debug, Arbitrary)]
struct Input {
    /// Blocks that get a right checksum, so that more than the first check is reached.
    headers: Vec<u8>,
    overlay: bool,
    bytes: Vec<u8>,
}

/// The unpacker: raw bytes, and blocks with a right sum.
pub fn layer(input: &[u8]) {
    let (mut bytes, headers, overlay) = match input.split_first() {
        Some((0, rest)) => (rest.to_vec(), Vec::new(), false),
        _ => match Input::arbitrary(&mut Unstructured::new(input)) {
            Ok(Input { headers, overlay, bytes }) => (bytes, headers, overlay),
            Err(_) => return,
        },
    };
    for block in headers {
        let start = usize::from(block) * 512;
        if let Some(block) = bytes.get_mut(start..start + 512) {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    let outside = scratch();
    fs::write(outside.path().join("out"), KEPT).expect("write");
    let root = outside.path().join("root");
    fs::create_dir(&root).expect("make");
    symlink("..", root.join("a")).expect("link");
    let whiteouts = if overlay { Whiteouts::ToOverlay } else { Whiteouts::Literal };
    let mut unpacker = Unpacker::new(&root, whiteouts).expect("open");
    if unpacker.unpack(&mut TarStream::new(&bytes[..])).is_ok() {
        let _ = unpacker.finish();
    }
    assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 2);
    assert_eq!(fs::read(outside.path().join("out")).expect("read"), KEPT);
}

/// Names that the two layouts of image archives have.
const NAMES: &[&str] = &["index.json", "manifest.json", "oci-layout", "config.json", "layer.tar"];

/// Archives of images: the input as it is, and pieces of it under the names of an archive.
pub fn image_archive(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let dir = scratch();
    let Ok(store) = Store::open(&dir.path().join("root"), &dir.path().join("run")) else { return };
    if choice == 0 {
        let _ = store.load(rest);
        return;
    }
    let mut tar = Builder::new(Vec::new());
    for (name, content) in NAMES.iter().zip(rest.split(|byte| *byte == 0)) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).expect("append");
    }
    let bytes = tar.into_inner().expect("end");
    let _ = store.load(bytes.as_slice());
    let _ = store.load_only(bytes.as_slice(), &"a".repeat(64));
}
