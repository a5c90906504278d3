//! Archives as a whole: what is written comes back, and hostile or damaged archives are refused.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use arctern_image::archive::{
    ArchiveError, ArchiveWriter, Compression, Extracted, Limits, Provenance, extract, list, peek,
};
use arctern_image::manifest::{HostFacts, Manifest};
use arctern_image::seal::Unseal;
use tar::{EntryType, Header};
use tempfile::TempDir;

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn manifest() -> Manifest {
    Manifest::new(1_700_000_000, HostFacts::default(), None)
}

/// Writes a small archive with every way of adding a member.
fn write(path: &Path, compression: Compression) {
    let images = tempfile::tempdir().unwrap();
    std::fs::write(images.path().join("inventory.img"), b"inventory").unwrap();
    std::fs::write(images.path().join("pages-1.img"), vec![7; 3 * 4096]).unwrap();
    std::fs::write(images.path().join("empty.img"), b"").unwrap();
    symlink("../pre-checkpoint", images.path().join("parent")).unwrap();
    let mut log = tempfile::tempfile().unwrap();
    log.write_all(b"one\ntwo\nthree\n").unwrap();
    let long = format!("volumes/{}.tar", "v".repeat(150));

    let mut writer = ArchiveWriter::create(path, compression).unwrap();
    writer.add_bytes("config.dump", b"{}").unwrap();
    writer.add_bytes("spec.dump", b"{\"ociVersion\":\"1\"}").unwrap();
    writer.add_dir_tree("checkpoint", images.path()).unwrap();
    writer.add_file("ctr.log", &log, 7).unwrap();
    writer.add_stream(&long, 600, &mut std::io::repeat(1)).unwrap();
    let summary = writer.finish(manifest()).unwrap();
    assert_eq!(summary.bytes, path.metadata().unwrap().len());
    assert_eq!(summary.members, 9);
}

struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn archive(&self) -> PathBuf {
        self.directory.path().join("web.tar")
    }

    /// Unpacks bytes into a fresh directory.
    fn unpack(&self, bytes: &[u8], limits: Limits) -> (PathBuf, Result<Extracted, ArchiveError>) {
        let dest = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        let result = extract(bytes, &dest, limits, &Unseal::default(), &mut |_| {});
        (dest, result)
    }
}

fn refusal(bytes: &[u8]) -> ArchiveError {
    Fixture::new().unpack(bytes, Limits::default()).1.unwrap_err()
}

/// A tar stream made by hand; `end` adds the end mark.
#[derive(Default)]
struct RawTar(Vec<u8>);

impl RawTar {
    fn entry(mut self, name: &[u8], kind: EntryType, link: &[u8], content: &[u8]) -> Self {
        self.header(name, kind, link, content.len() as u64);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn header(&mut self, name: &[u8], kind: EntryType, link: &[u8], size: u64) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name.as_bytes(), EntryType::Regular, b"", content)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[test]
fn what_is_written_comes_back() {
    for compression in COMPRESSIONS {
        let fixture = Fixture::new();
        write(&fixture.archive(), compression);
        let mode = fixture.archive().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let bytes = std::fs::read(fixture.archive()).unwrap();
        let (dest, result) = fixture.unpack(&bytes, Limits::default());
        let extracted = result.unwrap();
        let Provenance::Arctern(manifest) = extracted.provenance else {
            panic!("the manifest was not found");
        };
        assert_eq!(manifest.members, extracted.members);
        let names: Vec<&str> = manifest.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(
            names[..6],
            [
                "config.dump",
                "spec.dump",
                "checkpoint/empty.img",
                "checkpoint/inventory.img",
                "checkpoint/pages-1.img",
                "checkpoint/parent"
            ]
        );
        let read = |name: &str| std::fs::read(dest.join(name)).unwrap();
        assert_eq!(read("checkpoint/pages-1.img"), vec![7; 3 * 4096]);
        assert_eq!(read("ctr.log"), b"one\ntwo");
        assert_eq!(read(names[7]), vec![1; 600]);
        let link = std::fs::read_link(dest.join("checkpoint/parent")).unwrap();
        assert_eq!(link, Path::new("../pre-checkpoint"));
        let mode = dest.join("config.dump").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_stream_gets_what_a_file_gets() {
    for compression in COMPRESSIONS {
        let fixture = Fixture::new();
        let (mut reader, sink) = std::io::pipe().unwrap();
        let made = std::thread::spawn(move || {
            let mut writer = ArchiveWriter::stream(Box::new(sink), "a pipe", compression).unwrap();
            writer.add_bytes("config.dump", b"{}").unwrap();
            writer.add_stream("pages", 1 << 20, &mut std::io::repeat(1)).unwrap();
            writer.finish(manifest()).unwrap()
        });
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(made.join().unwrap().bytes, bytes.len() as u64);
        let (_, result) = fixture.unpack(&bytes, Limits::default());
        let sizes = result.unwrap().members.iter().map(|member| member.size).collect::<Vec<_>>();
        assert_eq!(sizes, [2, 1 << 20]);
    }
    // A reader that is gone fails the archive, which the caller learns of before its end.
    let (reader, sink) = std::io::pipe().unwrap();
    drop(reader);
    let mut writer = ArchiveWriter::stream(Box::new(sink), "a pipe", Compression::None).unwrap();
    let written = writer.add_stream("pages", 8 << 20, &mut std::io::repeat(1));
    assert!(written.unwrap_err().to_string().contains("a pipe"));
}

#[test]
fn ordinary_tar_reads_what_is_written() {
    let fixture = Fixture::new();
    write(&fixture.archive(), Compression::None);
    let file = std::fs::File::open(fixture.archive()).unwrap();
    let mut archive = tar::Archive::new(file);
    let mut last = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        last = entry.path().unwrap().display().to_string();
        std::io::copy(&mut entry.by_ref(), &mut std::io::sink()).unwrap();
    }
    assert_eq!(last, "arctern.json", "the manifest comes last");
}

#[test]
fn single_members_are_read_without_unpacking() {
    let fixture = Fixture::new();
    write(&fixture.archive(), Compression::Zstd);
    let open = || std::fs::File::open(fixture.archive()).unwrap();
    let found = peek(open(), &["config.dump", "spec.dump", "none"], 100).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found["config.dump"], b"{}");
    let error = peek(open(), &["ctr.log"], 6).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLarge { .. }), "{error:?}");
    assert_eq!(list(open(), Limits::default()).unwrap().len(), 11);
}

