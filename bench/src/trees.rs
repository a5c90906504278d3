//! Bare process trees: `arctern criu` beside CRIU.

use crate::engines::{Engine, Folders};
use crate::growth::Growth;
use crate::report::{self, Report, Samples};
use crate::stats::{frozen, median};
use anyhow::Result;
use arctern_harness::workload::Run;
use std::fs;

/// Who the trees are compared with.
pub const PEER: &str = "CRIU 4.2.1";

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
        kind: &Kind,
        count: usize,
        folders: &mut Folders,
        counted: bool,
    ) -> Result<()> {
        let mut run = Run::start_with(&["load", kind.load, &count.to_string()])?;
        let pid = run.pid().to_string();
        let images = folders.make()?;
        let dump = [&["dump", "-t", &pid][..], kind.options].concat();
        let leave = engine.run(&[&dump[..], &["-R"]].concat(), &images, "dump.log")?;
        let leave_frozen = frozen(&images)?;
        folders.forget(&images)?;
        let images = folders.make()?;
        let tree = run.tree()?;
        let dump = engine.run(&dump, &images, "dump.log")?;
        let stopped = frozen(&images)?;
        run.wait_for_kill(tree)?;
        let pidfile = images.join("restored.pid");
        let pidfile = pidfile.to_string_lossy();
        let restore = [&["restore", "-d", "--pidfile", &pidfile][..], kind.options].concat();
        let restore = engine.run(&restore, &images, "restore.log")?;
        run.restored(fs::read_to_string(&*pidfile)?.trim().parse()?)?;
        run.kill()?;
        folders.forget(&images)?;
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

/// One kind of load, in several amounts.
struct Kind {
    /// What `workload load` calls it.
    load: &'static str,
    /// One of them, and many.
    names: (&'static str, &'static str),
    counts: &'static [usize],
    /// What both engines are told beyond the usual.
    options: &'static [&'static str],
    /// The count from which on dump and restore may take this much of the peer's time.
    goal: Option<(usize, f64)>,
    /// The cost of one more may be this much of the peer's.
    one_more: Option<f64>,
    /// Whether the time of one item must stay what it is as their number grows.
    linear: bool,
}

/// A kind without goals of its own.
const PLAIN: Kind = Kind {
    load: "",
    names: ("", ""),
    counts: &[],
    options: &[],
    goal: None,
    one_more: None,
    linear: true,
};

const KINDS: [Kind; 6] = [
    Kind {
        load: "memory",
        names: ("MiB dirty", "MiB dirty"),
        counts: &[64, 1024],
        goal: Some((1024, 0.8)),
        linear: false,
        ..PLAIN
    },
    Kind {
        load: "processes",
        names: ("process", "processes"),
        counts: &[1, 10, 100, 1000],
        one_more: Some(0.2),
        ..PLAIN
    },
    Kind {
        load: "threads",
        names: ("thread", "threads"),
        counts: &[1, 10, 100, 1000],
        one_more: Some(0.2),
        ..PLAIN
    },
    Kind {
        load: "descriptors",
        names: ("descriptor", "descriptors"),
        counts: &[1, 1500, 15_000],
        ..PLAIN
    },
    Kind { load: "mappings", names: ("mapping", "mappings"), counts: &[1, 5000, 50_000], ..PLAIN },
    Kind {
        load: "connections",
        names: ("connection", "connections"),
        counts: &[1, 500, 5000],
        options: &["--tcp-established", "--network-lock", "nftables"],
        ..PLAIN
    },
];

impl Kind {
    fn case(&self, count: usize) -> String {
        format!("{count} {}", if count == 1 { self.names.0 } else { self.names.1 })
    }
}

/// Both engines with one amount of one kind.
struct Case {
    count: usize,
    ours: Times,
    theirs: Times,
}

/// Measures every tree whose name contains `only`: all amounts of a kind, or single ones.
pub fn measure(only: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let arctern = Engine::arctern();
    let criu = Engine::criu();
    for kind in &KINDS {
        let mut folders = if kind.linear { Folders::in_memory()? } else { Folders::on_disk()? };
        let wanted = |count| kind.names.1.contains(only) || kind.case(count).contains(only);
        let counts = kind.counts.iter().filter(|&&count| wanted(count));
        let mut cases: Vec<Case> = counts
            .map(|&count| Case { count, ours: Times::default(), theirs: Times::default() })
            .collect();
        // All amounts in turn, so that a machine that is slow for a while is slow for all of them.
        for round in 0..=rounds {
            for Case { count, ours, theirs } in &mut cases {
                for (times, engine) in [(ours, Ok(&arctern)), (theirs, criu.as_ref())] {
                    if times.failure.is_none() {
                        let outcome = engine.map_err(|error| anyhow::anyhow!("{error}"));
                        let outcome = outcome.and_then(|engine| {
                            times.round(engine, kind, *count, &mut folders, round > 0)
                        });
                        times.failure = outcome.err().map(|error| format!("{error:#}"));
                    }
                }
            }
        }
        for case in &cases {
            add(kind, case, report);
        }
        add_one_more(kind, &cases, report);
        add_growth(kind, &cases, report);
    }
    Ok(())
}

fn add(kind: &Kind, Case { count, ours, theirs }: &Case, report: &mut Report) {
    let goal = kind.goal.filter(|(from, _)| count >= from).map(|(_, goal)| goal);
    let missing = report::missing(ours.failure.as_deref(), theirs.failure.as_deref());
    let name = kind.case(*count);
    let mut add = |what: &str, a: &Samples, b: &Samples, goal| {
        report.add(&name, what, PEER, (a, b), goal, missing.clone());
    };
    add("dump", &ours.dump, &theirs.dump, goal);
    add("frozen", &ours.frozen, &theirs.frozen, None);
    add("restore", &ours.restore, &theirs.restore, goal);
    add("dump, leave running", &ours.leave, &theirs.leave, None);
    add("frozen, leave running", &ours.leave_frozen, &theirs.leave_frozen, None);
}

/// What one more costs beside the peer.
fn add_one_more(kind: &Kind, cases: &[Case], report: &mut Report) {
    let of = |wanted| cases.iter().find(|case| case.count == wanted);
    let (Some(goal), Some(few), Some(many)) = (kind.one_more, of(10), of(1000)) else { return };
    let cost = |few: &Times, many: &Times| match (median(&few.dump), median(&many.dump)) {
        (Some(few), Some(many)) => vec![many.saturating_sub(few) / 990],
        _ => Vec::new(),
    };
    let (ours, theirs) = (cost(&few.ours, &many.ours), cost(&few.theirs, &many.theirs));
    let name = format!("one more {}", kind.names.0);
    report.add(&name, "dump", PEER, (&ours, &theirs), Some(goal), None);
}

/// How the time of one item grows from a tenth of the last amount to all of it.
fn add_growth(kind: &Kind, cases: &[Case], report: &mut Report) {
    let [one, .., few, many] = cases else { return };
    if !kind.linear || one.count != 1 {
        return;
    }
    let mut add = |what: &str, of: fn(&Times) -> &Samples| {
        let growth = |side: fn(&Case) -> &Times| {
            let amount = |case: &Case| Some((case.count, median(of(side(case)))?));
            Some(Growth::new(amount(one)?.1, amount(few)?, amount(many)?))
        };
        let (ours, theirs) = (growth(|case| &case.ours), growth(|case| &case.theirs));
        report.add_growth(kind.names.0, what, ours, theirs);
    };
    add("dump", |times| &times.dump);
    add("restore", |times| &times.restore);
}
