//! Trees deeper than a process may have open files and longer than a path may be. One test in a
//! program of its own, because it lowers a limit of the process.

use std::os::fd::OwnedFd;

use arctern_storage::beneath;
use arctern_storage::tree;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const DEPTH: usize = 1500;
const NAME: &str = "a directory that is one of many";

fn open(dir: impl std::os::fd::AsFd, name: &str) -> OwnedFd {
    rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open")
}

#[test]
fn a_very_deep_tree_is_archived_extracted_and_removed() {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..limits }).expect("limit");
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(&from).expect("make");
    std::fs::create_dir_all(&to).expect("make");
    let mut place = open(CWD, from.to_str().expect("text"));
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&place, NAME, Mode::from_raw_mode(0o750)).expect("make");
        place = open(&place, NAME);
    }
    let leaf = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(&place, "leaf", leaf, Mode::from_raw_mode(0o640)).expect("make");

    let copied = tree::copy(&from, &to).expect("copy");
    assert_eq!(copied.entries, DEPTH as u64 + 2);
    let mut place = open(CWD, to.to_str().expect("text"));
    for _ in 0..DEPTH {
        place = open(&place, NAME);
    }
    let leaf = rustix::fs::statat(&place, "leaf", rustix::fs::AtFlags::empty()).expect("leaf");
    assert_eq!(leaf.st_mode & 0o7777, 0o640);

    let top = open(CWD, dir.path().to_str().expect("text"));
    for name in ["from", "to"] {
        beneath::remove_at(std::os::fd::AsFd::as_fd(&top), name.as_ref()).expect("remove");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
}
