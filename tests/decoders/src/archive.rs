//! The checkpoint archive: raw bytes, and tar members of any name, type and size with a right sum.

use std::fs;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use arctern_image::archive::{Limits, extract, list, peek};
use arctern_image::seal::Unseal;
use tar::{EntryType, Header};

use crate::scratch;

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Members(Vec<Member>),
}

#[derive(Debug, Arbitrary)]
struct Member {
    name: Name,
    link: Name,
    kind: u8,
    size: Option<u64>,
    content: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Name {
    Bytes(Vec<u8>),
    Config,
    Manifest,
    Parent,
    ParentTarget,
    BelowParent,
    Up,
}

impl Name {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Config => b"config.dump",
            Self::Manifest => b"arctern.json",
            Self::Parent => b"checkpoint/parent",
            Self::ParentTarget => b"../pre-checkpoint",
            Self::BelowParent => b"checkpoint/parent/x",
            Self::Up => b"../x",
        }
    }
}

fn tar_of(members: &[Member]) -> Vec<u8> {
    let mut tar = Vec::new();
    for member in members.iter().take(16) {
        let mut header = Header::new_gnu();
        let name = &member.name.bytes()[..member.name.bytes().len().min(100)];
        let link = &member.link.bytes()[..member.link.bytes().len().min(100)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(EntryType::new(member.kind));
        header.set_size(member.size.unwrap_or(member.content.len() as u64));
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(&member.content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Nothing but files, directories and the one link.
fn check(directory: &Path) {
    for entry in fs::read_dir(directory).expect("list").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("type");
        if kind.is_dir() {
            check(&path);
        } else if kind.is_symlink() {
            assert!(path.ends_with("checkpoint/parent"));
            assert_eq!(fs::read_link(&path).expect("link"), Path::new("../pre-checkpoint"));
        } else {
            assert!(kind.is_file());
        }
    }
}

/// Unpacks, lists, describes and looks into an archive.
pub fn archive(bytes: &[u8]) {
    let bytes = match bytes.split_first() {
        // As it is, so that archives can be seeds.
        Some((0, rest)) => rest.to_vec(),
        _ => match Input::arbitrary(&mut Unstructured::new(bytes)) {
            Ok(Input::Raw(bytes)) => bytes,
            Ok(Input::Members(members)) => tar_of(&members),
            Err(_) => return,
        },
    };
    let outer = scratch();
    let dest = outer.path().join("dest");
    fs::create_dir(&dest).expect("make");
    let limits = Limits { total_bytes: 4 << 20, members: 100 };
    let _ = extract(bytes.as_slice(), &dest, limits, &Unseal::default(), &mut |_| {});
    assert_eq!(fs::read_dir(outer.path()).expect("list").count(), 1, "written outside");
    check(&dest);
    let _ = peek(bytes.as_slice(), &["config.dump", "spec.dump"], 1 << 16);
    let _ = list(bytes.as_slice(), limits);
    let _ = arctern_image::summary::summarise_stream(bytes.as_slice());
}
