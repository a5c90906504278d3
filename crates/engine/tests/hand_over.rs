//! A tree that is handed over stands in a frozen group, whoever dies, until its fate is known. Needs
//! root.

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arctern_engine::CaptureError;
use arctern_engine::options::{
    AfterCapture, CaptureOptions, Event, Events, ExternalUnix, Fate, HookError, TcpPolicy,
};
use arctern_sys::Pid;
use arctern_sys::freezer::Freezer;
use common::Group;

struct Silent;

impl Events for Silent {
    fn event(&mut self, _: Event) {}
}

/// A process that writes numbers into a file, one after the other: every step shows.
struct Counter {
    child: Child,
    directory: tempfile::TempDir,
}

impl Counter {
    fn start() -> Counter {
        let directory = tempfile::tempdir().unwrap();
        let script = "i=0; while :; do i=$((i+1)); echo $i > steps; done";
        let child = Command::new("sh")
            .args(["-c", script])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Counter { child, directory }
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    /// What is in the file: between two steps nothing.
    fn steps(&self) -> String {
        fs::read_to_string(self.directory.path().join("steps")).unwrap_or_default()
    }

    fn wait_for_progress(&self) {
        let (start, before) = (Instant::now(), self.steps());
        while self.steps().is_empty() || self.steps() == before {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not run");
            std::thread::yield_now();
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A counting process in a group with a freezer of either version.
struct Scene {
    counter: Counter,
    group: Group,
    images: tempfile::TempDir,
}

impl Scene {
    fn all(name: &str) -> Vec<Scene> {
        let groups = [Group::make("cgroup", "freezer", name), Group::make("cgroup2", "", name)];
        let scene = |group: Group| {
            let counter = Counter::start();
            fs::write(group.0.join("cgroup.procs"), counter.pid().to_string()).unwrap();
            counter.wait_for_progress();
            Scene { counter, group, images: tempfile::tempdir().unwrap() }
        };
        let scenes: Vec<Scene> = groups.into_iter().flatten().map(scene).collect();
        assert!(!scenes.is_empty(), "no hierarchy with a freezer is mounted here");
        scenes
    }

    fn freezer(&self) -> Freezer {
        Freezer::of(&self.group.0).unwrap().unwrap()
    }

    fn capture(
        &self,
        hook: &mut dyn FnMut() -> Result<Fate, HookError>,
    ) -> Result<(), CaptureError> {
        let options = CaptureOptions {
            after: AfterCapture::HandOver,
            externals: Vec::new(),
            shell_job: true,
            orphan_terminals: false,
            external_unix: ExternalUnix::Refuse,
            file_locks: false,
            ghost_limit: 1 << 20,
            timeout: Duration::from_secs(10),
            freeze_cgroup: Some(self.group.0.clone()),
            tcp: TcpPolicy::Refuse,
            skip_in_flight: false,
            network: None,
            while_frozen: None,
            before_release: None,
            hand_over: Some(hook),
        };
        arctern_engine::capture(self.counter.pid(), self.images.path(), options, &mut Silent)
            .map(drop)
    }

    /// Asserts that it does not run, and that nobody traces it.
    fn stands(&self) {
        let before = self.counter.steps();
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(self.counter.steps(), before);
        let status = fs::read_to_string(format!("/proc/{}/status", self.counter.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
}

#[test]
fn it_goes_on_when_it_was_not_taken() {
    for scene in Scene::all("back") {
        for _ in 0..3 {
            let result = scene.capture(&mut || {
                scene.stands();
                Ok(Fate::Back)
            });
            assert!(matches!(result, Err(CaptureError::NotTaken)), "{result:?}");
            scene.counter.wait_for_progress();
        }
    }
}

#[test]
fn it_dies_without_another_step_when_it_is_gone() {
    for mut scene in Scene::all("gone") {
        let mut steps = String::new();
        let result = scene.capture(&mut || {
            steps = scene.counter.steps();
            Ok(Fate::Gone)
        });
        result.unwrap();
        assert_eq!(scene.counter.steps(), steps);
        assert!(!scene.counter.child.wait().unwrap().success());
    }
}

#[test]
fn it_stays_when_nobody_knows() {
    for scene in Scene::all("doubt") {
        let result = scene.capture(&mut || Err("the link is down".into()));
        assert!(matches!(result, Err(CaptureError::InDoubt(_))), "{result:?}");
        scene.stands();
        assert!(scene.freezer().is_frozen().unwrap());
        scene.freezer().thaw().unwrap();
        scene.counter.wait_for_progress();
    }
}

#[test]
fn without_a_freezer_nothing_is_begun() {
    let counter = Counter::start();
    let images = tempfile::tempdir().unwrap();
    let group = Group(images.path().to_owned());
    let scene = Scene { counter, group, images };
    let result = scene.capture(&mut || Ok(Fate::Gone));
    assert!(matches!(result, Err(CaptureError::NoFreezer)), "{result:?}");
    scene.counter.wait_for_progress();
}
