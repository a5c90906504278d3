//! Bare process trees: `arctern criu` beside CRIU.

use crate::report::{self, Report, Samples};
use crate::stats::{frozen, median};
use anyhow::{Context, Result, bail};
use arctern_harness::engine::{built, source};
use arctern_harness::workload::Run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PEER: &str = "CRIU 4.2.1";

/// An engine's command line, without any wrapper that would cost time.
struct Engine {
    command: Vec<PathBuf>,
}

impl Engine {
    fn arctern() -> Self {
        Self { command: vec![built("ARCTERN", "arctern"), "criu".into()] }
    }

    /// CRIU of the peer's folder, by its own loader and libraries.
    fn criu() -> Result<Self> {
        let setup = Command::new(source().join("scripts/peer.sh")).arg("setup").output()?;
        if !setup.status.success() {
            bail!("{}", String::from_utf8_lossy(&setup.stderr).trim());
        }
        let root = PathBuf::from(String::from_utf8_lossy(&setup.stdout).trim());
        let library = root.join("usr/lib/x86_64-linux-gnu");
        Ok(Self {
            command: vec![
                root.join("usr/lib64/ld-linux-x86-64.so.2"),
                "--library-path".into(),
                library,
                root.join("usr/sbin/criu"),
            ],
        })
    }

    fn run(&self, arguments: &[&str], images: &Path, log: &str) -> Result<Duration> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(arguments).arg("-D").arg(images).args(["-o", log]);
        let start = Instant::now();
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let time = start.elapsed();
        if !output.status.success() {
            let log = fs::read_to_string(images.join(log)).unwrap_or_default();
            let errors: Vec<&str> =
                log.lines().filter(|line| line.contains("rror")).take(5).collect();
            bail!("{command:?}: {}{}", String::from_utf8_lossy(&output.stderr), errors.join("\n"));
        }
        Ok(time)
    }
}

/// Where images are written: a new directory each time, and none is removed before the end.
///
/// A file system that has just deleted thousands of files is slow to make new ones (ext4 looks at
/// each inode that was deleted in the last minutes before it takes a free one: 1 to 2 ms a file
/// instead of 0.05), and that would be measured instead of the engines.
struct Folders {
    base: tempfile::TempDir,
    made: usize,
}

impl Folders {
    fn new() -> Result<Self> {
        let base = tempfile::Builder::new().prefix("arctern-bench-").tempdir()?;
        // Far from what an earlier run has deleted; without it, file systems other than ext4 do well.
        let _ = Command::new("chattr").arg("+T").arg(base.path()).output();
        Ok(Self { base, made: 0 })
    }

