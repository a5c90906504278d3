//! Containers: `arctern` beside Podman with runc and CRIU.
//!
//! The peer lives in namespaces of its own (`scripts/peer.sh start`), Arctern on a host of its own
//! (another network namespace); both are entered by nsenter for every command, so that this costs
//! both the same. Programs run as root, since CRIU cannot read the limits of others here.

use crate::report::{self, Report, Samples};
use anyhow::{Context, Result, bail};
use arctern_harness::engine::source;
use arctern_harness::host::{Host, run};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PEER: &str = "Podman 5.8 + runc + CRIU";

/// A program in a container.
struct Case {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Goals for checkpoint, restore, and frozen time with the container left running.
    goals: [Option<f64>; 3],
}

const CASES: [Case; 2] = [
    Case {
        name: "nginx",
        arguments: &[
            "sh",
            "-c",
            "sed -i s/www-data/root/ /etc/nginx/nginx.conf; exec nginx -g 'daemon off;'",
        ],
        goals: [Some(0.2), Some(0.2), Some(0.1)],
    },
    Case {
        name: "shell loop",
        arguments: &["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.1; done"],
        goals: [None, None, None],
    },
];

/// A container engine that takes Podman's commands.
pub trait Engine {
    /// One of its commands.
    fn command(&self, arguments: &[&str]) -> Command;
    /// Where this engine writes archives, as it sees it.
    fn archive(&self) -> String;
}

struct Arctern<'a>(&'a Host);

impl Engine for Arctern<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        self.0.command(arguments)
    }

    fn archive(&self) -> String {
        self.0.dir().join("bench.tar.zst").to_string_lossy().into_owned()
    }
}

/// Podman in the peer's world.
pub struct Podman {
    pid: String,
}

impl Podman {
    /// Starts the peer's world, in which `share` is `/tmp/share`.
    pub fn start(share: &Path) -> Result<Self> {
        let script = source().join("scripts/peer.sh");
        let started = Command::new(&script)
            .arg("start")
            .env("ARCTERN_PEER_SHARE", share)
            .stdin(Stdio::null())
            .output()?;
        if !started.status.success() {
            bail!("{}", String::from_utf8_lossy(&started.stderr).trim());
        }
        let pid = std::fs::read_to_string("/run/arctern-peer/pid")?.trim().to_owned();
        Ok(Self { pid })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = Command::new(source().join("scripts/peer.sh")).arg("stop").output();
    }
}

impl Engine for Podman {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target", &self.pid, "--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd",
        ]);
        command.arg("/usr/bin/podman").args(arguments);
        command.env_clear().env("HOME", "/root").env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn archive(&self) -> String {
        "/tmp/share/bench.tar.zst".to_owned()
    }
}

#[derive(Default)]
struct Times {
    checkpoint: Samples,
    restore: Samples,
    frozen: Samples,
    leave: Samples,
    leave_frozen: Samples,
    failure: Option<String>,
}

fn timed(command: &mut Command) -> Result<(Duration, Value)> {
    let start = Instant::now();
    let output = run(command.stdin(Stdio::null()))?;
    let time = start.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    Ok((time, serde_json::from_str(&text).unwrap_or(Value::Null)))
}

fn frozen(stats: &Value) -> Result<Duration> {
    let time = &stats["container_statistics"][0]["criu_statistics"]["frozen_time"];
    Ok(Duration::from_micros(time.as_u64().context("the statistics hold no frozen time")?))
}

impl Times {
    fn round(&mut self, engine: &dyn Engine, case: &Case, counted: bool) -> Result<()> {
        let archive = engine.archive();
        let mut start = vec!["run", "-d", "--name", "bench", "bench-image"];
        start.extend(case.arguments);
        run(&mut engine.command(&start))?;
        // Settled: what a program does at its start is not measured.
        std::thread::sleep(Duration::from_millis(300));
        let export = |more: &[&'static str]| {
            let mut arguments =
                vec!["container", "checkpoint", "--print-stats", "--compress", "zstd"];
            arguments.extend(more);
            arguments.extend(["--export", &archive, "bench"]);
            timed(&mut engine.command(&arguments))
        };
        let (leave, leave_stats) = export(&["--leave-running"])?;
        let (checkpoint, stats) = export(&[])?;
        run(&mut engine.command(&["rm", "bench"]))?;
        let (restore, _) =
            timed(&mut engine.command(&["container", "restore", "--import", &archive]))?;
        let answer = run(&mut engine.command(&["exec", "bench", "true"]));
        run(&mut engine.command(&["rm", "-f", "-t", "0", "bench"]))?;
        answer.context("the restored container does not run")?;
        if counted {
            self.leave.push(leave);
            self.leave_frozen.push(frozen(&leave_stats)?);
            self.checkpoint.push(checkpoint);
            self.frozen.push(frozen(&stats)?);
            self.restore.push(restore);
        }
        Ok(())
    }
}

/// Measures every container whose name contains `only`.
pub fn measure(only: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(only)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    let image = run(Command::new(source().join("scripts/image.sh")).arg("nginx"))?;
    let image = String::from_utf8_lossy(&image.stdout).trim().to_owned();
    let host = Host::new()?;
    host.arctern(&["import", &image, "bench-image"])?;
    let share = host.dir().join("share");
    std::fs::create_dir(&share)?;
    std::fs::hard_link(&image, share.join("image.tar"))
        .or_else(|_| std::fs::copy(&image, share.join("image.tar")).map(|_| ()))?;
    let podman = Podman::start(&share).and_then(|podman| {
        run(&mut podman.command(&["import", "/tmp/share/image.tar", "bench-image"]))?;
        let _ = podman.command(&["rm", "-f", "-t", "0", "bench"]).output();
        Ok(podman)
    });
    for case in cases {
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        for round in 0..=rounds {
            let counted = round > 0;
            if ours.failure.is_none() {
                ours.failure =
                    ours.round(&Arctern(&host), case, counted).err().map(|e| format!("{e:#}"));
            }
            if theirs.failure.is_none() {
                theirs.failure = match &podman {
                    Ok(podman) => {
                        theirs.round(podman, case, counted).err().map(|e| format!("{e:#}"))
                    }
                    Err(error) => Some(format!("{error:#}")),
                };
            }
        }
        let missing = report::missing(ours.failure.as_deref(), theirs.failure.as_deref());
        let mut add = |what: &str, a: &Samples, b: &Samples, goal| {
            report.add(case.name, what, PEER, (a, b), goal, missing.clone());
        };
        add("checkpoint", &ours.checkpoint, &theirs.checkpoint, case.goals[0]);
        add("frozen", &ours.frozen, &theirs.frozen, None);
        add("restore", &ours.restore, &theirs.restore, case.goals[1]);
        add("checkpoint, leave run.", &ours.leave, &theirs.leave, None);
        add("frozen, leave running", &ours.leave_frozen, &theirs.leave_frozen, case.goals[2]);
    }
    Ok(())
}
