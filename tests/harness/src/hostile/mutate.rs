//! Mutations of an archive: seeded, so that a failure comes again.

use anyhow::Result;

use super::tar::{MANIFEST, Member, remake, seal, write};
use crate::random::Random;

/// An archive, and what was done to it.
pub struct Case {
    /// What.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// It may be restored: the change is in filling, or a change of content whose digest was made
    /// again. Otherwise it must be refused.
    pub may_restore: bool,
    /// If it is restored it must be what it was.
    pub identical: bool,
}

impl Case {
    fn refused(name: String, bytes: Vec<u8>) -> Self {
        Self { name, bytes, may_restore: false, identical: false }
    }
}

/// `rounds` times every kind of mutation of the archive `good`, whose members are `members`.
pub fn cases(
    good: &[u8],
    members: &[Member],
    rounds: usize,
    random: &mut Random,
) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for round in 0..rounds {
        for index in 0..members.len() {
            if members[index].content.is_empty() {
                continue;
            }
            cases.push(flipped(members, index, false, random)?);
            if members[index].name != MANIFEST.as_bytes() {
                cases.push(flipped(members, index, true, random)?);
                cases.push(cut(members, index, random)?);
            }
        }
        // In every fourth round, what needs no repetition at each member.
        for _ in 0..members.len() / 4 {
            cases.push(truncated(good, random));
            cases.push(scattered(good, random));
            cases.push(lengthened(members, random)?);
            cases.push(swapped(members, random)?);
            cases.push(missing(members, random)?);
            cases.push(twice(members, random));
        }
        if round == 0 {
            cases.extend(evil_members(members));
            cases.extend(huge(members));
            cases.extend(bombs());
            cases.extend(foreign(good));
        }
    }
    Ok(cases)
}

fn pick(length: usize, random: &mut Random) -> usize {
    random.below(length.max(1) as u64) as usize
}

/// One bit of a member's content.
fn flipped(members: &[Member], index: usize, again: bool, random: &mut Random) -> Result<Case> {
    let mut members = members.to_vec();
    let content = &mut members[index].content;
    let (at, bit) = (pick(content.len(), random), random.below(8));
    content[at] ^= 1 << bit;
    let name = format!("{}: bit {bit} of byte {at}", members[index].text());
    if again {
        remake(&mut members)?;
        let bytes = write(&members);
        return Ok(Case {
            name: name + ", digests made again",
            bytes,
            may_restore: true,
            identical: false,
        });
    }
    // The manifest has room: spaces, and facts that nothing depends on.
    let manifest = members[index].name == MANIFEST.as_bytes();
    Ok(Case { name, bytes: write(&members), may_restore: manifest, identical: manifest })
}

/// The end of a member is missing, and its digest says so.
fn cut(members: &[Member], index: usize, random: &mut Random) -> Result<Case> {
    let mut members = members.to_vec();
    let length = pick(members[index].content.len(), random);
    members[index].content.truncate(length);
    remake(&mut members)?;
    let name = format!("{}: cut to {length} bytes, digests made again", members[index].text());
    Ok(Case { name, bytes: write(&members), may_restore: true, identical: false })
}

/// The end of the file is missing.
fn truncated(good: &[u8], random: &mut Random) -> Case {
    let length = pick(good.len() - 1024, random);
    Case::refused(format!("the file cut to {length} bytes"), good[..length].to_vec())
}

/// One bit anywhere: headers and filling too.
fn scattered(good: &[u8], random: &mut Random) -> Case {
    let (at, bit) = (pick(good.len(), random), random.below(8));
    let mut bytes = good.to_vec();
    bytes[at] ^= 1 << bit;
    Case {
        name: format!("the file: bit {bit} of byte {at}"),
        bytes,
        may_restore: true,
        identical: true,
    }
}

