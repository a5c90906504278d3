//! Memory that is copied ahead while the program changes it in every way.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use arctern_engine::options::TcpPolicy;
use arctern_engine::options::{AfterCapture, CaptureOptions, ExternalUnix, HookError, Silent};
use arctern_engine::{PageDirectory, PageSink, Precopy};
use arctern_harness::engine::Engine::{self, Arctern, Criu};
use arctern_harness::skips;
use arctern_harness::workload::Run;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How often a test is repeated.
fn times(few: usize, many: usize) -> usize {
    if std::env::var_os("ARCTERN_SOAK").is_some() { many } else { few }
}

/// Copies ahead `rounds` times, captures the rest, restores all of it, and lets the program compare.
fn move_in_rounds(workload: &str, rounds: usize, restore: Engine) -> Result<()> {
    let mut run = Run::start(workload)?;
    let mut previous = None;
    for round in 0..rounds {
        let images = run.images(&format!("ahead-{round}"))?;
        Engine::pre_dump(run.pid(), &images, previous.as_deref())?;
        ensure!(!has_userfaultfd(run.pid())?, "a userfaultfd was left in the program's table");
        previous = Some(format!("../ahead-{round}"));
        // The program changes its memory meanwhile.
        std::thread::sleep(Duration::from_millis(60));
    }
    let images = run.images("images")?;
    let tree = run.tree()?;
    Engine::dump_onto(run.pid(), &images, previous.as_deref().unwrap_or("none"), false)?;
    ensure!(!record(run.pid()).exists(), "{} was left", record(run.pid()).display());
    run.wait_for_kill(tree)?;
    let pid = restore.restore(&images)?;
    run.restored(pid)?;
    run.verify()
}

fn has_userfaultfd(pid: i32) -> Result<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if fs::read_link(fd?.path()).is_ok_and(|to| to.to_string_lossy().contains("userfaultfd")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where the tracker of a tree is found.
fn record(pid: i32) -> std::path::PathBuf {
    Path::new("/run/arctern/tracking").join(pid.to_string())
}

#[test]
fn memory_that_changes_all_the_time_arrives_as_it_is() -> Result<(), String> {
    skips::judge("precopy::dirty-memory", || {
        (0..times(2, 50)).try_for_each(|_| move_in_rounds("dirty-memory", 3, Arctern))
    })
}

#[test]
fn criu_restores_a_chain() -> Result<(), String> {
    skips::judge("precopy::criu", || {
        (0..times(1, 10)).try_for_each(|_| move_in_rounds("dirty-memory", 2, Criu))
    })
}

/// The tracking is undone when the tracker ends, whoever ends it, and a dump on top of images since which
/// nobody has looked is a whole one.
#[test]
fn a_dump_after_the_trackers_death_is_whole() -> Result<(), String> {
    skips::judge("precopy::death", || {
        let mut run = Run::start("dirty-memory")?;
        let ahead = run.images("ahead")?;
        Engine::pre_dump(run.pid(), &ahead, None)?;
        ensure!(tracked(run.pid())? > 0, "nothing is tracked");
        let record: serde_json::Value = serde_json::from_slice(&fs::read(record(run.pid()))?)?;
        let tracker = record["pid"].as_i64().unwrap_or(0) as i32;
        let tracker = arctern_harness::process::Process::open(tracker)?;
        tracker.signal(rustix::process::Signal::KILL)?;
        tracker.gone(Duration::from_secs(10))?;
        ensure!(tracked(run.pid())? == 0, "the tracking outlived its tracker");
        let images = run.images("images")?;
        let tree = run.tree()?;
        Engine::dump_onto(run.pid(), &images, "../ahead", false)?;
        run.wait_for_kill(tree)?;
        fs::remove_dir_all(ahead)?;
        let pid = Arctern.restore(&images)?;
        run.restored(pid)?;
        run.verify()
    })
}

/// Dumps on top of each other, of a program that goes on: each of them can be restored.
#[test]
fn every_dump_of_a_series_can_be_restored() -> Result<(), String> {
    skips::judge("precopy::series", || {
        let mut run = Run::start("dirty-memory")?;
        let first = run.images("series-0")?;
        Engine::pre_dump(run.pid(), &first, None)?;
        for number in 1..4 {
            let images = run.images(&format!("series-{number}"))?;
            let previous = format!("../series-{}", number - 1);
            let tree = run.tree()?;
            Engine::dump_onto(run.pid(), &images, &previous, number < 3)?;
            if number == 3 {
                run.wait_for_kill(tree)?;
            }
        }
        let images = run.images("series-3")?;
        let pid = Arctern.restore(&images)?;
        run.restored(pid)?;
        run.verify()
    })
}

/// Mappings of a process that are tracked.
fn tracked(pid: i32) -> Result<usize> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let flags = smaps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    Ok(flags.filter(|flags| flags.split_whitespace().any(|flag| flag == "uw")).count())
}

