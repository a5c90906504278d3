//! The table of kinds of state (`docs/state.md`), made from what the workloads declare, which tests
//! are named with a kind, and which cells of the matrix are expected not to run.

use crate::engine::source;
use crate::skips;
use crate::workload::program;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

/// A workload and what it proves.
#[derive(Clone, Debug)]
struct Claim {
    workload: String,
    outcome: Outcome,
    kinds: Vec<String>,
}

/// What becomes of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Carried,
    Refused,
    Lost,
}

/// A kind of state, or the head of a group.
#[derive(Clone, Debug)]
enum Row {
    Group(String),
    Kind { name: String, text: String, note: String, tests: Vec<String> },
}

/// Ways through both engines, as the matrix names them, and how many workloads take each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Workloads in all.
    pub workloads: usize,
    /// Captured by Arctern, restored by CRIU.
    pub to_criu: usize,
    /// Captured by CRIU, restored by Arctern.
    pub from_criu: usize,
}

fn outcome(word: &str) -> Result<Outcome> {
    Ok(match word {
        "carried" => Outcome::Carried,
        "refused" => Outcome::Refused,
        "lost" => Outcome::Lost,
        other => bail!("`{other}` is no outcome"),
    })
}

fn declared() -> Result<(Vec<Row>, Vec<Claim>)> {
    let output = Command::new(program()).arg("kinds").output().context("cannot run workload")?;
    let text = String::from_utf8(output.stdout)?;
    let (mut rows, mut claims) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        match fields.as_slice() {
            [mark, group] if mark == "#" => rows.push(Row::Group(group.clone())),
            [mark, how, workload, kinds @ ..] if mark == "!" => claims.push(Claim {
                workload: workload.clone(),
                outcome: outcome(how)?,
                kinds: kinds.iter().filter(|kind| !kind.is_empty()).cloned().collect(),
            }),
            [name, text, note, tests @ ..] => rows.push(Row::Kind {
                name: name.clone(),
                text: text.clone(),
                note: note.clone(),
                tests: tests.to_vec(),
            }),
            _ => bail!("`workload kinds` prints a line that is none: {line}"),
        }
    }
    Ok((rows, claims))
}

/// Whether a workload is expected not to run in this column of the matrix.
fn skipped(workload: &str, column: &str) -> bool {
    skips::expected(&format!("{workload}::{column}")).is_some()
}

/// How many workloads of the matrix take each way.
pub fn ways() -> Result<Ways> {
    let (_, claims) = declared()?;
    let mut ways = Ways::default();
    for claim in claims.iter().filter(|claim| claim.outcome == Outcome::Carried) {
        ways.workloads += 1;
        ways.to_criu += usize::from(!skipped(&claim.workload, "arctern-criu"));
        ways.from_criu += usize::from(!skipped(&claim.workload, "criu-arctern"));
    }
    Ok(ways)
}

/// The document; fails with every kind without proof, every claim about an unknown kind, and every
/// named test that is not there.
pub fn document() -> Result<String> {
    let (rows, claims) = declared()?;
    let mut wrong = Vec::new();
    for claim in &claims {
        let known =
            |kind: &str| rows.iter().any(|r| matches!(r, Row::Kind { name, .. } if name == kind));
        let strangers = claim.kinds.iter().filter(|kind| !known(kind));
        wrong.extend(strangers.map(|kind| format!("{}: no kind is called {kind}", claim.workload)));
        if claim.kinds.is_empty() {
            wrong.push(format!("{}: proves nothing", claim.workload));
        }
    }
    let mut text = HEAD.to_owned();
    for row in &rows {
        match row {
            Row::Group(name) => {
                let _ = write!(text, "\n## {name}\n\n{TABLE}");
            }
            Row::Kind { name, text: what, note, tests } => {
                let proofs: Vec<&Claim> =
                    claims.iter().filter(|c| c.kinds.contains(name)).collect();
                let named: Vec<(Outcome, String)> = tests
                    .iter()
                    .map(|test| named_test(test))
                    .filter_map(|test| test.map_err(|e| wrong.push(format!("{name}: {e}"))).ok())
                    .collect();
                if proofs.is_empty() && named.is_empty() {
                    wrong.push(format!("{name}: nothing proves it"));
                }
                let _ = writeln!(
                    text,
                    "| {what} | {}{} | {} | {} |",
                    state(&proofs, &named),
                    if note.is_empty() { String::new() } else { format!(": {note}") },
                    proof(&proofs, &named),
                    with_criu(&proofs),
                );
            }
        }
    }
    let Ways { workloads, to_criu, from_criu } = ways()?;
    let _ = write!(
        text,
        "\n## With CRIU\n\n{workloads} workloads are captured and restored. {to_criu} of them are \
         captured by Arctern and restored by CRIU 4.2.1, {from_criu} the other way round; the rest is \
         what CRIU does not do (tests/harness/expected-skips.txt says what).\n"
    );
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(text)
}

