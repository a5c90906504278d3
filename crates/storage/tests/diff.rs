//! Changes of a root file system survive a round trip: whatever is done to a mounted root, captured
//! and applied to a fresh one gives the same tree, down to nanoseconds, attributes and link counts.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use arctern_storage::diff::{self, Source};
use arctern_storage::unpack::Devices;
use arctern_storage::{ImportOptions, Store};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Everything that is to be equal about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    rdev: u64,
    links: u64,
    /// The first path of the same inode, for files with several links.
    same_as: Option<PathBuf>,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("list attributes");
    let get = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len =
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("get");
        value.truncate(len);
        (OsStr::from_bytes(name).to_owned(), value)
    };
    names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()).map(get).collect()
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let full = root.join(&path);
        let st = std::fs::symlink_metadata(&full).expect("metadata");
        let kind = st.file_type();
        if kind.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(&full)
                .expect("list")
                .map(|e| e.expect("entry").file_name())
                .collect();
            names.sort();
            stack.extend(names.iter().rev().map(|n| path.join(n)));
        }
        let content = match () {
            () if kind.is_file() => std::fs::read(&full).expect("read"),
            () if kind.is_symlink() => {
                std::fs::read_link(&full).expect("link").into_os_string().into_vec()
            }
            () => Vec::new(),
        };
        let same_as = (!kind.is_dir() && st.nlink() > 1)
            .then(|| first.entry((st.dev(), st.ino())).or_insert_with(|| path.clone()).clone());
        let entry = Entry {
            mode: st.mode(),
            owner: (st.uid(), st.gid()),
            mtime: (st.mtime(), st.mtime_nsec()),
            rdev: st.rdev(),
            links: if kind.is_dir() { 0 } else { st.nlink() },
            same_as,
            content,
            xattrs: xattrs(&full),
        };
        entries.insert(path, entry);
    }
    entries
}

fn differences(a: &BTreeMap<PathBuf, Entry>, b: &BTreeMap<PathBuf, Entry>) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    paths
        .into_iter()
        .filter(|p| a.get(*p) != b.get(*p))
        .map(|p| format!("{p:?}: {:?} instead of {:?}", b.get(p), a.get(p)))
        .collect()
}

/// One thing that a program does to its files. Paths index [`NAMES`]; what fails is ignored.
#[derive(Clone, Debug)]
enum Op {
    Write(Vec<usize>, Vec<u8>),
    Sparse(Vec<usize>, u32),
    MakeDir(Vec<usize>),
    Remove(Vec<usize>),
    Rename(Vec<usize>, Vec<usize>),
    Link(Vec<usize>, Vec<usize>),
    Symlink(Vec<usize>, String),
    Node(Vec<usize>, bool, u8),
    Chmod(Vec<usize>, u16),
    Chown(Vec<usize>, u32, u32),
    Xattr(Vec<usize>, usize, Vec<u8>),
    Touch(Vec<usize>, i32, u32),
}

const LONG: &str = "a name that is longer than the hundred bytes of the header field of an archive, \
     so that it has to travel in a record of its own, which it does";
const NAMES: [&[u8]; 7] =
    [b"a", b"b", b"dir", b"new\nline", b"not \xff utf-8", LONG.as_bytes(), b".wh.x"];
const XATTRS: [&str; 3] = ["user.one", "user.two", "trusted.three"];

fn path_of(indexes: &[usize]) -> PathBuf {
    indexes.iter().map(|i| OsStr::from_bytes(NAMES[*i])).collect()
}

/// Opens a file without waiting for the other end where it is a fifo.
fn open_for_writing(path: &Path, truncate: bool) -> std::io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(truncate).write(true);
    options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

