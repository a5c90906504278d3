//! Commands that are killed at any moment, and many at a time: the state stays consistent, nothing is
//! lost, and the next command works. The moments come from a seed (`ARCTERN_SEED`).
//! `ARCTERN_SOAK=1` makes it 200 kills and two minutes.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::crash::{self, alive};
use arctern_harness::host::{Host, run as run_command};
use arctern_harness::random::{Random, rounds};
use arctern_harness::skips::judge;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A command that is killed, what has to be there before, and how it may fail when it is repeated
/// because it had got through.
struct Attempt {
    before: &'static [&'static [&'static str]],
    command: &'static [&'static str],
    got_through: &'static [&'static str],
}

const CREATE: &[&str] = &["create", "--name", "c", "tiny", "sh", "-c", "while :; do sleep 1; done"];
const RUN: &[&str] =
    &["run", "-d", "-p", "8080:80", "--name", "c", "tiny", "sh", "-c", "while :; do sleep 1; done"];
const CHECKPOINT: &[&str] = &["container", "checkpoint", "c"];
const EXPORT: &[&str] = &["container", "checkpoint", "c", "--file", "@/c.tar"];
const NETWORK: &[&str] = &["network", "create", "lan"];
const GONE: &str = "no container with name";

/// Every command that changes something.
const ATTEMPTS: &[Attempt] = &[
    Attempt { before: &[], command: CREATE, got_through: &["is used by container"] },
    Attempt { before: &[], command: RUN, got_through: &["is used by container"] },
    Attempt { before: &[CREATE], command: &["start", "c"], got_through: &[] },
    Attempt { before: &[RUN], command: &["stop", "-t", "0", "c"], got_through: &[] },
    Attempt { before: &[RUN], command: &["kill", "c"], got_through: &["is exited, not running"] },
    Attempt { before: &[RUN], command: &["rm", "-f", "-t", "0", "c"], got_through: &[GONE] },
    Attempt { before: &[CREATE], command: &["rm", "c"], got_through: &[GONE] },
    Attempt { before: &[RUN], command: &["exec", "c", "sh", "-c", "sleep 0.1"], got_through: &[] },
    Attempt { before: &[RUN], command: CHECKPOINT, got_through: &["not running"] },
    Attempt { before: &[RUN], command: EXPORT, got_through: &["not running"] },
    Attempt {
        before: &[RUN],
        command: &["container", "checkpoint", "c", "--leave-running", "--file", "@/c.tar"],
        got_through: &[],
    },
    Attempt {
        before: &[RUN],
        command: &["container", "checkpoint", "c", "--tcp-established", "--file", "@/c.tar"],
        got_through: &["not running"],
    },
    Attempt {
        before: &[RUN, CHECKPOINT],
        command: &["container", "restore", "c"],
        got_through: &["is running, not"],
    },
    Attempt {
        before: &[RUN, EXPORT, &["rm", "c"]],
        command: &["container", "restore", "--file", "@/c.tar"],
        got_through: &["exists already"],
    },
    Attempt { before: &[], command: &["import", "@/tiny.tar", "other"], got_through: &[] },
    Attempt { before: &[], command: &["tag", "tiny", "third"], got_through: &[] },
    Attempt {
        before: &[&["tag", "tiny", "third"]],
        command: &["rmi", "third"],
        got_through: &["no image"],
    },
    Attempt {
        before: &[&["import", "--change", "ENV A=B", "@/tiny.tar", "other"]],
        command: &["rmi", "other"],
        got_through: &["no image"],
    },
    Attempt { before: &[], command: NETWORK, got_through: &["network lan exists"] },
    Attempt {
        before: &[NETWORK],
        command: &["network", "rm", "lan"],
        got_through: &["no network with name"],
    },
    Attempt {
        before: &[NETWORK],
        command: &["run", "-d", "--network", "lan", "--name", "c", "tiny", "sleep", "100"],
        got_through: &["is used by container"],
    },
];

/// Takes everything away that an attempt may have left by getting through.
fn clear(host: &Host) -> Result<()> {
    let _ = host.attempt(&["rm", "-f", "-t", "0", "c"])?;
    let _ = host.attempt(&["rm", "-f", "-t", "0", "again"])?;
    let _ = host.attempt(&["network", "rm", "--force", "lan"])?;
    let _ = host.attempt(&["rmi", "--force", "other"])?;
    let _ = host.attempt(&["rmi", "third"])?;
    let _ = std::fs::remove_file(host.dir().join("c.tar"));
    Ok(())
}