#[test]
fn an_archive_of_another_program_is_foreign() {
    let bytes = RawTar::default()
        .entry(b"./", EntryType::Directory, b"", b"")
        .file("./config.dump", b"{}")
        .entry(b"checkpoint/parent", EntryType::Symlink, b"../pre-checkpoint", b"")
        .end();
    let (dest, result) = Fixture::new().unpack(&bytes, Limits::default());
    assert_eq!(result.unwrap().provenance, Provenance::Foreign);
    drop(dest);
}

#[test]
fn pax_names_and_sizes_are_understood() {
    let long = format!("volumes/{}", "x".repeat(200));
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let length = (rest.len() + 3).to_string();
        assert_eq!(length.len(), if rest.len() > 97 { 3 } else { 2 });
        format!("{}{rest}", rest.len() + length.len())
    };
    let records = record("path", &long) + &record("size", "5");
    let mut tar = RawTar::default().entry(b"pax", EntryType::XHeader, b"", records.as_bytes());
    tar.header(b"short", EntryType::Regular, b"", 0);
    tar.0.extend_from_slice(b"hello");
    tar.0.resize(tar.0.len().next_multiple_of(512), 0);
    let fixture = Fixture::new();
    let (dest, result) = fixture.unpack(&tar.end(), Limits::default());
    result.unwrap();
    assert_eq!(std::fs::read(dest.join(long)).unwrap(), b"hello");
}

#[test]
fn members_that_could_do_harm_are_refused() {
    let refused = |tar: RawTar| {
        let error = refusal(&tar.end());
        assert!(matches!(error, ArchiveError::Refused { .. }), "{error:?}");
    };
    let special = |kind| RawTar::default().entry(b"x", kind, b"target", b"");
    for name in ["../evil", "/etc/evil", "a/../../evil", "checkpoint/../../evil"] {
        refused(RawTar::default().file(name, b"x"));
    }
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNUSparse,
        EntryType::new(b'V'),
    ] {
        refused(special(kind));
    }
    let link =
        |name: &[u8], target: &[u8]| RawTar::default().entry(name, EntryType::Symlink, target, b"");
    refused(link(b"checkpoint/parent", b"../../etc"));
    refused(link(b"checkpoint/parent2", b"../pre-checkpoint"));
    refused(link(b"parent", b"../pre-checkpoint"));
    refused(RawTar::default().entry(b"pax", EntryType::XHeader, b"", b"22 GNU.sparse.major=1\n"));
    refused(RawTar::default().entry(b"dir", EntryType::Directory, b"", b"content"));
}

#[test]
fn a_link_is_never_written_through() {
    // The only link there can be leads to a directory of the archive itself; a member below the
    // link must not go through it all the same.
    let bytes = RawTar::default()
        .entry(b"pre-checkpoint/", EntryType::Directory, b"", b"")
        .entry(b"checkpoint/parent", EntryType::Symlink, b"../pre-checkpoint", b"")
        .file("checkpoint/parent/evil", b"x")
        .end();
    let fixture = Fixture::new();
    let (dest, result) = fixture.unpack(&bytes, Limits::default());
    assert!(result.is_err());
    assert!(!dest.join("pre-checkpoint/evil").exists());
}