const PAGE: usize = 4096;

/// The other side: what it was given, as the last round says.
#[derive(Default)]
struct OtherSide {
    before: BTreeMap<i32, BTreeMap<u64, Vec<u8>>>,
    now: BTreeMap<i32, BTreeMap<u64, Vec<u8>>>,
    pid: i32,
}

impl OtherSide {
    fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    fn put(&mut self, vaddr: u64, page: Vec<u8>) -> Result<(), HookError> {
        let pages = self.now.entry(self.pid).or_default();
        if pages.last_key_value().is_some_and(|(last, _)| *last >= vaddr) {
            return Err("pages do not come in order".into());
        }
        pages.insert(vaddr, page);
        Ok(())
    }
}

impl PageSink for OtherSide {
    fn space(&mut self, pid: i32) -> Result<(), HookError> {
        self.pid = pid;
        match self.now.insert(pid, BTreeMap::new()) {
            None => Ok(()),
            Some(_) => Err("a process comes twice".into()),
        }
    }

    fn stored(&mut self, vaddr: u64, bytes: &[u8]) -> Result<(), HookError> {
        bytes
            .chunks(PAGE)
            .enumerate()
            .try_for_each(|(i, page)| self.put(vaddr + (i * PAGE) as u64, page.to_vec()))
    }

    fn unchanged(&mut self, vaddr: u64, pages: u64) -> Result<(), HookError> {
        for page in 0..pages {
            let at = vaddr + page * PAGE as u64;
            let known = self.before.get(&self.pid).and_then(|pages| pages.get(&at));
            let known = known.ok_or("a page is unchanged that was never sent")?.clone();
            self.put(at, known)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}

/// As a migration does it: rounds and the rest of the memory go to the other side, all else is described
/// in a directory.
#[test]
fn rounds_and_the_rest_go_to_a_sink() -> Result<(), String> {
    skips::judge("precopy::sink", || {
        let mut run = Run::start("dirty-memory")?;
        let images = run.images("images")?;
        let limit = Duration::from_secs(10);
        let mut precopy = Precopy::begin(arctern_sys::Pid(run.pid()), limit)?;
        let mut other = OtherSide::default();
        for round in 0..3 {
            other.begin();
            let figures = precopy.round(&mut other)?;
            println!("round {round}: {figures:?}");
            ensure!(figures.unchanged == 0 || round > 0, "unchanged since when?");
            ensure!(figures.sent > 0 && figures.frozen_us < figures.total_us);
            std::thread::sleep(Duration::from_millis(40));
        }
        other.begin();
        let tree = run.tree()?;
        let options = CaptureOptions {
            after: AfterCapture::Kill,
            externals: Vec::new(),
            shell_job: false,
            orphan_terminals: false,
            external_unix: ExternalUnix::Refuse,
            file_locks: false,
            ghost_limit: 1 << 20,
            timeout: limit,
            freeze_cgroup: None,
            tcp: TcpPolicy::Refuse,
            skip_in_flight: false,
            network: None,
            while_frozen: None,
            before_release: None,
            hand_over: None,
        };
        let report = precopy.finish(&images, Some(&mut other), options, &mut Silent)?;
        println!("{report:?}");
        ensure!(report.pages_unchanged > 0, "nothing was ahead");
        // Its tracer is its parent here, and has reaped it.
        tree.iter().try_for_each(|process| process.gone(limit))?;
        let mut there = PageDirectory::last(&images, None)?;
        for (pid, pages) in &other.now {
            there.space(*pid).map_err(|e| anyhow::anyhow!("{e}"))?;
            for (at, page) in pages {
                there.stored(*at, page).map_err(|e| anyhow::anyhow!("{e}"))?;
            }
            there.end().map_err(|e| anyhow::anyhow!("{e}"))?;
        }
        let pid = Arctern.restore(&images)?;
        run.restored(pid)?;
        run.verify()
    })
}
