//! Every example in the help of every command and in the documents is run, in the order in which it
//! stands there, on a host that `examples.txt` prepares. A command without an example fails. Those of
//! the help are a sample in an ordinary run; `ARCTERN_SOAK=1` runs all.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use arctern_harness::engine::source;
use arctern_harness::host::Host;
use arctern_harness::random::{Random, rounds};
use arctern_harness::skips::judge;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// An ordinary run plays the examples of one command in so many; `ARCTERN_SEED` chooses which.
const SAMPLE: usize = 4;

/// Seconds that an example may take on a busy machine.
const PATIENCE: &str = "180";

/// What `examples.txt` says about one command or document.
#[derive(Clone, Debug, Default)]
struct Section {
    before: Vec<String>,
    meanwhile: Option<String>,
    exits: BTreeMap<String, i32>,
    skips: BTreeMap<String, String>,
}

fn sections() -> Result<BTreeMap<String, Section>> {
    let path = source().join("tests/harness/examples.txt");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut all: BTreeMap<String, Section> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut current);
            all.entry(current.clone()).or_default();
            continue;
        }
        let section =
            all.get_mut(&current).with_context(|| format!("`{line}` is in no section"))?;
        let (key, value) = line.split_once(": ").with_context(|| format!("`{line}`"))?;
        match key {
            "before" => section.before.push(value.to_owned()),
            "meanwhile" => section.meanwhile = Some(value.to_owned()),
            "exit" => {
                let (code, example) = value.split_once(' ').context("exit: CODE EXAMPLE")?;
                section.exits.insert(example.to_owned(), code.parse()?);
            }
            "skip" => {
                let (example, why) = value.split_once(" :: ").context("skip: EXAMPLE :: WHY")?;
                section.skips.insert(example.to_owned(), why.to_owned());
            }
            _ => bail!("`{key}` is no key of examples.txt"),
        }
    }
    Ok(all)
}

/// A host whose `arctern` is the first in the PATH of a shell.
struct Stage {
    host: Host,
    tar: PathBuf,
}

impl Stage {
    fn new() -> Result<Self> {
        let host = Host::new()?;
        host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        let made = Command::new(source().join("scripts/image.sh")).arg("nginx").output()?;
        let tar = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let bin = host.dir().join("bin");
        fs::create_dir(&bin)?;
        let command = host.command(&[]);
        let words = command.get_args().map(|word| format!("'{}'", word.to_string_lossy()));
        let words: Vec<String> = words.collect();
        let program = command.get_program().to_string_lossy();
        let script = format!("#!/bin/sh\nexec {program} {} \"$@\"\n", words.join(" "));
        fs::write(bin.join("arctern"), script)?;
        fs::set_permissions(bin.join("arctern"), PermissionsExt::from_mode(0o755))?;
        fs::write(bin.join(".curlrc"), "retry 20\nretry-delay 1\nretry-connrefused\nsilent\n")?;
        Ok(Stage { host, tar })
    }

