//! Real programs in containers, checkpointed and restored over and over, each time under a new name.
//! `ARCTERN_SOAK=1` makes it twenty rounds.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::host::{Host, run as run_command};
use arctern_harness::random::rounds;
use arctern_harness::skips::judge;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// Checkpoints `name-0` to a file and restores it as `name-1`, and so on; after each restore the
/// program is asked. At the end nothing may be left on the host.
fn go_round(
    host: &Host,
    name: &str,
    file: &str,
    publish: Option<&str>,
    mut ask: impl FnMut(&Host, &str) -> Result<()>,
) -> Result<()> {
    let archive = host.dir().join(file);
    let archive = archive.to_string_lossy().into_owned();
    let count = rounds(3, 20);
    ask(host, &format!("{name}-0")).context("before the first checkpoint")?;
    for round in 0..count {
        let (old, new) = (format!("{name}-{round}"), format!("{name}-{}", round + 1));
        host.arctern(&["container", "checkpoint", &old, "--file", &archive])?;
        host.arctern(&["stop", &old]).context("stop of a stopped container")?;
        host.arctern(&["rm", &old])?;
        let mut arguments = vec!["container", "restore", "--name", &new, "--file", &archive];
        if let Some(publish) = publish {
            arguments.extend(["--publish", publish]);
        }
        host.arctern(&arguments)?;
        ask(host, &new).with_context(|| format!("after round {round}"))?;
        std::fs::remove_file(&archive)?;
    }
    host.arctern(&["rm", "-f", "-t", "0", &format!("{name}-{count}")])?;
    let left = host.leftovers()?;
    ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
    Ok(())
}

#[test]
fn a_removed_container_leaves_nothing() -> Result<(), String> {
    judge("containers::plain", || {
        let host = Host::new()?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        host.arctern(&["run", "-d", "-p", "8080:80", "--name", "web", "nginx"])?;
        let page = host.http("127.0.0.1:8080")?;
        ensure!(page.contains("This page comes from a container."), "the page is {page}");
        host.arctern(&["stop", "web"])?;
        host.arctern(&["rm", "web"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn nginx_serves_after_every_restore() -> Result<(), String> {
    judge("containers::nginx", || {
        let host = Host::new()?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        // First as people begin, without a port.
        host.arctern(&["run", "-d", "--name", "nginx-0", "nginx"])?;
        host.arctern(&["stop", "nginx-0"])?;
        host.arctern(&["rm", "nginx-0"])?;
        host.arctern(&["run", "-d", "-p", "8080:80", "--name", "nginx-0", "nginx"])?;
        let mut served = 0;
        go_round(&host, "nginx", "nginx.tar.gz", None, |host, name| {
            let page = host.http("127.0.0.1:8080")?;
            ensure!(page.contains("This page comes from a container."), "the page is {page}");
            served += 1;
            let log = host.arctern(&["exec", name, "cat", "/var/log/nginx/access.log"])?;
            ensure!(log.lines().count() == served, "{served} requests, but the log says:\n{log}");
            Ok(())
        })
    })
}

/// Sends redis commands and reads one answer for each.
fn redis(
    stream: &mut TcpStream,
    commands: impl Iterator<Item = Vec<String>>,
) -> Result<Vec<String>> {
    let mut request = Vec::new();
    let mut count = 0;
    for command in commands {
        write!(request, "*{}\r\n", command.len())?;
        for word in command {
            write!(request, "${}\r\n{word}\r\n", word.len())?;
        }
        count += 1;
    }
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&request));
        let mut reader = BufReader::new(stream);
        let mut answers = Vec::with_capacity(count);
        while answers.len() < count {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end();
            match line.strip_prefix('$').map(str::parse::<usize>) {
                Some(Ok(length)) => {
                    let mut value = vec![0; length + 2];
                    reader.read_exact(&mut value)?;
                    answers.push(String::from_utf8_lossy(&value[..length]).into_owned());
                }
                Some(Err(_)) => answers.push("nil".to_owned()),
                None if line.is_empty() => bail!("redis closed the connection"),
                None => answers.push(line.to_owned()),
            }
        }
        Ok(answers)
    })
}

#[test]
fn redis_keeps_every_key() -> Result<(), String> {
    const KEYS: usize = 100_000;
    let words =
        |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
    judge("containers::redis", || {
        let host = Host::new()?;
        host.image("redis", &[])?;
        host.arctern(&[
            "run",
            "-d",
            "-p",
            "6379:6379",
            "--name",
            "redis-0",
            "redis",
            "redis-server",
            "--protected-mode",
            "no",
            "--appendonly",
            "yes",
            "--dir",
            "/var/lib/redis",
        ])?;
        let mut stream = host.connect("127.0.0.1:6379")?;
        let answers = redis(
            &mut stream,
            (0..KEYS).map(|i| words(&["SET", &format!("key:{i}"), &format!("value {}", i * 7)])),
        )?;
        ensure!(answers.iter().all(|answer| answer == "+OK"), "not every key could be set");
        drop(stream);
        let mut round = 0;
        go_round(&host, "redis", "redis.tar.zst", None, |host, _| {
            let mut stream = host.connect("127.0.0.1:6379")?;
            let answers =
                redis(&mut stream, (0..KEYS).map(|i| words(&["GET", &format!("key:{i}")])))?;
            let wrong = answers
                .iter()
                .enumerate()
                .filter(|(i, answer)| **answer != format!("value {}", i * 7))
                .count();
            ensure!(wrong == 0, "{wrong} of {KEYS} keys differ");
            let count = redis(&mut stream, std::iter::once(words(&["INCR", "rounds"])))?;
            round += 1;
            ensure!(count == [format!(":{round}")], "round {round}, but redis counts {count:?}");
            let size = redis(&mut stream, std::iter::once(words(&["DBSIZE"])))?;
            ensure!(size == [format!(":{}", KEYS + 1)], "redis holds {size:?} keys");
            Ok(())
        })
    })
}

fn question(reader: &mut BufReader<TcpStream>, text: &str) -> Result<serde_json::Value> {
    writeln!(reader.get_mut(), "{text}")?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("`{text}` was answered with `{line}`"))
}