/// Four bytes of an image become a huge number: lengths of records, counts and addresses.
fn lengthened(members: &[Member], random: &mut Random) -> Result<Case> {
    let mut members = members.to_vec();
    let images: Vec<usize> = (0..members.len())
        .filter(|i| members[*i].text().ends_with(".img") && members[*i].content.len() > 12)
        .collect();
    let index = images[pick(images.len(), random)];
    let content = &mut members[index].content;
    // The first length follows the two magic words.
    let at = if random.below(2) == 0 { 8 } else { pick(content.len() - 4, random) };
    let value: u32 = [u32::MAX, 0x7fff_ffff, 0x8000_0000, 0x00ff_ffff][pick(4, random)];
    content[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let name = format!("{}: {value:#x} at byte {at}, digests made again", members[index].text());
    remake(&mut members)?;
    Ok(Case { name, bytes: write(&members), may_restore: true, identical: false })
}

/// Two members change their contents.
fn swapped(members: &[Member], random: &mut Random) -> Result<Case> {
    let mut members = members.to_vec();
    let (a, b) = (pick(members.len() - 1, random), pick(members.len() - 1, random));
    let same = members[a].content == members[b].content;
    let content = std::mem::take(&mut members[a].content);
    members[a].content = std::mem::replace(&mut members[b].content, content);
    let mut name = format!("{} and {} swapped", members[a].text(), members[b].text());
    let again = random.below(2) == 0;
    if again {
        remake(&mut members)?;
        name += ", digests made again";
    }
    Ok(Case { name, bytes: write(&members), may_restore: again || same, identical: same })
}

fn missing(members: &[Member], random: &mut Random) -> Result<Case> {
    let mut members = members.to_vec();
    let gone = members.remove(pick(members.len() - 1, random));
    let again = random.below(2) == 0;
    let mut name = format!("{} is missing", gone.text());
    if again {
        remake(&mut members)?;
        name += ", digests made again";
    }
    // A directory is made for what is in it.
    let directory = gone.kind == b'5';
    Ok(Case { name, bytes: write(&members), may_restore: again || directory, identical: directory })
}

fn twice(members: &[Member], random: &mut Random) -> Case {
    let mut members = members.to_vec();
    let files: Vec<usize> = (0..members.len()).filter(|i| members[*i].kind != b'5').collect();
    let member = members[files[pick(files.len(), random)]].clone();
    let name = format!("{} twice", member.text());
    members.insert(pick(members.len(), random), member);
    Case::refused(name, write(&members))
}

/// With `member` in front of all others.
fn with(members: &[Member], member: Member) -> Vec<u8> {
    let mut all = vec![member];
    all.extend_from_slice(members);
    write(&all)
}

/// Names and types that lead elsewhere.
fn evil_members(members: &[Member]) -> Vec<Case> {
    let escape = "/var/tmp/arctern-hostile-escape";
    let mut list = Vec::new();
    for name in [
        "../escape",
        "../../../../../../var/tmp/arctern-hostile-escape",
        "checkpoint/../../escape",
        "a/..",
        "..",
        escape,
        "//var/tmp/arctern-hostile-escape",
        "checkpoint/parent/../../escape",
        "",
    ] {
        list.push(Member::file(name, b"evil"));
    }
    for (kind, link) in [
        (b'1', "/etc/passwd"),
        (b'1', "config.dump"),
        (b'2', "/etc"),
        (b'2', "../../.."),
        (b'3', ""),
        (b'4', ""),
        (b'6', ""),
        (b'S', ""),
        (b'V', ""),
        (b'M', ""),
        (b'Z', ""),
    ] {
        list.push(Member::of_kind(kind, "checkpoint/inventory.img", link, b""));
        list.push(Member::of_kind(kind, "evil", link, b""));
    }
    // The one link that is allowed, with another target and as a way.
    list.push(Member::of_kind(b'2', "checkpoint/parent", "/etc", b""));
    list.push(Member::of_kind(b'2', "checkpoint", "/var/tmp", b""));
    list.push(Member::file(&"x".repeat(99), b"").named(&[0xff; 40]));
    list.push(Member::file("", b"").named(b"a\0b"));
    let mut cases: Vec<Case> = list
        .into_iter()
        .map(|member| {
            let kind = char::from(member.kind);
            let name = format!("a member {:?} of type {kind}", member.text());
            // A name that ends at its zero byte is one of one letter, which is in no manifest.
            Case::refused(name, with(members, member))
        })
        .collect();
    // Through the extension headers of pax and GNU.
    for (kind, body) in [
        (b'x', &b"18 path=../escape\n"[..]),
        (b'x', b"26 path=/var/tmp/an-escape\n"),
        (b'x', b"30 GNU.sparse.realsize=1000000\n"),
        (b'x', b"9999999 path=x\n"),
        (b'x', b"0 path=x\n"),
        (b'x', b"x"),
        (b'L', b"../escape\0"),
        (b'L', b"/var/tmp/arctern-hostile-escape\0"),
    ] {
        let mut all =
            vec![Member::of_kind(kind, "header", "", body), Member::file("plain", b"evil")];
        all.extend_from_slice(members);
        let text = String::from_utf8_lossy(body).into_owned();
        cases.push(Case::refused(format!("a header {} {text:?}", char::from(kind)), write(&all)));
    }
    cases
}

impl Member {
    fn named(mut self, name: &[u8]) -> Self {
        self.name = name.to_vec();
        self
    }
}

/// Sizes that nobody has room for.
fn huge(members: &[Member]) -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [1u64 << 42, 1 << 62, i64::MAX as u64, u64::MAX] {
        for (kind, name) in [(b'0', "huge"), (b'x', "header"), (b'g', "header"), (b'L', "name")] {
            let mut member = Member::of_kind(kind, name, "", b"content");
            member.size = Some(size);
            let what = format!("a member of type {} with {size} bytes", char::from(kind));
            cases.push(Case::refused(what, with(members, member)));
        }
        let digits = format!("size={size}\n");
        let mut length = digits.len() + 3;
        length += length.to_string().len() - 2;
        let body = format!("{length} {digits}");
        let mut all =
            vec![Member::of_kind(b'x', "h", "", body.as_bytes()), Member::file("config.dump", b"")];
        all.extend_from_slice(members);
        cases.push(Case::refused(format!("a pax header with {size} bytes"), write(&all)));
    }
    // A negative size, as GNU tar's binary form has it.
    let mut bytes = with(members, Member::file("negative", b""));
    bytes[124..136].fill(0xff);
    seal(&mut bytes[..512]);
    cases.push(Case::refused("a negative size".to_owned(), bytes));
    cases
}

