//! Real programs at work in containers: each goes on while it is checkpointed and left running, and
//! after it was checkpointed and restored under a new name, and compares what it counts and keeps.
//! `ARCTERN_SOAK=1` makes it ten rounds each; without it some take one round, the others are skipped.
//!
//! What they do is in tests/programs; their root file systems are made by `scripts/programs.sh`, and by
//! `scripts/image.sh` for those that other tests use too.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::engine::source;
use arctern_harness::host::Host;
use arctern_harness::random::rounds;
use arctern_harness::skips::{Skip, judge, judge_long};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a program may take until it has got on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Images whose programs an ordinary run takes, too.
const SAMPLE: [&str; 4] = ["postgres", "redis", "nginx", "node"];

/// Images that other tests use, too.
const COMMON: [&str; 2] = ["redis", "nginx"];

/// A program: its name, how it is run and asked.
struct Program<'a> {
    name: &'a str,
    /// Options of `arctern create`.
    options: &'a [&'a str],
    run: &'a [&'a str],
    ask: &'a [&'a str],
    /// It knows its files by their inode numbers, so the container is restored in place.
    in_place: bool,
}

/// Imports the root file system that the programs are in.
fn import(host: &Host, image: &str) -> Result<()> {
    if COMMON.contains(&image) {
        return host.image(image, &[]);
    }
    let made = Command::new(source().join("scripts/programs.sh")).arg(image).output()?;
    if made.status.code() == Some(69) {
        return Err(Skip(String::from_utf8_lossy(&made.stderr).trim().to_owned()).into());
    }
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tar = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    host.arctern(&["import", &tar, image]).map(drop)
}