#[test]
fn python_keeps_threads_and_children() -> Result<(), String> {
    judge("containers::python", || {
        let host = Host::new()?;
        host.image("python", &[r#"CMD ["python3", "/srv/server.py"]"#, "STOPSIGNAL SIGKILL"])?;
        host.arctern(&["run", "-d", "-p", "7000:7000", "--name", "python-0", "python"])?;
        let mut asked = 0u64;
        let mut before = serde_json::Value::Null;
        go_round(&host, "python", "python.tar", None, |host, _| {
            let mut reader = BufReader::new(host.connect("127.0.0.1:7000")?);
            let now = question(&mut reader, "status")?;
            asked += 1;
            ensure!(now["errors"] == 0, "the server counted errors: {now}");
            ensure!(now["children"] == serde_json::json!([asked, asked]), "children: {now}");
            ensure!(now["alive"] == serde_json::json!([true, true]), "children: {now}");
            ensure!(before.is_null() || now["pid"] == before["pid"], "pid: {before} {now}");
            if !before.is_null() {
                ensure!(
                    now["loop"].as_u64() >= before["loop"].as_u64(),
                    "the loop counts back: {before} {now}"
                );
                let kept = question(&mut reader, &format!("get key-{}", asked - 1))?;
                ensure!(
                    kept == format!("text of {}", asked - 1),
                    "the store lost its text: {kept}"
                );
            }
            question(&mut reader, "slow 0.05")?;
            let later = question(&mut reader, "status")?;
            asked += 1;
            for thread in 0..4 {
                ensure!(
                    later["threads"][thread].as_u64() > now["threads"][thread].as_u64(),
                    "thread {thread} stands still: {now} {later}"
                );
            }
            question(&mut reader, &format!("put key-{asked} text of {asked}"))?;
            before = later;
            Ok(())
        })
    })
}

#[test]
fn an_init_with_threads_is_stopped_every_time() -> Result<(), String> {
    judge("containers::threads", || {
        let host = Host::new()?;
        host.image("redis", &[])?;
        let run = ["run", "-d", "--network", "none", "--name", "redis", "redis"];
        host.arctern(&[&run[..], &["redis-server", "--save", ""]].concat())?;
        // Whichever thread of an init ends last waits for all others to be reaped.
        for round in 0..rounds(8, 100) {
            let mut checkpoint = Command::new("timeout");
            let command = host.command(&["container", "checkpoint", "redis"]);
            checkpoint.args(["--signal=KILL", "30"]).arg(command.get_program());
            run_command(checkpoint.args(command.get_args()))
                .with_context(|| format!("round {round}"))?;
            host.arctern(&["container", "restore", "redis"])?;
        }
        host.arctern(&["rm", "-f", "-t", "0", "redis"])?;
        Ok(())
    })
}

#[test]
fn checkpoint_without_a_file_stays_with_the_container() -> Result<(), String> {
    judge("containers::local", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        let script = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.05; done";
        host.arctern(&["run", "-d", "--name", "counter", "nginx", "sh", "-c", script])?;
        for _ in 0..2 {
            host.arctern(&["container", "checkpoint", "counter"])?;
            host.arctern(&["container", "restore", "counter"])?;
        }
        host.arctern(&["container", "checkpoint", "--leave-running", "counter"])?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        host.arctern(&["stop", "-t", "0", "counter"])?;
        let log = host.arctern(&["logs", "counter"])?;
        for (index, line) in log.lines().enumerate() {
            ensure!(line == (index + 1).to_string(), "line {} of the log is `{line}`", index + 1);
        }
        ensure!(log.lines().count() > 5, "the counter stands still: {log}");
        host.arctern(&["rm", "counter"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}

#[test]
fn a_terminal_comes_along() -> Result<(), String> {
    judge("containers::terminal", || {
        let host = Host::new()?;
        host.image("nginx", &[])?;
        // The terminal is asked for its name each time, and written to by that name and as /dev/tty.
        let script = "i=0; while :; do i=$((i + 1)); echo $i $(tty) > /dev/tty; sleep 0.05; done";
        host.arctern(&["run", "-dit", "--name", "tty-0", "nginx", "sh", "-c", script])?;
        let lines = |name: &str| -> Result<Vec<usize>> {
            let log = host.arctern(&["logs", name])?;
            let numbers = log.lines().map(|line| {
                let number = line.trim_end().strip_suffix(" /dev/pts/0");
                number.and_then(|n| n.parse().ok()).with_context(|| format!("`{line}`"))
            });
            numbers.collect()
        };
        go_round(&host, "tty", "tty.tar.gz", None, |host, name| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let seen = lines(name)?;
            ensure!(seen.len() > 1, "the terminal shows {seen:?}");
            ensure!(
                seen.windows(2).all(|pair| pair[1] == pair[0] + 1),
                "the terminal shows {seen:?}"
            );
            let mounts = host.arctern(&["exec", name, "cat", "/proc/self/mountinfo"])?;
            let console = mounts.lines().find(|line| line.contains(" /dev/console "));
            ensure!(console.is_some_and(|c| c.contains(" /0 ")), "the mounts are:\n{mounts}");
            Ok(())
        })
    })
}

#[test]
fn one_file_is_restored_many_times() -> Result<(), String> {
    judge("containers::clones", || {
        let host = Host::new()?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        host.arctern(&["run", "-d", "-p", "8080:80", "--name", "origin", "nginx"])?;
        host.http("127.0.0.1:8080")?;
        let archive = host.dir().join("origin.tar.zst");
        let archive = archive.to_string_lossy().into_owned();
        host.arctern(&[
            "container",
            "checkpoint",
            "origin",
            "--leave-running",
            "--file",
            &archive,
        ])?;
        host.http("127.0.0.1:8080").context("the original goes on")?;
        for index in 1..4 {
            let (name, port) = (format!("clone-{index}"), format!("{}:80", 8080 + index));
            host.arctern(&[
                "container",
                "restore",
                "--name",
                &name,
                "--file",
                &archive,
                "--publish",
                &port,
            ])?;
        }
        for index in 0..4 {
            host.http(&format!("127.0.0.1:{}", 8080 + index))
                .with_context(|| format!("server {index}"))?;
        }
        host.arctern(&["rm", "-f", "-t", "0", "origin", "clone-1", "clone-2", "clone-3"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    })
}
