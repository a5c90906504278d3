//! Summaries of directories and archives, sound and not.

use std::path::Path;

use arctern_image::archive::{ArchiveWriter, Compression};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::manifest::{HostFacts, Manifest};
use arctern_image::messages::{
    CoreEntry, FdTypes, FdinfoEntry, FileEntry, InventoryEntry, MmEntry, PagemapEntry, PagemapHead,
    PstreeEntry, RegFileEntry, TaskCoreEntry, TaskKobjIdsEntry, VmaEntry,
};
use arctern_image::seal::Unseal;
use arctern_image::summary::{SummaryError, compare, summarise, summarise_stream};

const PAGE: u64 = 4096;

/// Writes a process whose only stored pages are `pages`; its command line is `nginx`, `-g`.
fn process(images: &ImageDir, pid: u32, start: u64, pages: &[u8]) {
    let id = u64::from(pid);
    let task = TaskCoreEntry { task_state: 1, comm: "nginx".into(), ..Default::default() };
    let core = CoreEntry { mtype: 1, tc: Some(task), ..Default::default() };
    images.write_one(ImageKind::Core, id, &core).expect("core");
    let ids = TaskKobjIdsEntry { vm_id: pid, files_id: pid, ..Default::default() };
    images.write_one(ImageKind::Ids, id, &ids).expect("ids");
    let private =
        VmaEntry { start, end: start + 4 * PAGE, flags: 0x22, status: 0x201, ..Default::default() };
    let shared = VmaEntry {
        start: start + 8 * PAGE,
        end: start + 9 * PAGE,
        flags: 1,
        status: 0x101,
        ..Default::default()
    };
    let mm = MmEntry {
        mm_arg_start: start + 10,
        mm_arg_end: start + 19,
        exe_file_id: 7,
        vmas: vec![private, shared],
        ..Default::default()
    };
    images.write_one(ImageKind::Mm, id, &mm).expect("mm");
    let mut map = images.writer(ImageKind::Pagemap, id).expect("pagemap");
    map.record(&PagemapHead { pages_id: pid }).expect("head");
    let count = pages.len() as u64 / PAGE;
    let run =
        PagemapEntry { vaddr: start, flags: Some(4), nr_pages: Some(count), ..Default::default() };
    map.record(&run).expect("run");
    map.finish().expect("pagemap");
    images.write_raw(ImageKind::Pages, id, pages).expect("pages");
    let fd = FdinfoEntry { id: 7, r#type: FdTypes::Reg as i32, fd: 3, ..Default::default() };
    images.write_one(ImageKind::Fdinfo, id, &fd).expect("fdinfo");
}

fn pages() -> Vec<u8> {
    let mut pages = vec![1; 2 * PAGE as usize];
    pages[10..19].copy_from_slice(b"nginx\0-g\0");
    pages
}

fn images(dir: &Path, pages: &[u8]) -> ImageDir {
    let images = ImageDir::create(dir).expect("images");
    images.write_one(ImageKind::Inventory, 0, &InventoryEntry::default()).expect("inventory");
    let entry = |pid, ppid| PstreeEntry { pid, ppid, threads: vec![pid], ..Default::default() };
    let tree = [entry(1, 0), entry(5, 1), entry(6, 1), entry(7, 5)];
    images.write_all(ImageKind::Pstree, 0, &tree).expect("pstree");
    let reg = RegFileEntry { id: 7, name: "/usr/sbin/nginx".into(), ..Default::default() };
    let file = FileEntry {
        r#type: FdTypes::Reg as i32,
        id: 7,
        reg: Some(Box::new(reg)),
        ..Default::default()
    };
    images.write_one(ImageKind::Files, 0, &file).expect("files");
    process(&images, 1, 0x10000, pages);
    images
}

#[test]
fn a_directory_is_shown() {
    let dir = tempfile::tempdir().expect("tempdir");
    images(&dir.path().join("i"), &pages());
    let summary = summarise(&dir.path().join("i")).expect("summary");
    let order: Vec<_> = summary.processes.iter().map(|p| (p.pid, p.depth)).collect();
    assert_eq!(order, [(1, 0), (5, 1), (7, 2), (6, 1)]);
    let first = &summary.processes[0];
    assert_eq!(first.command, ["nginx", "-g"]);
    assert_eq!(first.program.as_deref(), Some("/usr/sbin/nginx"));
    assert_eq!((first.memory.anonymous, first.memory.zero), (2 * PAGE, 2 * PAGE));
    assert_eq!((first.memory.shared, first.memory.mapped), (PAGE, 5 * PAGE));
    assert_eq!(first.descriptors[0].about, "/usr/sbin/nginx");
    assert!(summary.container.is_none() && summary.compression.is_none());
}

#[test]
fn an_archive_is_shown_and_a_cut_one_is_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    images(&dir.path().join("i"), &pages());
    let file = dir.path().join("a.tar");
    let mut writer = ArchiveWriter::create(&file, Compression::None).expect("create");
    let config = br#"{"id":"1","name":"web\u001b[31m","rootfsImageName":"nginx"}"#;
    writer.add_bytes("config.dump", config).expect("config");
    writer.add_dir_tree("checkpoint", &dir.path().join("i")).expect("tree");
    writer.finish(Manifest::new(5, HostFacts::default(), None)).expect("finish");
    let summary = summarise(&file).expect("summary");
    assert_eq!(summary.processes[0].command, ["nginx", "-g"]);
    assert_eq!(summary.created, Some(5));
    let container = summary.container.expect("container");
    assert_eq!(container.name, "web\u{fffd}[31m", "nothing of it reaches the terminal");
    let whole = std::fs::read(&file).expect("read");
    for length in (0..whole.len() - 1024).step_by(211) {
        assert!(summarise_stream(&whole[..length]).is_err(), "cut after {length} bytes");
    }
    for place in (0..whole.len()).step_by(97) {
        let mut changed = whole.clone();
        changed[place] ^= 0x55;
        // Whatever it says, it ends.
        let _ = summarise_stream(&changed[..]);
    }
}

