//! Commands that are killed at any moment leave a store that works and that cleans up after them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use arctern_storage::{ImportOptions, Store};

/// Set in the child processes: the directory to work in.
const WORKER: &str = "ARCTERN_STORE_CRASH_TEST";

/// Archive number `n` of a few, with enough in it to be killed in the middle of.
fn archive(n: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..60 {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("dir{}/file{n}-{i}", i % 7)).expect("path");
        header.set_size(3000);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, &vec![i as u8; 3000][..]).expect("append");
    }
    builder.into_inner().expect("archive")
}

/// What the children do until they are killed.
#[test]
fn worker() {
    let Some(dir) = std::env::var_os(WORKER) else { return };
    let dir = Path::new(&dir);
    let store = Store::open(&dir.join("root"), &dir.join("run")).expect("open");
    for n in (0..4).cycle() {
        let name = format!("image{n}");
        let options = ImportOptions { name: Some(name.clone()), ..ImportOptions::default() };
        store.import(&archive(n)[..], &options).expect("import");
        // The other child may have removed the image; a root of a killed one may be there.
        let id = format!("c{}-{n}", std::process::id());
        if store.create_root(&id, &name).is_ok() {
            store.mount_root(&id, false).expect("mount");
            store.remove_root(&id).expect("remove");
        }
        let _ = store.remove_image(&name, true);
    }
}

#[test]
fn killed_commands_leave_nothing_that_stays() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("directory");
    let child = || {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["worker", "--exact", "--nocapture"])
            .env(WORKER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("child")
    };
    // Two at a time, killed at different moments of their work.
    for round in 0..12u64 {
        let mut children = [child(), child()];
        std::thread::sleep(Duration::from_millis(60 + 13 * round));
        for child in &mut children {
            child.kill().expect("kill");
        }
        for child in children {
            let output = child.wait_with_output().expect("wait");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    let store = Store::open(&dir.path().join("root"), &dir.path().join("run")).expect("open");
    assert_eq!(std::fs::read_dir(dir.path().join("root/tmp")).expect("list").count(), 0);
    for id in store.roots().expect("roots") {
        // A root whose container was killed is the container crate's to remove.
        store.mount_root(&id, false).expect("mount");
        store.remove_root(&id).expect("remove");
    }
    for image in store.images().expect("images") {
        // An image that is listed is whole.
        store.create_root("whole", &image.id).expect("root");
        let merged = store.mount_root("whole", true).expect("mount");
        assert_eq!(std::fs::read_dir(merged).expect("list").count(), 7);
        store.remove_root("whole").expect("remove");
        store.remove_image(&image.id, true).expect("remove image");
    }
    for left in ["root/layers", "root/blobs/sha256", "root/containers", "run/mounts"] {
        let left = dir.path().join(left);
        let names: Vec<_> = std::fs::read_dir(&left).expect("list").collect();
        assert!(names.is_empty(), "{left:?}: {names:?}");
    }
}