#[test]
fn names_come_once() {
    for second in ["a", "./a", "a//"] {
        let bytes = RawTar::default().file("a", b"1").file(second, b"2").end();
        let error = refusal(&bytes);
        assert!(!matches!(error, ArchiveError::Damaged { .. }), "{second}: {error:?}");
    }
    let bytes = RawTar::default().file("a", b"1").file("a", b"2").end();
    assert!(matches!(refusal(&bytes), ArchiveError::Duplicate { .. }));
}

#[test]
fn limits_hold_before_anything_is_written() {
    let fixture = Fixture::new();
    let small = Limits { total_bytes: 1000, members: 3 };
    let bytes = RawTar::default().file("a", &[1; 600]).file("b", &[1; 600]).end();
    let (dest, result) = fixture.unpack(&bytes, small);
    assert!(matches!(result.unwrap_err(), ArchiveError::TooLarge { size: 1200, .. }));
    assert!(!dest.join("b").exists());
    let bytes =
        ["a", "b", "c", "d"].iter().fold(RawTar::default(), |tar, name| tar.file(name, b""));
    let (_, result) = fixture.unpack(&bytes.end(), small);
    assert!(matches!(result.unwrap_err(), ArchiveError::TooManyMembers { limit: 3 }));
    // More than any disk has, announced by a header of 512 bytes.
    let mut tar = RawTar::default();
    tar.header(b"huge", EntryType::Regular, b"", 8 << 40);
    let error = refusal(&tar.end());
    assert!(matches!(error, ArchiveError::NoSpace { .. }), "{error:?}");
    // A long name that would fill the memory.
    let mut tar = RawTar::default();
    tar.header(b"././@LongLink", EntryType::GNULongName, b"", 1 << 40);
    let error = refusal(&tar.end());
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_bomb_is_stopped_by_its_header_and_by_its_trailer() {
    // 64 MiB of zeros after the end mark compress to almost nothing.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&RawTar::default().file("a", b"1").end()).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut encoder).unwrap();
    let bytes = encoder.finish().unwrap();
    let error = refusal(&bytes);
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error:?}");
    // A member that expands past the limit is refused before it is decompressed.
    let mut tar = RawTar::default();
    tar.header(b"bomb", EntryType::Regular, b"", 64 << 20);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&tar.0).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut encoder).unwrap();
    let bytes = encoder.finish().unwrap();
    let limits = Limits { total_bytes: 1 << 20, members: 10 };
    let (_, result) = Fixture::new().unpack(&bytes, limits);
    assert!(matches!(result.unwrap_err(), ArchiveError::TooLarge { .. }));
}

#[test]
fn other_files_are_no_archives() {
    for bytes in [&b""[..], b"hello", &[0x7f; 4096]] {
        assert!(matches!(refusal(bytes), ArchiveError::NotAnArchive), "{}", bytes.len());
    }
    assert!(refusal(b"BZh91AY&SY").to_string().contains("bzip2"));
}

#[test]
fn every_truncation_is_noticed() {
    for compression in COMPRESSIONS {
        let fixture = Fixture::new();
        write(&fixture.archive(), compression);
        let bytes = std::fs::read(fixture.archive()).unwrap();
        let step = if compression == Compression::None { 101 } else { 7 };
        for length in (0..bytes.len()).step_by(step) {
            let (dest, result) = fixture.unpack(&bytes[..length], Limits::default());
            assert!(result.is_err(), "{compression:?} cut to {length} of {}", bytes.len());
            std::fs::remove_dir_all(dest).unwrap();
        }
    }
}

#[test]
fn a_flipped_bit_in_any_member_is_noticed() {
    let fixture = Fixture::new();
    write(&fixture.archive(), Compression::None);
    let bytes = std::fs::read(fixture.archive()).unwrap();
    // Where contents begin and end: everything else is headers, which have a sum, and filling.
    let mut contents = Vec::new();
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let start = entry.raw_file_position() as usize;
        contents.push((start - 512, 512, true));
        contents.push((start, entry.size() as usize, false));
    }
    for (start, length, header) in contents {
        for at in [0, length / 3, length.saturating_sub(1)] {
            if at >= length || (header && at == 511) {
                continue;
            }
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[start + at] ^= 1 << bit;
                let (dest, result) = fixture.unpack(&damaged, Limits::default());
                assert!(result.is_err(), "bit {bit} of byte {}", start + at);
                std::fs::remove_dir_all(dest).unwrap();
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_compressed_archive_never_changes_contents() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let fixture = Fixture::new();
        write(&fixture.archive(), compression);
        let bytes = std::fs::read(fixture.archive()).unwrap();
        let (_, intact) = fixture.unpack(&bytes, Limits::default());
        let intact = intact.unwrap().members;
        for at in (0..bytes.len()).step_by(5) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let (dest, result) = fixture.unpack(&damaged, Limits::default());
            // Some header fields of gzip (its time stamp) mean nothing to us.
            if let Ok(extracted) = result {
                assert!(matches!(extracted.provenance, Provenance::Arctern(_)));
                assert_eq!(extracted.members, intact, "{compression:?} byte {at}");
            }
            std::fs::remove_dir_all(dest).unwrap();
        }
    }
}