    fn make(&mut self) -> Result<PathBuf> {
        self.made += 1;
        let folder = self.base.path().join(self.made.to_string());
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// Takes back the space of the pages, which are few files.
    fn forget_pages(images: &Path) -> Result<()> {
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            let large = entry.metadata()?.len() > 1 << 20;
            if large && entry.file_name().to_string_lossy().starts_with("pages-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Times of one engine in one case.
#[derive(Default)]
struct Times {
    dump: Samples,
    frozen: Samples,
    restore: Samples,
    leave: Samples,
    leave_frozen: Samples,
    failure: Option<String>,
}

impl Times {
    /// One round: dump and go on, dump and kill, restore, verify.
    fn round(
        &mut self,
        engine: &Engine,
        load: &[&str],
        folders: &mut Folders,
        counted: bool,
    ) -> Result<()> {
        let mut run = Run::start_with(load)?;
        let pid = run.pid().to_string();
        let images = folders.make()?;
        let leave = engine.run(&["dump", "-R", "-t", &pid], &images, "dump.log")?;
        let leave_frozen = frozen(&images)?;
        Folders::forget_pages(&images)?;
        let images = folders.make()?;
        let tree = run.tree()?;
        let dump = engine.run(&["dump", "-t", &pid], &images, "dump.log")?;
        let stopped = frozen(&images)?;
        run.wait_for_kill(tree)?;
        let pidfile = images.join("restored.pid");
        let pidfile = pidfile.to_string_lossy();
        let restore =
            engine.run(&["restore", "-d", "--pidfile", &pidfile], &images, "restore.log")?;
        run.restored(fs::read_to_string(&*pidfile)?.trim().parse()?)?;
        run.kill()?;
        Folders::forget_pages(&images)?;
        if counted {
            self.leave.push(leave);
            self.leave_frozen.push(leave_frozen);
            self.dump.push(dump);
            self.frozen.push(stopped);
            self.restore.push(restore);
        }
        Ok(())
    }
}

/// One kind of load in one amount.
struct Case {
    name: String,
    kind: &'static str,
    count: usize,
    /// Goals for dump and restore.
    goals: (Option<f64>, Option<f64>),
}

/// Measures every tree whose name contains `only`.
pub fn measure(only: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let case = |kind: &'static str, count: usize, unit: &str, goal: Option<f64>| Case {
        name: format!("{count} {unit}"),
        kind,
        count,
        goals: (goal, goal),
    };
    let cases = [
        case("memory", 64, "MiB dirty", None),
        case("memory", 1024, "MiB dirty", Some(0.8)),
        case("processes", 1, "process", None),
        case("processes", 10, "processes", None),
        case("processes", 100, "processes", None),
        case("processes", 1000, "processes", None),
        case("threads", 10, "threads", None),
        case("threads", 100, "threads", None),
        case("threads", 1000, "threads", None),
        case("mappings", 10_000, "mappings", None),
        case("descriptors", 10_000, "descriptors", None),
    ];
    let arctern = Engine::arctern();
    let criu = Engine::criu();
    let mut folders = Folders::new()?;
    // Dump times by kind and count, for the cost of one more.
    let mut dumps: Vec<(&'static str, usize, Option<Duration>, Option<Duration>)> = Vec::new();
    for case in cases.iter().filter(|case| case.name.contains(only)) {
        let count = case.count.to_string();
        let load = ["load", case.kind, &count];
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        for round in 0..=rounds {
            let counted = round > 0;
            for (times, engine) in [(&mut ours, Ok(&arctern)), (&mut theirs, criu.as_ref())] {
                if times.failure.is_none() {
                    let outcome = engine.map_err(|error| anyhow::anyhow!("{error}"));
                    let outcome = outcome
                        .and_then(|engine| times.round(engine, &load, &mut folders, counted));
                    times.failure = outcome.err().map(|error| format!("{error:#}"));
                }
            }
        }
        let missing = report::missing(ours.failure.as_deref(), theirs.failure.as_deref());
        let mut add = |what: &str, a: &Samples, b: &Samples, goal| {
            report.add(&case.name, what, PEER, (a, b), goal, missing.clone());
        };
        add("dump", &ours.dump, &theirs.dump, case.goals.0);
        add("frozen", &ours.frozen, &theirs.frozen, None);
        add("restore", &ours.restore, &theirs.restore, case.goals.1);
        add("dump, leave running", &ours.leave, &theirs.leave, None);
        add("frozen, leave running", &ours.leave_frozen, &theirs.leave_frozen, None);
        dumps.push((case.kind, case.count, median(&ours.dump), median(&theirs.dump)));
    }
    for (kind, name) in [("processes", "one more process"), ("threads", "one more thread")] {
        let of = |count| dumps.iter().find(|(k, c, ..)| *k == kind && *c == count);
        let (Some(few), Some(many)) = (of(10), of(1000)) else { continue };
        let cost = |few: Option<Duration>, many: Option<Duration>| match (few, many) {
            (Some(few), Some(many)) => vec![many.saturating_sub(few) / 990],
            _ => Vec::new(),
        };
        let (ours, theirs) = (cost(few.2, many.2), cost(few.3, many.3));
        report.add(name, "dump", PEER, (&ours, &theirs), Some(0.2), None);
    }
    Ok(())
}
