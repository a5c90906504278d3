//! Checkpoints that go through a pipe: `checkpoint --file - | restore --file -`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use arctern_harness::crash::{alive, tiny_image};
use arctern_harness::host::{Host, run};
use arctern_harness::lab::Lab;
use arctern_harness::machine::Machine;
use arctern_harness::skips::judge;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

/// Counts, and says how far it is when it is asked.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i > /n; sleep 0.01; done";

const CHECKPOINT: [&str; 5] = ["container", "checkpoint", "c", "--file", "-"];
const RESTORE: [&str; 6] = ["container", "restore", "--file", "-", "--name", "there"];

fn start(host: &Host) -> Result<()> {
    host.arctern(&["run", "-d", "--name", "c", "tiny", "sh", "-c", COUNTER])?;
    count(host, "c", 1).map(drop)
}

/// What the counter is at, when it has got so far.
fn count(host: &Host, name: &str, least: u64) -> Result<u64> {
    let script = format!(
        "x=; until [ \"${{x:-0}}\" -ge {least} ]; do read x < /n; done 2>/dev/null; echo $x"
    );
    let said = host.arctern(&["exec", name, "sh", "-c", &script])?;
    said.parse().with_context(|| format!("it says {said}"))
}

fn goes_on(host: &Host) -> Result<()> {
    let now = count(host, "c", 1)?;
    count(host, "c", now + 1).map(drop)
}

/// Runs both, the first one's standard output being the other's standard input.
fn piped(mut from: Command, mut to: Command) -> Result<(Output, Output)> {
    let mut first = from.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stream = first.stdout.take().context("no stream")?;
    let second = to.stdin(stream).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let second = second.wait_with_output()?;
    Ok((first.wait_with_output()?, second))
}

fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// Moves the counter through a pipe to a command, which restores it.
fn moved(from: &Host, to: &Host, restore: Command) -> Result<()> {
    let before = count(from, "c", 1)?;
    let checkpoint = [&CHECKPOINT[..], &["--with-image"]].concat();
    let (first, second) = piped(from.command(&checkpoint), restore)?;
    ensure!(first.status.success(), "{}", said(&first));
    ensure!(second.status.success(), "{}", said(&second));
    ensure!(!alive(from, "c")?, "it runs on");
    ensure!(count(to, "there", before + 1)? > before, "it began anew");
    to.arctern(&["rm", "-f", "-t", "0", "there"])?;
    from.arctern(&["rm", "c"]).map(drop)
}

#[test]
fn a_checkpoint_goes_through_a_pipe_and_through_ssh() -> Result<(), String> {
    judge("pipes::both", || {
        let lab = Lab::new()?;
        let machines = [Machine::new(&lab, 1)?, Machine::new(&lab, 2)?];
        let [a, b] = &machines;
        for machine in &machines {
            tiny_image(&machine.host)?;
        }
        start(&a.host)?;
        moved(&a.host, &b.host, b.host.command(&RESTORE))?;
        start(&b.host)?;
        let program = a.host.command(&RESTORE);
        // The words after the namespaces: arctern, its roots, the command.
        let words: Vec<String> =
            program.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let at = words.iter().position(|word| word.ends_with("/arctern")).context("no arctern")?;
        let mut ssh = b.host.enter("ssh");
        for option in a.sshd.options().chunks(2).filter(|pair| pair[0] == "-o") {
            ssh.args(option);
        }
        let url = a.sshd.url();
        ssh.arg(url.trim_start_matches("ssh://")).args(&words[at..]);
        moved(&b.host, &a.host, ssh)?;
        machines.into_iter().try_for_each(Machine::end)
    })
}

#[test]
fn a_pipe_that_breaks_costs_nothing_but_the_checkpoint() -> Result<(), String> {
    judge("pipes::broken", || {
        let host = Host::with_mounts()?;
        tiny_image(&host)?;
        start(&host)?;
        // Nobody reads it.
        let mut child =
            host.command(&CHECKPOINT).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        let output = child.wait_with_output()?;
        ensure!(output.status.code() == Some(125), "{}", said(&output));
        ensure!(said(&output).contains("The container runs on"), "{}", said(&output));
        goes_on(&host)?;

        // Standard output is the archive and nothing else.
        let archive = host.command(&[&CHECKPOINT[..], &["-R", "--compress", "none"]].concat());
        let archive = run(&mut { archive })?.stdout;
        ensure!(archive.get(257..262) == Some(b"ustar"), "it is no tar");
        goes_on(&host)?;

        // Half of it is no archive, and nothing is none.
        for half in [&archive[..archive.len() / 2], &[]] {
            let mut child =
                host.command(&RESTORE).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            child.stdin.take().context("no input")?.write_all(half)?;
            let output = child.wait_with_output()?;
            ensure!(output.status.code() == Some(125), "{}", said(&output));
            ensure!(said(&output).contains("restore from standard input"), "{}", said(&output));
            ensure!(host.arctern(&["ps", "-a", "-q"])?.lines().count() == 1, "something is left");
        }

        // A terminal is neither a place for an archive nor one to get it from.
        for words in [&CHECKPOINT[..], &RESTORE[..]] {
            let inner = host.command(words);
            let line = std::iter::once(inner.get_program()).chain(inner.get_args());
            let line: Vec<_> = line.map(|word| word.to_string_lossy().into_owned()).collect();
            let mut shown = String::new();
            let mut child = Command::new("script")
                .args(["-qec", &line.join(" "), "/dev/null"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?;
            child.stdout.take().context("no output")?.read_to_string(&mut shown)?;
            ensure!(child.wait()?.code() == Some(125), "{shown}");
            ensure!(shown.contains("terminal: redirect"), "{shown}");
        }
        goes_on(&host)?;
        host.arctern(&["rm", "-f", "-t", "0", "c"])?;
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}
