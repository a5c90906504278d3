//! The archive extractor: raw bytes, and tar members of any name, type and size with a right sum.
#![no_main]

use std::fs;
use std::path::Path;

use arctern_image::archive::{Limits, extract, peek};
use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};

#[derive(Debug, arbitrary::Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Members(Vec<Member>),
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Member {
    name: Name,
    link: Name,
    kind: u8,
    size: Option<u64>,
    content: Vec<u8>,
}

#[derive(Debug, arbitrary::Arbitrary)]
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
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            check(&path);
        } else if kind.is_symlink() {
            assert!(path.ends_with("checkpoint/parent"));
            assert_eq!(fs::read_link(&path).unwrap(), Path::new("../pre-checkpoint"));
        } else {
            assert!(kind.is_file());
        }
    }
}

fuzz_target!(|input: Input| {
    let bytes = match &input {
        Input::Raw(bytes) => bytes.clone(),
        Input::Members(members) => tar_of(members),
    };
    let outer = tempfile::tempdir().unwrap();
    let dest = outer.path().join("dest");
    fs::create_dir(&dest).unwrap();
    let limits = Limits { total_bytes: 1 << 20, members: 100 };
    let _ = extract(bytes.as_slice(), &dest, limits, &mut |_| {});
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1, "something was written outside");
    check(&dest);
    let _ = peek(bytes.as_slice(), &["config.dump", "spec.dump"], 1 << 16);
});