#[test]
fn what_lies_is_an_error_or_left_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("i");
    let images = images(&path, &pages());
    // Fewer pages than the pagemap says, in what is needed of them.
    images.write_raw(ImageKind::Pages, 1, &[0; 100]).expect("pages");
    assert!(matches!(summarise(&path), Err(SummaryError::Short { .. })));
    images.write_raw(ImageKind::Pages, 1, &pages()).expect("pages");
    // Everybody is somebody's child, twice.
    let entry = |pid, ppid| PstreeEntry { pid, ppid, threads: vec![pid], ..Default::default() };
    let tree = [entry(1, 2), entry(2, 1), entry(3, 3), entry(1, 2)];
    images.write_all(ImageKind::Pstree, 0, &tree).expect("pstree");
    assert_eq!(summarise(&path).expect("summary").processes.len(), 4);
    std::fs::write(path.join("core-1.img"), b"no image").expect("write");
    let summary = summarise(&path).expect("summary");
    assert!(summary.problems.iter().any(|problem| problem.contains("core-1.img")));
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).expect("mkdir");
    assert!(matches!(summarise(&empty), Err(SummaryError::NoCheckpoint(_))));
}

#[test]
fn pages_that_changed_are_counted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (before, after) = (dir.path().join("a"), dir.path().join("b"));
    images(&before, &pages());
    let mut now = pages();
    now[PAGE as usize] = 2;
    now.extend([3; PAGE as usize]);
    let images = images(&after, &now);
    let entry = |pid, ppid| PstreeEntry { pid, ppid, threads: vec![pid], ..Default::default() };
    images.write_all(ImageKind::Pstree, 0, &[entry(1, 0), entry(5, 1), entry(9, 1)]).expect("tree");
    let difference = compare(&before, &after, &Unseal::default()).expect("compare");
    let first = &difference.changed[0];
    assert_eq!((first.pages_changed, first.pages_added, first.pages_common), (1, 1, 2));
    assert_eq!((difference.added.len(), difference.removed.len()), (1, 2));
}