/// After `--repair` nothing is wrong.
fn consistent(host: &Host) -> Result<()> {
    host.arctern(&["system", "check", "--repair"]).context("repair")?;
    let left = host.attempt(&["system", "check"])?;
    let text = String::from_utf8_lossy(&left.stdout);
    ensure!(left.status.success() && text.is_empty(), "after the repair:\n{text}");
    Ok(())
}

/// The container of a checkpoint runs, or an archive or the container has all of it.
fn not_lost(host: &Host) -> Result<()> {
    let archive = host.dir().join("c.tar");
    let running = alive(host, "c")?;
    if archive.exists() {
        let file = archive.to_string_lossy();
        // Its port.
        host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        host.arctern(&["container", "restore", "--name", "again", "--file", &file])
            .context("the archive under its final name")?;
        ensure!(alive(host, "again")?, "the restored container does not run");
        host.arctern(&["rm", "-f", "-t", "0", "again"])?;
    } else if !running {
        host.arctern(&["container", "restore", "c"])
            .context("neither running nor in an archive")?;
        ensure!(alive(host, "c")?, "the restored container does not run");
    }
    let hidden = crash::hidden_files(host.dir())?;
    ensure!(hidden.is_empty(), "beside the archive: {hidden:?}");
    Ok(())
}

fn one_kill(
    host: &Host,
    attempt: &Attempt,
    spans: &mut BTreeMap<String, Duration>,
    random: &mut Random,
) -> Result<bool> {
    let place = host.dir().to_string_lossy().into_owned();
    let arguments = |list: &[&str]| -> Vec<String> {
        list.iter().map(|word| word.replace('@', &place)).collect()
    };
    let run = |list: &[&str]| -> Result<String> {
        let list = arguments(list);
        host.arctern(&list.iter().map(String::as_str).collect::<Vec<_>>())
    };
    clear(host)?;
    for command in attempt.before {
        run(command)?;
    }
    let words = arguments(attempt.command);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let key = attempt.command.join(" ");
    let Some(span) = spans.get(&key).copied() else {
        // The first time it is measured.
        let begin = Instant::now();
        host.arctern(&words)?;
        spans.insert(key, begin.elapsed());
        return Ok(false);
    };
    let mut child = host.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The moment of the kill is the point of the test, not a wait for something.
    std::thread::sleep(Duration::from_micros(random.below(span.as_micros() as u64)));
    child.kill()?;
    let killed = !child.wait()?.success();

    host.arctern(&["ps", "-a"])?;
    let inspected = host.attempt(&["inspect", "c"])?;
    let said = String::from_utf8_lossy(&inspected.stderr);
    ensure!(inspected.status.success() || said.contains(GONE), "inspect: {said}");
    if attempt.command.contains(&"checkpoint") {
        not_lost(host)?;
        let _ = host.attempt(&["rm", "-f", "-t", "0", "c"])?;
        let _ = std::fs::remove_file(host.dir().join("c.tar"));
        run(RUN)?;
    }
    let again = host.attempt(&words)?;
    let said = String::from_utf8_lossy(&again.stderr);
    let got_through = attempt.got_through.iter().any(|text| said.contains(text));
    ensure!(again.status.success() || got_through, "the repeated command: {said}");
    consistent(host)?;
    let removed = host.attempt(&["rm", "-f", "-t", "0", "c"])?;
    let said = String::from_utf8_lossy(&removed.stderr);
    ensure!(removed.status.success() || said.contains(GONE), "rm -f: {said}");
    Ok(killed)
}