impl Program<'_> {
    /// Starts it, with the files of tests/programs that are called as its image.
    fn start(&self, host: &Host, image: &str, name: &str) -> Result<()> {
        let create = [&["create", "--name", name][..], self.options, &[image], self.run].concat();
        host.arctern(&create)?;
        for file in std::fs::read_dir(source().join("tests/programs"))? {
            let path = file?.path();
            if path.file_stem().is_some_and(|stem| stem == image) {
                host.arctern(&["cp", &path.to_string_lossy(), &format!("{name}:/srv/")])?;
            }
        }
        host.arctern(&["start", name]).map(drop)
    }

    fn go_round(&self, host: &Host, image: &str) -> Result<()> {
        let archive = host.dir().join("archive.tar").to_string_lossy().into_owned();
        let whole = ["--tcp-established", "--file-locks"];
        let to_file = [&whole[..], &["--compress", "none", "--file", &archive]].concat();
        let mut name = format!("{}-0", self.name);
        self.start(host, image, &name)?;
        let mut at = self.begins(host, &name)?;
        for round in 0..rounds(1, 10) {
            let left = ["container", "checkpoint", "--leave-running", &name];
            host.arctern(&[&left[..], &to_file].concat())?;
            std::fs::remove_file(&archive)?;
            let gets_on = self.gets_on(host, &name, at);
            at = gets_on.with_context(|| format!("left running in round {round}"))?;
            let checkpoint = ["container", "checkpoint", &name];
            if self.in_place {
                host.arctern(&[&checkpoint[..], &whole].concat())?;
                host.arctern(&[&["container", "restore", &name][..], &whole].concat())?;
            } else {
                host.arctern(&[&checkpoint[..], &to_file].concat())?;
                host.arctern(&["rm", &name])?;
                name = format!("{}-{}", self.name, round + 1);
                // What it may do beyond the usual is what it was given here.
                let restore =
                    ["container", "restore", "--trust", "--name", &name, "--file", &archive];
                host.arctern(&[&restore[..], &whole].concat())?;
                std::fs::remove_file(&archive)?;
            }
            let gets_on = self.gets_on(host, &name, at);
            at = gets_on.with_context(|| format!("restored in round {round}"))?;
        }
        host.arctern(&["rm", "-f", "-t", "0", &name]).map(drop)
    }

    /// What it has come to; fails when it finds something wrong.
    fn ask(&self, host: &Host, name: &str) -> Result<u64> {
        let told = host.arctern(&[&["exec", name][..], self.ask].concat())?;
        let told = told.trim();
        told.parse().with_context(|| format!("it says `{told}`"))
    }

    /// Asks until it has got on by some steps.
    fn gets_on(&self, host: &Host, name: &str, from: u64) -> Result<u64> {
        let begin = Instant::now();
        loop {
            let now = self.ask(host, name)?;
            if now > from + 2 {
                return Ok(now);
            }
            ensure!(begin.elapsed() < PATIENCE, "it was at {from}, and is at {now} after a minute");
            // It counts in its own time and tells nobody.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until it is at work.
    fn begins(&self, host: &Host, name: &str) -> Result<u64> {
        let begin = Instant::now();
        loop {
            match self.ask(host, name) {
                Ok(now) if now > 2 => return Ok(now),
                told if begin.elapsed() > PATIENCE => {
                    let logs = host.arctern(&["logs", name]).unwrap_or_default();
                    bail!("it does not begin: {told:?}\n{logs}");
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// Runs programs of one image, one after the other.
fn rounds_of(test: &str, image: &str, programs: &[Program<'_>]) -> Result<(), String> {
    let judge = if SAMPLE.contains(&image) { judge } else { judge_long };
    judge(test, || {
        let host = Host::new()?;
        import(&host, image)?;
        for program in programs {
            program.go_round(&host, image).with_context(|| program.name.to_owned())?;
        }
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn postgres_loses_no_commit() -> Result<(), String> {
    let (run, ask) = (["/srv/postgres.sh", "main"], ["/srv/postgres.sh", "ask"]);
    let program = Program { name: "postgres", options: &[], run: &run, ask: &ask, in_place: false };
    rounds_of("programs::postgres", "postgres", &[program])
}

#[test]
fn redis_keeps_what_it_has_answered() -> Result<(), String> {
    let (run, ask) = (["/srv/redis.sh", "main"], ["/srv/redis.sh", "ask"]);
    let program = Program { name: "redis", options: &[], run: &run, ask: &ask, in_place: false };
    rounds_of("programs::redis", "redis", &[program])
}

#[test]
fn nginx_serves_on() -> Result<(), String> {
    let (run, ask) = (["/srv/nginx.sh", "main"], ["/srv/nginx.sh", "ask"]);
    let program = Program { name: "nginx", options: &[], run: &run, ask: &ask, in_place: false };
    rounds_of("programs::nginx", "nginx", &[program])
}

#[test]
fn node_keeps_its_timers_and_workers() -> Result<(), String> {
    let (run, ask) = (["node", "/srv/node.js"], ["node", "/srv/node.js", "ask"]);
    let program = Program { name: "node", options: &[], run: &run, ask: &ask, in_place: false };
    rounds_of("programs::node", "node", &[program])
}

#[test]
fn java_keeps_its_heap() -> Result<(), String> {
    let (run, ask) = (["java", "-Xmx128m", "/srv/java.java"], ["cat", "/srv/counts"]);
    let program = Program { name: "java", options: &[], run: &run, ask: &ask, in_place: false };
    rounds_of("programs::java", "java", &[program])
}

#[test]
fn what_is_at_work_on_a_desk_goes_on() -> Result<(), String> {
    let words = ["tmux", "gcc", "sqlite", "python"]
        .map(|what| (what, ["/srv/desk.sh", what], ["/srv/desk.sh", "ask", what]));
    let programs: Vec<Program<'_>> = words
        .iter()
        .map(|(name, run, ask)| Program {
            name,
            options: &[],
            run,
            ask,
            in_place: *name == "sqlite",
        })
        .collect();
    rounds_of("programs::desk", "desk", &programs)
}

#[test]
fn systemd_goes_on_as_init() -> Result<(), String> {
    let (run, ask) = (["/srv/systemd.sh", "main"], ["/srv/systemd.sh", "ask"]);
    let options = ["--cap-add", "SYS_ADMIN", "--tmpfs", "/run", "--tmpfs", "/tmp"];
    let program =
        Program { name: "systemd", options: &options, run: &run, ask: &ask, in_place: false };
    rounds_of("programs::systemd", "systemd", &[program])
}
