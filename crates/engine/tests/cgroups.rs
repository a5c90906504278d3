//! Freezers and groups in the hierarchies that this machine has mounted. Needs root.

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use arctern_engine::state::cgroup::freezer::Freezer;
use arctern_engine::state::cgroup::{CgroupRestore, Entrance};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPropEntry,
};
use arctern_sys::Pid;
use arctern_sys::clone::spawn_stub;
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc;
use arctern_tracee::stub::Stub;
use common::Group;

/// A process that does nothing but spin.
struct Spinner(Child);

impl Spinner {
    fn start() -> Self {
        let spin = ["-c", "while :; do :; done"];
        Spinner(Command::new("sh").args(spin).stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id() as i32)
    }

    /// Ticks of processor time so far.
    fn ticks(&self) -> u64 {
        let stat = proc::read(self.pid(), "stat").unwrap();
        let after = stat.rsplit_once(')').unwrap().1;
        after.split_whitespace().nth(11).unwrap().parse().unwrap()
    }

    fn wait_for_progress(&self) {
        let before = self.ticks();
        let start = std::time::Instant::now();
        while self.ticks() == before {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not run");
            std::thread::yield_now();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A process that waits for calls, killed at the end.
struct Waiting(Stub);

impl Waiting {
    /// In these groups, as the root of a restore.
    fn enter(cgroups: &mut CgroupRestore, groups: &[&Group]) -> Self {
        let dirs: Vec<_> = groups.iter().map(|group| group.0.clone()).collect();
        let entrance = Entrance::open(&dirs).unwrap();
        let pid = spawn_stub(0, libc::SIGCHLD, &[], entrance.unified()).unwrap();
        let waiting = Waiting(Stub::adopt(pid, 0x1000_0000).unwrap());
        cgroups.enter(&waiting.0, 2, &entrance).unwrap();
        waiting
    }

    fn pid(&self) -> Pid {
        self.0.tid()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        PidFd::open(self.pid()).and_then(|fd| fd.send_signal(libc::SIGKILL)).ok();
        arctern_sys::ptrace::wait(self.pid()).ok();
    }
}

fn freezes_and_thaws(group: Option<Group>) {
    let Some(group) = group else {
        eprintln!("skipped: this hierarchy is not mounted here");
        return;
    };
    let freezer = Freezer::of(&group.0).unwrap().expect("a group has a freezer");
    let spinner = Spinner::start();
    fs::write(group.0.join("cgroup.procs"), spinner.pid().to_string()).unwrap();
    for _ in 0..5 {
        spinner.wait_for_progress();
        freezer.freeze(Duration::from_secs(10)).unwrap();
        assert!(freezer.is_frozen().unwrap());
        let frozen = spinner.ticks();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(30) {
            assert_eq!(spinner.ticks(), frozen);
        }
        freezer.thaw().unwrap();
        freezer.wait(false, Duration::from_secs(10)).unwrap();
    }
    spinner.wait_for_progress();
}

#[test]
fn a_group_of_version_2_freezes_and_thaws() {
    freezes_and_thaws(Group::make("cgroup2", "", "freeze"));
}

#[test]
fn a_group_of_version_1_freezes_and_thaws() {
    freezes_and_thaws(Group::make("cgroup", "freezer", "freeze"));
}

fn group_of(pid: Pid, controllers: &str) -> String {
    let all = proc::cgroup::read(pid, pid).unwrap();
    all.into_iter().find(|m| m.controllers == controllers).unwrap().path
}

#[test]
fn groups_below_the_roots_are_made_and_removed() {
    let Some(group) = Group::make("cgroup", "pids", "groups") else {
        eprintln!("skipped: the pids hierarchy is not mounted here");
        return;
    };
    let member = |path: &str| CgMemberEntry {
        name: "pids".to_owned(),
        path: path.to_owned(),
        cgns_prefix: None,
    };
    let property = |name: &str, value: &str| CgroupPropEntry {
        name: name.to_owned(),
        value: value.to_owned(),
        perms: None,
    };
    let child = |name: &str, limit: &str, children| CgroupDirEntry {
        dir_name: name.to_owned(),
        children,
        properties: vec![property("pids.max", limit), property("../escape", "1")],
        dir_perms: None,
    };
    let entry = CgroupEntry {
        sets: vec![
            CgSetEntry { id: 2, ctls: vec![member("/old")] },
            CgSetEntry { id: 3, ctls: vec![member("/old/inner/deep")] },
        ],
        controllers: vec![CgControllerEntry {
            cnames: vec!["pids".to_owned()],
            dirs: vec![child(
                "old",
                "9",
                vec![child("inner", "77", vec![child("deep", "max", vec![])])],
            )],
            is_threaded: Some(true),
        }],
    };
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    images.write_one(ImageKind::Cgroup, 0, &entry).unwrap();

    let inner = Spinner::start();
    let mut cgroups = CgroupRestore::load(&images).unwrap();
    let root = Waiting::enter(&mut cgroups, &[&group]);
    cgroups.place(2, root.pid()).unwrap();
    cgroups.place(3, inner.pid()).unwrap();
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert_eq!(group_of(root.pid(), "pids"), format!("/{name}"));
    assert_eq!(group_of(inner.pid(), "pids"), format!("/{name}/inner/deep"));
    let read = |path: &str| fs::read_to_string(group.0.join(path)).unwrap();
    assert_eq!(read("inner/pids.max"), "77\n");
    assert_eq!(read("pids.max"), "max\n", "the caller's group keeps the caller's limit");
    assert_eq!(cgroups.take_warnings().len(), 2, "one for each escape");

    // A restore that fails has killed its tasks before.
    drop((root, inner));
    drop(cgroups);
    assert!(!group.0.join("inner").exists());
}

#[test]
fn the_root_of_a_restore_is_in_groups_of_both_versions() {
    let groups = [Group::make("cgroup2", "", "root"), Group::make("cgroup", "pids", "root")];
    let controllers = ["", "pids"];
    let there: Vec<_> = groups.iter().flatten().collect();
    if there.is_empty() {
        eprintln!("skipped: no hierarchy is mounted here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    let mut cgroups = CgroupRestore::load(&images).unwrap();
    let root = Waiting::enter(&mut cgroups, &there);
    for (group, controllers) in groups.iter().zip(controllers) {
        let Some(group) = group else { continue };
        let name = group.0.file_name().unwrap().to_str().unwrap();
        assert!(group_of(root.pid(), controllers).ends_with(name), "{name}");
    }
}

#[test]
fn a_made_cpuset_takes_tasks() {
    let Some(group) = Group::make("cgroup", "cpuset", "cpuset") else {
        eprintln!("skipped: the cpuset hierarchy is not mounted here");
        return;
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let above = fs::read_to_string(group.0.parent().unwrap().join(name)).unwrap();
        fs::write(group.0.join(name), above.trim()).unwrap();
    }
    let member = |path: &str| CgMemberEntry {
        name: "cpuset".to_owned(),
        path: path.to_owned(),
        cgns_prefix: None,
    };
    let entry = CgroupEntry {
        sets: vec![
            CgSetEntry { id: 2, ctls: vec![member("/old")] },
            CgSetEntry { id: 3, ctls: vec![member("/old/inner")] },
        ],
        controllers: Vec::new(),
    };
    let dir = tempfile::tempdir().unwrap();
    let images = ImageDir::open(dir.path()).unwrap();
    images.write_one(ImageKind::Cgroup, 0, &entry).unwrap();
    let mut cgroups = CgroupRestore::load(&images).unwrap();
    let root = Waiting::enter(&mut cgroups, &[&group]);
    cgroups.place(3, root.pid()).unwrap();
    assert!(group_of(root.pid(), "cpuset").ends_with("/inner"));
    drop(root);
}