fn perform(root: &Path, op: &Op) {
    let at = |path: &[usize]| root.join(path_of(path));
    // Failures are part of the game: a path may not exist, or be of the wrong type.
    match op {
        Op::Write(p, content) => {
            let _ = open_for_writing(&at(p), true).and_then(|mut f| f.write_all(content));
        }
        Op::Sparse(p, len) => {
            use std::os::unix::fs::FileExt;
            let file = open_for_writing(&at(p), false);
            let _ = file.and_then(|f| f.write_all_at(b"end", u64::from(*len)));
        }
        Op::MakeDir(p) => drop(std::fs::create_dir(at(p))),
        Op::Remove(p) => {
            let _ = std::fs::remove_file(at(p));
            let _ = std::fs::remove_dir_all(at(p));
        }
        Op::Rename(from, to) => drop(std::fs::rename(at(from), at(to))),
        Op::Link(from, to) => drop(std::fs::hard_link(at(from), at(to))),
        Op::Symlink(p, target) => drop(symlink(target, at(p))),
        Op::Node(p, fifo, minor) => {
            let (kind, dev) = match fifo {
                true => (FileType::Fifo, 0),
                false => (FileType::CharacterDevice, rustix::fs::makedev(0x700, u32::from(*minor))),
            };
            let _ = rustix::fs::mknodat(CWD, at(p), kind, Mode::from_raw_mode(0o640), dev);
        }
        Op::Chmod(p, mode) => {
            let path = at(p);
            if std::fs::symlink_metadata(&path).is_ok_and(|m| !m.is_symlink()) {
                let mode = Mode::from_raw_mode(u32::from(*mode) & 0o7777);
                let _ = rustix::fs::chmodat(CWD, path, mode, AtFlags::empty());
            }
        }
        Op::Chown(p, uid, gid) => drop(std::os::unix::fs::lchown(at(p), Some(*uid), Some(*gid))),
        Op::Xattr(p, name, value) => {
            let _ = rustix::fs::lsetxattr(at(p), XATTRS[*name], value, XattrFlags::empty());
        }
        Op::Touch(p, seconds, nanos) => {
            let time = Timespec { tv_sec: i64::from(*seconds), tv_nsec: i64::from(*nanos) };
            let times = Timestamps { last_access: time, last_modification: time };
            let _ = rustix::fs::utimensat(CWD, at(p), &times, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
}

/// Something with the first `names` of [`NAMES`]: an archive of an image cannot hold whiteout names.
fn some_op(names: usize) -> impl Strategy<Value = Op> {
    let some_path = move || proptest::collection::vec(0..names, 1..4);
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (some_path(), bytes()).prop_map(|(p, c)| Op::Write(p, c)),
        1 => (some_path(), 0..200_000u32).prop_map(|(p, l)| Op::Sparse(p, l)),
        4 => some_path().prop_map(Op::MakeDir),
        4 => some_path().prop_map(Op::Remove),
        2 => (some_path(), some_path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (some_path(), some_path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (some_path(), ".{1,120}").prop_map(|(p, t)| Op::Symlink(p, t)),
        1 => (some_path(), any::<bool>(), 0..8u8).prop_map(|(p, f, m)| Op::Node(p, f, m)),
        1 => (some_path(), any::<u16>()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (some_path(), any::<u32>(), any::<u32>())
            .prop_map(|(p, u, g)| Op::Chown(p, u % 0xffff_fffe, g % 0xffff_fffe)),
        2 => (some_path(), 0..XATTRS.len(), bytes()).prop_map(|(p, n, v)| Op::Xattr(p, n, v)),
        1 => (some_path(), any::<i32>(), 0..1_000_000_000u32).prop_map(|(p, s, n)| Op::Touch(p, s, n)),
    ]
}

/// A directory in memory where there is one: unmounting an overlay syncs the disk below it, which
/// takes as long as the disk is busy.
fn in_memory() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// A store with one image made from a tree.
struct Lab {
    _dir: tempfile::TempDir,
    store: Store,
    next: std::cell::Cell<u32>,
}

impl Lab {
    fn new() -> Option<Lab> {
        Lab::with(in_memory)
    }

    fn with(dir: impl Fn() -> std::io::Result<tempfile::TempDir>) -> Option<Lab> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let dir = dir().expect("temporary directory");
        let store = Store::open(&dir.path().join("root"), &dir.path().join("run")).expect("open");
        Some(Lab { _dir: dir, store, next: 0.into() })
    }

    /// Makes an image of what `ops` build.
    fn image(&self, ops: &[Op]) -> String {
        let base = tempfile::tempdir().expect("temporary directory");
        std::fs::write(base.path().join("base"), b"base").expect("write");
        ops.iter().for_each(|op| perform(base.path(), op));
        let upper = base.path();
        let out = tempfile::tempdir().expect("temporary directory");
        let source = Source { upper, lowers: &[], excludes: &[] };
        diff::capture(&source, out.path()).expect("capture");
        let tar = std::fs::File::open(out.path().join(diff::DIFF_FILE)).expect("archive");
        self.store.import(tar, &ImportOptions::default()).expect("import").id
    }

    /// A mounted root made from an image.
    fn root(&self, image: &str) -> Root<'_> {
        let id = format!("c{}", self.next.replace(self.next.get() + 1));
        self.store.create_root(&id, image).expect("create");
        let merged = self.store.mount_root(&id, false).expect("mount");
        Root { lab: self, id, merged }
    }
}

struct Root<'a> {
    lab: &'a Lab,
    id: String,
    merged: PathBuf,
}

impl Root<'_> {
    /// Captures the changes and applies them to a fresh root of the same image. With `meanwhile`,
    /// files are copied early, and that happens before the rest is captured.
    fn round_trip(&self, image: &str, meanwhile: Option<&dyn Fn()>) -> Root<'_> {
        let out = tempfile::tempdir().expect("temporary directory");
        let parts = self.lab.store.root_fs(&self.id).expect("parts");
        let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
        let captured = match meanwhile {
            None => diff::capture(&source, out.path()).expect("capture"),
            Some(meanwhile) => {
                // A file is copied early when its last change is a few clock ticks old.
                std::thread::sleep(std::time::Duration::from_millis(40));
                let early = diff::Early::begin(&source, out.path(), 1).expect("early");
                meanwhile();
                early.finish(&source, out.path()).expect("capture")
            }
        };
        let fresh = self.lab.root(image);
        let mut tar = captured
            .has_diff
            .then(|| std::fs::File::open(out.path().join(diff::DIFF_FILE)).expect("archive"));
        let deleted = match captured.has_deleted {
            true => diff::parse_deleted(
                &std::fs::read(out.path().join(diff::DELETED_FILE)).expect("list"),
            ),
            false => Ok(Vec::new()),
        };
        let tar = tar.as_mut().map(|t| t as &mut dyn std::io::Read);
        diff::apply(tar, &deleted.expect("list"), &fresh.merged, Devices::All).expect("apply");
        fresh
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        self.lab.store.remove_root(&self.id).expect("remove");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_change_survives_the_round_trip(
        base in proptest::collection::vec(some_op(NAMES.len() - 1), 0..40),
        changes in proptest::collection::vec(some_op(NAMES.len()), 0..40),
    ) {
        let Some(lab) = Lab::new() else { return Ok(()) };
        let image = lab.image(&base);
        let root = lab.root(&image);
        changes.iter().for_each(|op| perform(&root.merged, op));
        let expected = tree(&root.merged);
        let fresh = root.round_trip(&image, None);
        let found = differences(&expected, &tree(&fresh.merged));
        prop_assert!(found.is_empty(), "{found:#?}");
        // And once more, from the restored one.
        let again = fresh.round_trip(&image, None);
        let found = differences(&expected, &tree(&again.merged));
        prop_assert!(found.is_empty(), "second time: {found:#?}");
    }
}

proptest! {
    // On a disk, where nothing is copied early in memory: few, because of the syncs.
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_copied_early_are_as_they_are_in_the_freeze(
        base in proptest::collection::vec(some_op(NAMES.len() - 1), 0..20),
        before in proptest::collection::vec(some_op(NAMES.len()), 0..40),
        meanwhile in proptest::collection::vec(some_op(NAMES.len()), 0..20),
    ) {
        let Some(lab) = Lab::with(tempfile::tempdir) else { return Ok(()) };
        let image = lab.image(&base);
        let root = lab.root(&image);
        before.iter().for_each(|op| perform(&root.merged, op));
        let change = || meanwhile.iter().for_each(|op| perform(&root.merged, op));
        let fresh = root.round_trip(&image, Some(&change));
        let found = differences(&tree(&root.merged), &tree(&fresh.merged));
        prop_assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn a_large_file_is_not_copied_again_in_the_freeze() {
    let Some(lab) = Lab::with(tempfile::tempdir) else { return };
    let image = lab.image(&[]);
    let root = lab.root(&image);
    for name in ["same", "changed", "gone"] {
        std::fs::write(root.merged.join(name), vec![b'x'; 300_000]).expect("write");
    }
    std::thread::sleep(std::time::Duration::from_millis(40));
    let out = tempfile::tempdir().expect("temporary directory");
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
    let early = diff::Early::begin(&source, out.path(), 100_000).expect("early");
    assert_eq!(early.files(), 3);
    std::fs::write(root.merged.join("changed"), b"short").expect("write");
    std::fs::remove_file(root.merged.join("gone")).expect("remove");
    let captured = early.finish(&source, out.path()).expect("capture");
    assert_eq!((captured.packed.bytes, captured.deleted), (900_005, 1));
}

#[test]
fn a_directory_made_anew_hides_what_was_in_it() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[
        Op::MakeDir(vec![2]),
        Op::Write(vec![2, 0], b"old".to_vec()),
        Op::MakeDir(vec![2, 2]),
        Op::Write(vec![2, 2, 0], b"old".to_vec()),
    ]);
    let root = lab.root(&image);
    std::fs::remove_dir_all(root.merged.join("dir")).expect("remove");
    std::fs::create_dir_all(root.merged.join("dir/dir")).expect("make");
    std::fs::write(root.merged.join("dir/b"), b"new").expect("write");
    let out = tempfile::tempdir().expect("temporary directory");
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
    diff::capture(&source, out.path()).expect("capture");
    let deleted = std::fs::read(out.path().join(diff::DELETED_FILE)).expect("list");
    let mut deleted = diff::parse_deleted(&deleted).expect("JSON");
    deleted.sort();
    assert_eq!(deleted, ["/dir/a", "/dir/dir/a"]);
    let expected = tree(&root.merged);
    assert!(differences(&expected, &tree(&root.round_trip(&image, None).merged)).is_empty());
}

#[test]
fn an_untouched_root_writes_no_files_and_excludes_are_left_out() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[Op::Write(vec![0], b"x".to_vec())]);
    let root = lab.root(&image);
    let out = tempfile::tempdir().expect("temporary directory");
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let excludes = [PathBuf::from("/dev"), PathBuf::from("/a")];
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &excludes };
    let captured = diff::capture(&source, out.path()).expect("capture");
    assert!(!captured.has_diff && !captured.has_deleted);
    assert_eq!(std::fs::read_dir(out.path()).expect("list").count(), 0);
    std::fs::create_dir(root.merged.join("dev")).expect("make");
    std::fs::write(root.merged.join("dev/null"), b"").expect("write");
    std::fs::remove_file(root.merged.join("a")).expect("remove");
    let captured = diff::capture(&source, out.path()).expect("capture");
    // Only the times of the root itself.
    assert!(captured.packed.entries == 1 && !captured.has_deleted, "{captured:?}");
}