#[test]
fn killed_commands_lose_nothing_and_can_be_repeated() -> Result<(), String> {
    judge("crash::kills", || {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&host)?;
        let mut random = Random::seeded();
        let mut spans = BTreeMap::new();
        let mut hits = 0;
        let count = rounds(25, 200);
        let mut kills = 0;
        while kills < count {
            let attempt = &ATTEMPTS[random.below(ATTEMPTS.len() as u64) as usize];
            let measured = spans.len();
            let hit = one_kill(&host, attempt, &mut spans, &mut random);
            hits +=
                usize::from(hit.with_context(|| {
                    format!("kill {kills}, of `{}`", attempt.command.join(" "))
                })?);
            kills += usize::from(measured == spans.len());
        }
        println!("{hits} of {kills} commands were killed");
        clear(&host)?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn a_killed_shim_leaves_a_container_that_can_be_used() -> Result<(), String> {
    judge("crash::shim", || {
        let host = Host::new()?;
        crash::tiny_image(&host)?;
        let endings: [&[&str]; 4] = [
            &["stop", "-t", "0", "c"],
            &["rm", "-f", "-t", "0", "c"],
            &["kill", "c"],
            &["container", "checkpoint", "c"],
        ];
        for ending in endings {
            clear(&host)?;
            host.arctern(RUN)?;
            crash::kill_shim(&host, "c")?;
            let list = host.arctern(&["ps"])?;
            ensure!(list.contains("Up "), "it does not run any more:\n{list}");
            ensure!(alive(&host, "c")?, "it does not run any more");
            host.arctern(&["exec", "c", "sh", "-c", ":"])?;
            let found = host.attempt(&["system", "check"])?;
            let text = String::from_utf8_lossy(&found.stdout);
            ensure!(
                found.status.code() == Some(1) && text.contains("its shim was killed"),
                "{text}"
            );
            host.arctern(ending).with_context(|| ending.join(" "))?;
            if ending[0] == "kill" {
                host.arctern(&["wait", "c"])?;
            }
            ensure!(host.arctern(&["ps", "-q"])?.is_empty(), "it still runs");
            if ending[0] == "stop" {
                let exited = host.arctern(&["ps", "-a"])?;
                ensure!(exited.contains("Exited (137)"), "{exited}");
                host.arctern(&["start", "c"])?;
                ensure!(alive(&host, "c")?, "it does not start again");
            }
            if ending[0] == "container" {
                host.arctern(&["container", "restore", "c"])?;
                ensure!(alive(&host, "c")?, "it is not restored");
            }
            consistent(&host)?;
        }
        clear(&host)?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn an_interrupted_checkpoint_or_restore_leaves_nothing() -> Result<(), String> {
    judge("crash::interrupt", || {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&host)?;
        let archive = host.dir().join("c.tar");
        let file = archive.to_string_lossy().into_owned();
        let export = ["container", "checkpoint", "c", "--file", &file];
        let restore = ["container", "restore", "--file", &file];
        let mut random = Random::seeded();
        let (mut ended, signals) = ([0, 0], ["INT", "TERM", "HUP"]);
        let mut spans = [Duration::ZERO; 2];
        host.arctern(RUN)?;
        for round in 0..rounds(16, 100) {
            let restores = !alive(&host, "c")?;
            let words: &[&str] = if restores { &restore } else { &export };
            if restores {
                let _ = host.attempt(&["rm", "c"])?;
            }
            let begin = Instant::now();
            let child = host.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            let span = spans[usize::from(restores)];
            if !span.is_zero() {
                // The moment of the signal is the point of the test, not a wait for something.
                std::thread::sleep(Duration::from_micros(random.below(span.as_micros() as u64)));
                let signal = signals[random.below(3) as usize];
                run_command(Command::new("kill").args(["-s", signal, &child.id().to_string()]))?;
            }
            let output = child.wait_with_output()?;
            spans[usize::from(restores)] = begin.elapsed();
            let said = String::from_utf8_lossy(&output.stderr);
            let context = || format!("round {round}, `{}`: {said}", words.join(" "));
            let found = host.attempt(&["system", "check", "--quick"])?;
            let text = String::from_utf8_lossy(&found.stdout);
            ensure!(text.is_empty() || !output.status.success(), "{}: {text}", context());
            let hidden = crash::hidden_files(host.dir())?;
            ensure!(hidden.is_empty(), "{}: {hidden:?}", context());
            if output.status.success() {
                // It was complete before the signal was seen.
                ensure!(restores == alive(&host, "c")?, "{}", context());
                if restores {
                    std::fs::remove_file(&archive)?;
                }
                continue;
            }
            ended[usize::from(restores)] += 1;
            // By the signal itself, when it came before anything was begun.
            let early = output.status.code().is_none();
            ensure!(early || said.contains("interrupted by a signal"), "{}", context());
            ensure!(text.is_empty(), "{}: {text}", context());
            match restores {
                true => {
                    let gone = !host.attempt(&["inspect", "c"])?.status.success();
                    ensure!(gone, "{}: there is a container", context());
                }
                false => {
                    ensure!(alive(&host, "c")?, "{}: it does not run", context());
                    ensure!(!archive.exists(), "{}: there is an archive", context());
                }
            }
        }
        println!("{} checkpoints and {} restores were ended", ended[0], ended[1]);
        clear(&host)?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

/// What commands may say when others were faster.
const FASTER: &[&str] = &[
    "no container with name",
    "is used by container",
    "exists already",
    "is running",
    "has ended meanwhile",
    // An `exec` is on its way in.
    "(youki:",
    // Another command killed it while it was being restored.
    " died",
    "not running",
    "not stopped",
    "has no checkpoint",
    "no image",
    "network net exists",
    "is on network",
    "no network with name",
    "is in use",
    "is used by",
];

fn random_command(random: &mut Random, place: &str) -> Vec<String> {
    let name = format!("n{}", random.below(5));
    let file = format!("{place}/{name}.tar");
    let words: Vec<&str> = match random.below(16) {
        0 | 1 => vec!["run", "-d", "--name", &name, "tiny", "sleep", "1000"],
        2 => vec!["create", "--name", &name, "tiny", "sleep", "1000"],
        3 => vec!["start", &name],
        4 => vec!["stop", "-t", "0", &name],
        5 => vec!["kill", &name],
        6 => vec!["rm", "-f", "-t", "0", &name],
        7 => vec!["exec", &name, "sh", "-c", ":"],
        8 => vec!["container", "checkpoint", &name],
        9 => vec!["container", "restore", &name],
        10 => vec!["container", "checkpoint", &name, "--leave-running", "--file", &file],
        11 => vec!["ps", "-a"],
        12 => vec!["run", "--rm", "--network", "net", "tiny", "sh", "-c", ":"],
        13 => vec!["import", "FILE", "other"],
        14 => vec!["rmi", "other"],
        _ => match random.below(3) {
            0 => vec!["network", "create", "net"],
            1 => vec!["network", "rm", "net"],
            _ => vec!["system", "check", "--quick", "--repair"],
        },
    };
    words
        .into_iter()
        .map(|word| if word == "FILE" { format!("{place}/tiny.tar") } else { word.to_owned() })
        .collect()
}

#[test]
fn many_commands_at_a_time_agree() -> Result<(), String> {
    judge("crash::parallel", || {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&host)?;
        let place = host.dir().to_string_lossy().into_owned();
        let end = Instant::now() + Duration::from_secs(rounds(10, 120) as u64);
        let wrong = Mutex::new(Vec::new());
        let done = Mutex::new(BTreeMap::<bool, usize>::new());
        std::thread::scope(|scope| {
            for number in 0..20 {
                let (host, place, wrong, done) = (&host, &place, &wrong, &done);
                scope.spawn(move || {
                    let mut random = Random::seeded_for(number);
                    while Instant::now() < end && wrong.lock().is_ok_and(|list| list.is_empty()) {
                        let words = random_command(&mut random, place);
                        let words: Vec<&str> = words.iter().map(String::as_str).collect();
                        match crash::within(host.command(&words), Duration::from_secs(120)) {
                            Ok(output) => {
                                let said = String::from_utf8_lossy(&output.stderr);
                                let found = String::from_utf8_lossy(&output.stdout);
                                let fine = output.status.success();
                                // Nothing was killed, so there is nothing to find.
                                let checked = words[0] == "system";
                                if checked
                                    && !found.is_empty()
                                    && let Ok(mut list) = wrong.lock()
                                {
                                    list.push(format!("system check: {found}"));
                                }
                                // Killed with its container.
                                let code = output.status.code();
                                let ended = words[0] == "exec" && code == Some(137);
                                let expected = fine
                                    || checked
                                    || ended
                                    || FASTER.iter().any(|text| said.contains(text));
                                if !expected && let Ok(mut list) = wrong.lock() {
                                    list.push(format!("`{}`: {said}", words.join(" ")));
                                }
                                if let Ok(mut counts) = done.lock() {
                                    *counts.entry(fine).or_default() += 1;
                                }
                            }
                            Err(error) => {
                                if let Ok(mut list) = wrong.lock() {
                                    list.push(format!("`{}`: {error:#}", words.join(" ")));
                                }
                            }
                        }
                    }
                });
            }
        });
        let wrong = wrong.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        println!("succeeded: {:?}", done.lock().map(|counts| counts.clone()));
        if !wrong.is_empty() {
            bail!("{}", wrong.join("\n"));
        }
        let found = host.attempt(&["system", "check"])?;
        let text = String::from_utf8_lossy(&found.stdout);
        ensure!(found.status.success() && text.is_empty(), "inconsistent:\n{text}");
        let _ = host.attempt(&["network", "rm", "--force", "net"])?;
        let ids = host.arctern(&["ps", "-a", "-q"])?;
        for id in ids.lines() {
            host.arctern(&["rm", "-f", "-t", "0", id])?;
        }
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}
