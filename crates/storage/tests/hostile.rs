//! Damaged and forged archives end in errors: no panic, nothing outside the directory.

use std::collections::BTreeMap;
use std::path::Path;

use arctern_storage::tarstream::TarStream;
use arctern_storage::unpack::{Devices, Unpacker, Whiteouts};
use proptest::prelude::*;
use tar::EntryType;

/// A member as a forger would write it.
#[derive(Clone, Debug)]
struct Forged {
    kind: u8,
    path: String,
    link: String,
    records: Vec<(String, Vec<u8>)>,
    content: Vec<u8>,
}

fn some_member() -> impl Strategy<Value = Forged> {
    let name = || {
        prop_oneof![
            Just("a"),
            Just("b"),
            Just("a/b"),
            Just("b/a/c"),
            Just(".."),
            Just("../out"),
            Just("a/../../out"),
            Just("/tmp/out"),
            Just("."),
            Just(""),
            Just("a/"),
            Just("out"),
            Just(".wh.a"),
            Just(".wh..wh..opq"),
            Just(".wh..."),
            Just("a/.wh.b"),
        ]
        .prop_map(str::to_owned)
    };
    let key = prop_oneof![
        Just("path"),
        Just("linkpath"),
        Just("size"),
        Just("mtime"),
        Just("uid"),
        Just("SCHILY.xattr.user.x"),
        Just("SCHILY.xattr.trusted.overlay.redirect"),
        Just("GNU.sparse.map"),
    ];
    let value = prop_oneof![
        name().prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(b"18446744073709551615".to_vec()),
    ];
    let records = proptest::collection::vec((key.prop_map(str::to_owned), value), 0..3);
    let kind = proptest::sample::select(b"0123456789LKSxg\0Z".to_vec());
    (kind, name(), name(), records, proptest::collection::vec(any::<u8>(), 0..600)).prop_map(
        |(kind, path, link, records, content)| Forged { kind, path, link, records, content },
    )
}

fn archive(members: &[Forged]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let records: Vec<_> =
            member.records.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        builder.append_pax_extensions(records).expect("records");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(member.kind));
        header.as_old_mut().name[..member.path.len()].copy_from_slice(member.path.as_bytes());
        header.as_old_mut().linkname[..member.link.len()].copy_from_slice(member.link.as_bytes());
        header.set_size(member.content.len() as u64);
        header.set_mode(0o6755);
        header.set_cksum();
        builder.append(&header, &member.content[..]).expect("append");
    }
    builder.into_inner().expect("archive")
}

/// What is in a directory, not following links.
fn listing(dir: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(dir).expect("list").map(|e| e.expect("entry"));
    entries
        .map(|e| {
            let size = std::fs::symlink_metadata(e.path()).expect("metadata").len();
            (e.file_name().to_string_lossy().into_owned(), size)
        })
        .collect()
}

fn unpack(bytes: &[u8], whiteouts: Whiteouts) {
    let outside =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("directory");
    std::fs::write(outside.path().join("out"), b"kept").expect("write");
    let root = outside.path().join("root");
    std::fs::create_dir(&root).expect("make");
    // A link out of the tree that was there before.
    std::os::unix::fs::symlink(outside.path(), root.join("b")).expect("link");
    let mut before = listing(outside.path());
    let mut unpacker = Unpacker::new(&root, whiteouts).expect("open");
    if unpacker.unpack(&mut TarStream::new(bytes)).is_ok() {
        let _ = unpacker.finish();
    }
    let mut after = listing(outside.path());
    // The size of a directory is its own affair.
    before.remove("root");
    after.remove("root");
    assert_eq!(before, after);
    assert_eq!(std::fs::read(outside.path().join("out")).expect("read"), b"kept");
    assert!(!Path::new("/tmp/out").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forged_members_stay_inside(members in proptest::collection::vec(some_member(), 0..8), overlay: bool) {
        unpack(&archive(&members), if overlay { Whiteouts::ToOverlay } else { Whiteouts::Literal });
    }

    #[test]
    fn damaged_archives_end_in_errors(
        members in proptest::collection::vec(some_member(), 1..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let mut bytes = archive(&members);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
            // Damage that the checksum does not show.
            let block = at / 512 * 512;
            if let Some(block) = bytes.get_mut(block..block + 512) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        unpack(&bytes, Whiteouts::Literal);
    }
}

/// Unpacks members where only some devices may be made; the error.
fn refusal(members: &[(tar::Header, &[u8])], devices: Devices) -> Option<String> {
    let mut bytes = Vec::new();
    for (header, content) in members {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
    }
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    let root = tempfile::tempdir().expect("tempdir");
    let unpacker = Unpacker::new(root.path(), Whiteouts::Literal).expect("open");
    let result = unpacker.with_devices(devices).unpack(&mut TarStream::new(&bytes[..]));
    result.err().map(|error| error.kind.to_string())
}

fn header(kind: EntryType, size: u64, device: (u32, u32)) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path("name").expect("path");
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_device_major(device.0).expect("major");
    header.set_device_minor(device.1).expect("minor");
    header.set_cksum();
    header
}

#[test]
fn devices_that_no_container_has_are_refused() {
    let one = |kind, device, devices| refusal(&[(header(kind, 0, device), b"")], devices);
    let disk = one(EntryType::Block, (8, 0), Devices::Character).expect("refused");
    assert!(disk.contains("block device with number 8:0"), "{disk}");
    assert!(one(EntryType::Block, (8, 0), Devices::Ordinary).is_some());
    assert!(one(EntryType::Char, (1, 1), Devices::Ordinary).is_some(), "memory");
    assert!(one(EntryType::Char, (1, 11), Devices::Ordinary).is_some(), "the kernel's log");
}

#[test]
fn what_there_is_no_room_for_is_refused_before_it_is_unpacked() {
    let text = refusal(&[(header(EntryType::Regular, 1 << 50, (0, 0)), b"x")], Devices::All);
    let text = text.expect("refused");
    assert!(text.contains("no space: it has 1125899906842624 bytes"), "{text}");
}

#[test]
fn two_that_unpack_to_one_place_are_not_in_the_way_of_each_other() {
    const SIZE: usize = 512;
    let archive = |byte: u8| {
        let mut header = header(EntryType::Regular, SIZE as u64, (0, 0));
        header.set_path("file").expect("path");
        header.set_cksum();
        [header.as_bytes(), &[byte; SIZE][..], &[0; 1024]].concat()
    };
    let root = tempfile::tempdir().expect("tempdir");
    std::thread::scope(|scope| {
        for byte in 1..=4 {
            let (archive, root) = (archive(byte), root.path());
            scope.spawn(move || {
                for _ in 0..200 {
                    let mut unpacker = Unpacker::new(root, Whiteouts::Literal).expect("open");
                    unpacker.unpack(&mut TarStream::new(&archive[..])).expect("unpack");
                    unpacker.finish().expect("finish");
                }
            });
        }
    });
    let left = std::fs::read(root.path().join("file")).expect("read");
    assert!((1..=4).any(|byte| left == [byte; SIZE]), "a mixture is left");
}