/// Little files that become large ones: 4 TiB are announced, and gigabytes of them are there.
fn bombs() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut member = Member::file("checkpoint/pages-1.img", b"");
    member.size = Some(4 << 40);
    let header = &write(&[member])[..512];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
    let zeros = vec![0; 1 << 20];
    for sink in [&mut gzip as &mut dyn std::io::Write, &mut zstd] {
        sink.write_all(header).expect("compress");
        for _ in 0..512 {
            sink.write_all(&zeros).expect("compress");
        }
    }
    let (gzip, zstd) = (gzip.finish().expect("gzip"), zstd.finish().expect("zstd"));
    // Compressed twice: what is unpacked is no archive.
    let mut nested = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
    std::io::Write::write_all(&mut nested, &gzip).expect("compress");
    let nested = nested.finish().expect("zstd");
    cases.push(Case::refused("a gzip bomb".to_owned(), gzip));
    cases.push(Case::refused("a zstd bomb".to_owned(), zstd));
    cases.push(Case::refused("a gzip bomb in zstd".to_owned(), nested));
    cases
}

/// Files that are no checkpoint at all.
fn foreign(good: &[u8]) -> Vec<Case> {
    let zip = b"PK\x03\x04\x14\0\0\0\x08\0".repeat(100);
    let other = write(&[Member::file("README", b"something else"), Member::file("a/b", b"c")]);
    let mut tail = good.to_vec();
    tail.extend_from_slice(b"and more");
    [
        ("an empty file", Vec::new()),
        ("a zip", zip),
        ("another tar", other),
        ("an empty tar", vec![0; 10240]),
        ("text", b"this is no archive\n".repeat(100)),
        ("zeros", vec![0; 1 << 20]),
        ("bzip2", b"BZh91AY&SY".to_vec()),
        ("xz", b"\xfd7zXZ\0\0".to_vec()),
        ("a beginning of gzip", b"\x1f\x8b\x08".to_vec()),
        ("a beginning of zstd", b"\x28\xb5\x2f\xfd".to_vec()),
        ("something after the end", tail),
    ]
    .map(|(name, bytes)| Case::refused(name.to_owned(), bytes))
    .into()
}