#[test]
fn the_manifest_and_the_members_must_agree() {
    let mut manifest = manifest();
    let member = |name: &str, content: &[u8]| arctern_image::manifest::Member {
        name: name.into(),
        size: content.len() as u64,
        sha256: arctern_image::digest::Digest::of(content),
        link: None,
    };
    manifest.members = vec![member("a", b"1"), member("b", b"2")];
    let json = manifest.to_json();
    let with = |tar: RawTar| tar.file("arctern.json", &json).end();
    let unpack = |bytes: Vec<u8>| Fixture::new().unpack(&bytes, Limits::default()).1;

    let error = unpack(with(RawTar::default().file("a", b"1"))).unwrap_err();
    assert!(matches!(error, ArchiveError::MissingMember { member } if member == "b"));
    let both = || RawTar::default().file("a", b"1").file("b", b"2");
    let error = unpack(with(both().file("c", b"3"))).unwrap_err();
    assert!(matches!(error, ArchiveError::Unlisted { member } if member == "c"));
    let error = unpack(with(RawTar::default().file("a", b"1").file("b", b"x"))).unwrap_err();
    assert!(matches!(error, ArchiveError::Mismatch { member } if member == "b"));
    let late = both().file("arctern.json", &json).file("c", b"3").end();
    assert!(matches!(unpack(late).unwrap_err(), ArchiveError::Unlisted { .. }));
    unpack(with(both())).unwrap();
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let fixture = Fixture::new();
    let mut writer = ArchiveWriter::create(&fixture.archive(), Compression::None).unwrap();
    for name in ["", "/a", "../a", "arctern.json"] {
        assert!(writer.add_bytes(name, b"").is_err(), "{name:?}");
    }
    writer.add_bytes("a", b"").unwrap();
    assert!(matches!(writer.add_bytes("a", b""), Err(ArchiveError::Duplicate { .. })));
    let short = writer.add_stream("b", 10, &mut &b"short"[..]);
    assert!(matches!(short, Err(ArchiveError::SourceChanged { .. })));
    drop(writer);
    assert!(!fixture.archive().exists());

    let tree = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", tree.path().join("parent")).unwrap();
    let mut writer = ArchiveWriter::create(&fixture.archive(), Compression::None).unwrap();
    let error = writer.add_dir_tree("checkpoint", tree.path()).unwrap_err();
    assert!(matches!(error, ArchiveError::Refused { .. }), "{error:?}");
    std::fs::remove_file(tree.path().join("parent")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("socket")).unwrap();
    let mut writer = ArchiveWriter::create(&fixture.archive(), Compression::None).unwrap();
    let error = writer.add_dir_tree("checkpoint", tree.path()).unwrap_err();
    assert!(matches!(error, ArchiveError::Refused { .. }), "{error:?}");
}

#[test]
fn progress_counts_every_byte() {
    let fixture = Fixture::new();
    let bytes = RawTar::default().file("a", &[1; 700_000]).file("b", &[2; 300_000]).end();
    let dest = tempfile::tempdir_in(fixture.directory.path()).unwrap();
    let mut last = 0;
    let mut rising = true;
    extract(bytes.as_slice(), dest.path(), Limits::default(), &Unseal::default(), &mut |done| {
        rising &= done > last;
        last = done;
    })
    .unwrap();
    assert!(rising);
    assert_eq!(last, 1_000_000);
}

/// An archive of every released version stays readable. The sample was written by [`write`].
#[test]
fn archives_of_every_version_are_read() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples");
    for name in ["archive-1.0.tar", "archive-1.0.tar.gz", "archive-1.0.tar.zst"] {
        let bytes = std::fs::read(samples.join(name)).unwrap();
        let extracted = Fixture::new().unpack(&bytes, Limits::default()).1.unwrap();
        let Provenance::Arctern(manifest) = extracted.provenance else { panic!("{name}") };
        assert_eq!(manifest.version.to_string(), "1.0");
        assert_eq!(manifest.members.len(), 8, "{name}");
    }
}