#[test]
fn sockets_are_reported_and_left_out() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[]);
    let root = lab.root(&image);
    let _socket = std::os::unix::net::UnixListener::bind(root.merged.join("s")).expect("bind");
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let out = tempfile::tempdir().expect("temporary directory");
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
    let captured = diff::capture(&source, out.path()).expect("capture");
    assert_eq!(captured.sockets, [PathBuf::from("/s")]);
}

#[test]
fn hostile_changes_stay_below_the_root() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[]);
    let root = lab.root(&image);
    let outside = tempfile::tempdir().expect("temporary directory");
    std::fs::write(outside.path().join("kept"), b"x").expect("write");
    symlink(outside.path(), root.merged.join("link")).expect("link");
    for bad in ["/link/kept", "/../kept", "/a/../../kept"] {
        assert!(diff::apply(None, &[bad.to_owned()], &root.merged, Devices::All).is_err(), "{bad}");
    }
    // Deleting the link itself, or the root, does not reach what it points to.
    diff::apply(
        None,
        &["/link".into(), "/".into(), "/missing/x".into()],
        &root.merged,
        Devices::All,
    )
    .expect("apply");
    assert!(outside.path().join("kept").exists());
    assert!(root.merged.join("base").exists());
}

#[test]
fn gnu_tar_reads_what_is_captured() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[]);
    let root = lab.root(&image);
    std::fs::write(root.merged.join(LONG), b"content").expect("write");
    std::fs::hard_link(root.merged.join(LONG), root.merged.join("same")).expect("link");
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let out = tempfile::tempdir().expect("temporary directory");
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
    diff::capture(&source, out.path()).expect("capture");
    let to = out.path().join("to");
    std::fs::create_dir(&to).expect("make");
    let done = std::process::Command::new("tar")
        .arg("-xf")
        .arg(out.path().join(diff::DIFF_FILE))
        .arg("-C")
        .arg(&to)
        .status()
        .expect("tar runs");
    assert!(done.success());
    assert_eq!(std::fs::read(to.join("same")).expect("read"), b"content");
}

#[test]
fn capturing_a_small_upper_directory_is_fast() {
    let Some(lab) = Lab::new() else { return };
    let image = lab.image(&[]);
    let root = lab.root(&image);
    for i in 0..50 {
        std::fs::write(root.merged.join(format!("log{i}")), vec![b'x'; 2000]).expect("write");
    }
    let parts = lab.store.root_fs(&root.id).expect("parts");
    let source = Source { upper: &parts.upper, lowers: &parts.lowers, excludes: &[] };
    let mut times: Vec<_> = (0..9)
        .map(|_| {
            let out = tempfile::tempdir().expect("temporary directory");
            let start = std::time::Instant::now();
            diff::capture(&source, out.path()).expect("capture");
            start.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("50 files: {times:?}");
    assert!(times[4] < std::time::Duration::from_millis(50), "{times:?}");
}