const HEAD: &str = "# Kinds of state

What a program can hold, and what becomes of it. Made from the code: each workload in tests/workloads
says which kinds it proves, `tests/harness/tests/matrix.rs` runs it, and `tests/harness/tests/state.rs`
fails when this table is not what they say, or when a kind has no proof.

- **carried**: captured and left running, captured and restored, and compared by the program itself
- **refused**: named with process, cause and remedy before anything is stopped for long; the program
  goes on as it was
- **lost**: the kernel does not tell, and the restored program has it not; [limits](limits.md) says so
- **not run here**: this machine cannot hold it

The last column says which way through CRIU 4.2.1 the workloads take: out (Arctern captures, CRIU
restores) and in (CRIU captures, Arctern restores).
";

const TABLE: &str = "| kind | state | proof | CRIU |\n|---|---|---|---|\n";

/// `[refused |lost ]FILE:FUNCTION` of a test that must be there.
fn named_test(test: &str) -> Result<(Outcome, String)> {
    let (how, place) = match test.split_once(' ') {
        Some((how, place)) => (outcome(how)?, place),
        None => (Outcome::Carried, test),
    };
    let (file, function) = place.split_once(':').context("a test is FILE:FUNCTION")?;
    let path = source().join(file);
    let code = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
    if !code.contains(&format!("fn {function}(")) {
        bail!("{file} has no test {function}");
    }
    let soak = if only_in_soak(&code, function) { " (`make soak` only)" } else { "" };
    let file = file.rsplit('/').next().unwrap_or(file);
    Ok((how, format!("{file}: {}{soak}", function.replace('_', " "))))
}

/// Whether an ordinary run is expected to skip the test, by the name that it gives itself.
fn only_in_soak(code: &str, function: &str) -> bool {
    let body = code.split_once(&format!("fn {function}(")).map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}\n").map_or(body, |(body, _)| body);
    let name = body.split('"').find(|text| text.contains("::") && !text.contains(' '));
    name.is_some_and(|name| skips::expected(&skips::ordinary(name)).is_some())
}

/// Whether Arctern itself is expected not to run the workload here.
fn not_run(claim: &Claim) -> Option<&'static str> {
    let column = match claim.outcome {
        Outcome::Carried => "arctern-arctern",
        Outcome::Refused => "refused",
        Outcome::Lost => "lost",
    };
    skips::expected(&format!("{}::{column}", claim.workload))
}

fn state(proofs: &[&Claim], named: &[(Outcome, String)]) -> String {
    let run = proofs.iter().filter(|claim| not_run(claim).is_none()).map(|claim| claim.outcome);
    let mut all: Vec<Outcome> = run.chain(named.iter().map(|(how, _)| *how)).collect();
    all.sort_unstable();
    all.dedup();
    if let (true, Some(reason)) = (all.is_empty(), proofs.iter().find_map(|claim| not_run(claim))) {
        return format!("not run here ({reason})");
    }
    let word = |how: &Outcome| match how {
        Outcome::Carried => "carried",
        Outcome::Refused => "refused",
        Outcome::Lost => "lost",
    };
    all.iter().map(word).collect::<Vec<_>>().join(" or ")
}

fn proof(proofs: &[&Claim], named: &[(Outcome, String)]) -> String {
    let workloads = proofs.iter().map(|claim| format!("`{}`", claim.workload));
    workloads.chain(named.iter().map(|(_, name)| name.clone())).collect::<Vec<_>>().join(", ")
}

fn with_criu(proofs: &[&Claim]) -> &'static str {
    let carried = || proofs.iter().filter(|claim| claim.outcome == Outcome::Carried);
    let out = carried().any(|claim| !skipped(&claim.workload, "arctern-criu"));
    let into = carried().any(|claim| !skipped(&claim.workload, "criu-arctern"));
    match (out, into) {
        (true, true) => "out, in",
        (true, false) => "out",
        (false, true) => "in",
        (false, false) => "",
    }
}