    /// A shell command line in a directory, in this host's network.
    fn shell(&self, dir: &Path, script: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.host.place().path()))
            .args(["timeout", "-k", "5", PATIENCE, "sh", "-c", script])
            .current_dir(dir)
            // A server that was just started does not listen yet.
            .env("CURL_HOME", self.host.dir().join("bin"))
            .env("REGISTRY_AUTH_FILE", self.host.dir().join("auth.json"))
            .env("PATH", format!("{}:{path}", self.host.dir().join("bin").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command line; whoever asks for input reads `exit`, which ends shells.
    fn run(&self, dir: &Path, script: &str) -> Result<Output> {
        let mut child = self.shell(dir, script).spawn().context("cannot run a shell")?;
        if let Some(mut input) = child.stdin.take() {
            // An example that reads nothing may have ended already.
            let _ = input.write_all(b"exit\n");
        }
        Ok(child.wait_with_output()?)
    }

    /// Runs examples one after the other where `section` leads.
    fn play(&self, name: &str, section: &Section, examples: &[String]) -> Result<usize> {
        self.host.attempt(&["rm", "--force", "--time", "0", "--all"])?;
        for network in ["lan", "backend"] {
            self.host.attempt(&["network", "rm", "--force", network])?;
        }
        self.host.attempt(&["volume", "rm", "--force", "data"])?;
        let images = self.host.arctern(&["images", "--format", "json"])?;
        if !images.contains("localhost/nginx:latest") {
            self.host.image("nginx", &[r#"CMD ["nginx", "-g", "daemon off;"]"#])?;
        }
        for name in ["debian", "redis"] {
            self.host.arctern(&["tag", "nginx", name])?;
        }
        let dir = self.host.dir().join("work");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir)?;
        std::os::unix::fs::symlink(&self.tar, dir.join("nginx.tar"))?;
        fs::write(dir.join("nginx.conf"), "events {}\n")?;
        let default = ["arctern run -d --name web nginx".to_owned()];
        let before = if section.before.is_empty() { &default[..] } else { &section.before };
        for command in before {
            let output = self.run(&dir, command)?;
            ensure!(output.status.success(), "{name}: before: `{command}`: {}", said(&output));
        }
        let meanwhile: Option<Child> =
            section.meanwhile.as_ref().map(|m| self.shell(&dir, m).spawn()).transpose()?;
        let mut ran = 0;
        for example in examples.iter().filter(|e| !section.skips.contains_key(first_line(e))) {
            let expected = section.exits.get(example).copied().unwrap_or(0);
            let output = self.run(&dir, example)?;
            ensure!(
                output.status.code() == Some(expected),
                "{name}: `{example}` ended with {}, not {expected}: {}",
                output.status,
                said(&output)
            );
            ran += 1;
        }
        if let Some(mut child) = meanwhile {
            child.wait()?;
        }
        Ok(ran)
    }
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// A line without what a shell takes for a comment, for blocks of documents.
fn first_line(example: &str) -> &str {
    let line = example.lines().next().unwrap_or_default();
    match example.contains('\n') {
        true => line.split("  #").next().unwrap_or_default().trim(),
        false => line,
    }
}

#[test]
fn every_example_of_the_help_runs() -> Result<(), String> {
    judge("examples::help", || {
        let stage = Stage::new()?;
        let sections = sections()?;
        let text = stage.host.arctern(&["internal", "examples"])?;
        let all: BTreeMap<String, Vec<String>> = serde_json::from_str(&text)?;
        let bare: Vec<&str> =
            all.iter().filter(|(_, list)| list.is_empty()).map(|(name, _)| name.as_str()).collect();
        ensure!(bare.is_empty(), "no example in the help of: {}", bare.join(", "));
        // `container run` is `run`: what has a section of its own is taken by that name.
        let mut names: Vec<&String> = all.keys().collect();
        names.sort_by_key(|name| (!sections.contains_key(*name), name.len()));
        let every = rounds(SAMPLE, 1);
        let first = usize::try_from(Random::seeded().below(every as u64))?;
        let mut seen = BTreeSet::new();
        let (mut ran, mut failed) = (0, Vec::new());
        for name in names {
            let examples = &all[name];
            if seen.insert(examples) && seen.len() % every == first {
                let section = sections.get(name).cloned().unwrap_or_default();
                match stage.play(name, &section, examples) {
                    Ok(count) => ran += count,
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
        }
        ensure!(failed.is_empty(), "{} commands:\n{}", failed.len(), failed.join("\n"));
        let skipped: usize = sections.values().map(|section| section.skips.len()).sum();
        println!(
            "{ran} examples of one in {every} of {} commands ran; {skipped} are declared as skips",
            seen.len()
        );
        // What is declared must still be there.
        for (name, section) in sections.iter().filter(|(name, _)| all.contains_key(*name)) {
            let declared = section.exits.keys().chain(section.skips.keys());
            for example in declared {
                ensure!(all[name].contains(example), "{name}: `{example}` is no example any more");
            }
        }
        Ok(())
    })
}

/// The blocks of a document that call the program: fenced ones of a shell, and indented ones.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Vec<&str> = Vec::new();
    let mut fenced = None;
    for line in text.lines().chain([""]) {
        if let Some(kind) = line.trim_end().strip_prefix("```") {
            fenced = match fenced {
                None => Some(matches!(kind, "" | "sh" | "console")),
                Some(_) => None,
            };
        } else if let Some(wanted) = fenced {
            if wanted {
                block.push(line);
            }
            continue;
        } else if let Some(code) = line.strip_prefix("    ") {
            block.push(code);
            continue;
        }
        let whole = std::mem::take(&mut block).join("\n");
        if whole.lines().any(|line| line.starts_with("arctern ")) {
            found.push(whole.trim_end().to_owned());
        }
    }
    found
}

#[test]
fn every_example_of_the_documents_runs() -> Result<(), String> {
    judge("examples::documents", || {
        let stage = Stage::new()?;
        let sections = sections()?;
        let mut ran = 0;
        let mut failed = Vec::new();
        for name in ["README.md", "docs/commands.md"] {
            let text = fs::read_to_string(source().join(name)).context(name)?;
            let section = sections.get(name).cloned().unwrap_or_default();
            let mut blocks = blocks(&text);
            ensure!(!blocks.is_empty(), "{name} has no example");
            for skip in section.skips.keys() {
                let there = blocks.iter().any(|block| first_line(block) == skip);
                ensure!(there, "{name}: `{skip}` is no example any more");
            }
            blocks.retain(|block| !section.skips.contains_key(first_line(block)));
            for block in blocks {
                match stage.play(name, &section, &[format!("set -e\n{block}")]) {
                    Ok(count) => ran += count,
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
        }
        ensure!(failed.is_empty(), "{} blocks:\n{}", failed.len(), failed.join("\n"));
        println!("{ran} blocks ran");
        Ok(())
    })
}

#[test]
fn blocks_of_documents_are_found() {
    let text = "text\n\n    arctern a   # one\n    arctern b\n\n```\narctern c\n```\n\n```rust\narctern d\n```\n    not this\n";
    assert_eq!(blocks(text), ["arctern a   # one\narctern b", "arctern c"]);
    assert_eq!(first_line("arctern a   # one\narctern b"), "arctern a");
    assert_eq!(
        first_line("arctern rm --force lan      # all"),
        "arctern rm --force lan      # all"
    );
}
