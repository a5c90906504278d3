//! Commands that are killed at any moment, and many at a time: the state stays consistent, nothing is
//! lost, and the next command works. The moments come from a seed (`ARCTERN_SEED`).
//! `ARCTERN_SOAK=1` makes it 200 kills and two minutes.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::attempts::{ATTEMPTS, Attempt, FASTER, GONE, RUN, random_command};
use arctern_harness::crash::{self, alive};
use arctern_harness::host::{Host, run as run_command};
use arctern_harness::random::{Random, rounds};
use arctern_harness::registry::{ADDRESS, Registry};
use arctern_harness::skips::judge;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Takes everything away that an attempt may have left by getting through.
fn clear(host: &Host) -> Result<()> {
    for name in ["c", "again"] {
        let _ = host.attempt(&["rm", "-f", "-t", "0", name])?;
    }
    let _ = host.attempt(&["network", "rm", "--force", "lan"])?;
    let _ = host.attempt(&["volume", "rm", "v"])?;
    for image in ["other", "frozen", &format!("{ADDRESS}/team/app:1")] {
        let _ = host.attempt(&["rmi", "--force", image])?;
    }
    let _ = host.attempt(&["rmi", "third"])?;
    let _ = host.attempt(&["image", "prune", "--force"])?;
    for file in ["c.tar", "saved.tar", "copy", "v.tar"] {
        let _ = std::fs::remove_file(host.dir().join(file));
    }
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

/// A host with a registry in its network.
struct World {
    host: Host,
    registry: Registry,
}

impl World {
    fn new() -> Result<World> {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&host)?;
        let mut registry = Registry::new()?;
        registry.serve(&host)?;
        registry.login(&host)?;
        // A layer that nothing else has.
        crash::image_of(&host, "app", &["/bin/cat"])?;
        registry.arctern(&host, &["push", "app", &format!("{ADDRESS}/team/app:1")])?;
        host.arctern(&["rmi", "app"])?;
        Ok(World { host, registry })
    }

    /// A command of the list: `@` is the directory of the host, `%` the registry.
    fn command(&self, list: &[&str]) -> Result<Command> {
        let place = self.host.dir().to_string_lossy();
        let words: Vec<String> =
            list.iter().map(|word| word.replace('@', &place).replace('%', ADDRESS)).collect();
        self.registry.command(&self.host, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn one_kill(
    world: &World,
    attempt: &Attempt,
    spans: &mut BTreeMap<String, Duration>,
    random: &mut Random,
) -> Result<bool> {
    let host = &world.host;
    clear(host)?;
    for command in attempt.before {
        run_command(&mut world.command(command)?)?;
    }
    let key = attempt.command.join(" ");
    let Some(span) = spans.get(&key).copied() else {
        // The first time it is measured.
        let begin = Instant::now();
        run_command(&mut world.command(attempt.command)?)?;
        spans.insert(key, begin.elapsed());
        return Ok(false);
    };
    let mut child =
        world.command(attempt.command)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The moment of the kill is the point of the test, not a wait for something.
    std::thread::sleep(Duration::from_micros(random.below(span.as_micros() as u64)));
    child.kill()?;
    let killed = !child.wait()?.success();

    host.arctern(&["ps", "-a"])?;
    let inspected = host.attempt(&["inspect", "c"])?;
    let said = String::from_utf8_lossy(&inspected.stderr);
    ensure!(inspected.status.success() || said.contains(GONE), "inspect: {said}");
    if attempt.captures {
        not_lost(host)?;
        clear(host)?;
        for command in attempt.before {
            run_command(&mut world.command(command)?)?;
        }
    }
    let again = world.command(attempt.command)?.output()?;
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
        let world = World::new()?;
        let host = &world.host;
        let mut random = Random::seeded();
        let mut spans = BTreeMap::new();
        let mut hits = 0;
        let count = rounds(25, 200);
        let mut kills = 0;
        while kills < count {
            // `ARCTERN_ATTEMPT` leaves those of one kind.
            let only = std::env::var("ARCTERN_ATTEMPT").unwrap_or_default();
            let attempt = &ATTEMPTS[random.below(ATTEMPTS.len() as u64) as usize];
            if !attempt.command.join(" ").contains(&only) {
                continue;
            }
            let measured = spans.len();
            let hit = one_kill(&world, attempt, &mut spans, &mut random);
            hits +=
                usize::from(hit.with_context(|| {
                    format!("kill {kills}, of `{}`", attempt.command.join(" "))
                })?);
            kills += usize::from(measured == spans.len());
        }
        println!("{hits} of {kills} commands were killed, of {} kinds", spans.len());
        clear(host)?;
        let World { host, registry } = world;
        drop(registry);
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
        let tar = host.dir().join("tiny.tar").to_string_lossy().into_owned();
        let endings: [&[&str]; 5] = [
            &["stop", "-t", "0", "c"],
            &["restart", "-t", "0", "c"],
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
            for command in [
                &["exec", "c", "sh", "-c", ":"][..],
                &["exec", "-d", "c", "sh", "-c", ":"],
                &["pause", "c"],
                &["unpause", "c"],
                &["cp", &tar, "c:/x"],
                &["top", "c"],
                &["stats", "--no-stream", "c"],
                &["logs", "c"],
                &["rename", "c", "d"],
                &["rename", "d", "c"],
            ] {
                host.arctern(command)?;
            }
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
            let restarted = ending[0] == "restart";
            ensure!(alive(&host, "c")? == restarted, "it is not as it should be");
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

#[test]
fn a_restore_whose_removal_was_cut_off_is_forgotten() -> Result<(), String> {
    judge("crash::cut-off", || {
        let host = Host::new()?;
        crash::leave_orphans_to_init()?;
        crash::tiny_image(&host)?;
        let archive = host.dir().join("c.tar");
        let file = archive.to_string_lossy().into_owned();
        host.arctern(RUN)?;
        host.arctern(&["container", "checkpoint", "c", "--file", &file])?;
        host.arctern(&["rm", "c"])?;
        let restore = ["container", "restore", "--file", &file];
        let mut command = host.command(&restore);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let containers = host.dir().join("root/containers");
        let begin = Instant::now();
        // The moment after its record was written.
        let directory = loop {
            let mut all = std::fs::read_dir(&containers)?.flatten().map(|entry| entry.path());
            if let Some(found) = all.find(|path| path.join("import").exists()) {
                break found;
            }
            ensure!(begin.elapsed() < Duration::from_secs(20), "nothing is restored");
            std::thread::yield_now();
        };
        child.kill()?;
        ensure!(!child.wait()?.success(), "it got through");
        // A removal got so far when the disk was full: the record is left.
        std::fs::remove_dir_all(directory)?;
        let left = host.arctern(&["ps", "-a"])?;
        ensure!(left.lines().count() == 1, "it is still there:\n{left}");
        consistent(&host)?;
        host.arctern(&restore)?;
        ensure!(alive(&host, "c")?, "it is not restored");
        clear(&host)
    })
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
                        let words = random_command(&mut random);
                        let words: Vec<String> =
                            words.iter().map(|word| word.replace('@', place)).collect();
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
        host.arctern(&["volume", "prune", "--force"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}
