//! What was measured, as a table for people and as JSON.

use crate::growth::Growth;
use crate::stats::median;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// One measure of one case: samples of both sides.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// What was done, for instance `nginx` or `memory 1024 MiB`.
    pub case: String,
    /// Which time of it, for instance `dump` or `frozen`.
    pub what: String,
    /// Who the peer is.
    pub peer: String,
    /// Our samples, in microseconds.
    pub ours_us: Vec<u64>,
    /// The peer's samples, in microseconds.
    pub theirs_us: Vec<u64>,
    /// Our median in microseconds.
    pub ours_median_us: Option<u64>,
    /// The peer's median in microseconds.
    pub theirs_median_us: Option<u64>,
    /// Our median divided by theirs.
    pub ratio: Option<f64>,
    /// The ratio that must not be exceeded.
    pub goal: Option<f64>,
    /// Whether the goal is met; none without a goal.
    pub met: Option<bool>,
    /// Why a side has no samples.
    pub missing: Option<String>,
}

/// How the time of one item grows, on both sides.
#[derive(Debug, Serialize)]
pub struct GrowthOfBoth {
    /// What there is one more of.
    pub item: String,
    /// Which time of it.
    pub what: String,
    /// Ours, if it was measured.
    pub ours: Option<Growth>,
    /// The peer's.
    pub theirs: Option<Growth>,
    /// Whether ours is at most [`MOST_GROWTH`]; without figures it is not.
    pub met: bool,
}

/// The time of one item among N may be this much of that among a tenth.
const MOST_GROWTH: f64 = 1.5;

/// Why samples are missing, if they are.
pub fn missing(ours: Option<&str>, theirs: Option<&str>) -> Option<String> {
    let side =
        |name: &str, why: Option<&str>| why.map(|why| format!("{name} failed: {}", why.trim()));
    let reasons: Vec<String> =
        [side("arctern", ours), side("the peer", theirs)].into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("\n"))
}

/// All measures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    rounds: usize,
    kernel: String,
    cpu: String,
    cpus: usize,
    measures: Vec<Measure>,
    growth: Vec<GrowthOfBoth>,
}

/// Samples of one side.
pub type Samples = Vec<Duration>;

impl Report {
    /// A report without measures.
    pub fn new(rounds: usize) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            rounds,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            measures: Vec::new(),
            growth: Vec::new(),
        }
    }

    /// Adds a measure. `missing` says why a side has no samples.
    pub fn add(
        &mut self,
        case: &str,
        what: &str,
        peer: &str,
        (ours, theirs): (&Samples, &Samples),
        goal: Option<f64>,
        missing: Option<String>,
    ) {
        let micros = |samples: &Samples| samples.iter().map(|d| d.as_micros() as u64).collect();
        let (our_median, their_median) = (median(ours), median(theirs));
        let ratio = our_median.zip(their_median).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64());
        let measure = Measure {
            case: case.to_owned(),
            what: what.to_owned(),
            peer: peer.to_owned(),
            ours_us: micros(ours),
            theirs_us: micros(theirs),
            ours_median_us: our_median.map(|d| d.as_micros() as u64),
            theirs_median_us: their_median.map(|d| d.as_micros() as u64),
            ratio,
            goal,
            met: goal.map(|goal| ratio.is_some_and(|ratio| ratio <= goal)),
            missing,
        };
        eprintln!("{}", line(&measure));
        self.measures.push(measure);
    }

    /// Adds how the time of one item grows.
    pub fn add_growth(
        &mut self,
        item: &str,
        what: &str,
        ours: Option<Growth>,
        theirs: Option<Growth>,
    ) {
        let ratio = ours.as_ref().and_then(|growth| growth.ratio);
        let met = ratio.is_some_and(|ratio| ratio <= MOST_GROWTH);
        let (item, what) = (item.to_owned(), what.to_owned());
        let growth = GrowthOfBoth { item, what, ours, theirs, met };
        eprintln!("{}", growth_line(&growth));
        self.growth.push(growth);
    }

    /// Whether every goal is met.
    pub fn met(&self) -> bool {
        self.measures.iter().all(|measure| measure.met != Some(false))
            && self.growth.iter().all(|growth| growth.met)
    }

    /// Prints the table.
    pub fn print(&self) {
        emit(&format!(
            "\n{} CPUs ({}), kernel {}, {} rounds, medians",
            self.cpus, self.cpu, self.kernel, self.rounds
        ));
        emit(&format!(
            "{:<22} {:<22} {:>11} {:>11} {:>7} {:>6}  {:<5} peer",
            "case", "time of", "arctern", "peer", "ratio", "goal", "met"
        ));
        for measure in &self.measures {
            emit(&line(measure));
        }
        self.print_growth();
        let mut said = "";
        for measure in &self.measures {
            if let Some(why) = measure.missing.as_deref().filter(|why| *why != said) {
                emit(&format!("\n{}: {why}", measure.case));
                said = why;
            }
        }
    }

    fn print_growth(&self) {
        if self.growth.is_empty() {
            return;
        }
        emit("\nTime of one item among N/10 and among N, less what the command costs for one:");
        emit(&format!(
            "{:<12} {:>6} {:<8} {:>10} {:>10} {:>6} {:>5}  {:<4} {:>10} {:>10} {:>6}",
            "item",
            "N",
            "time of",
            "arctern",
            "at N",
            "ratio",
            "goal",
            "met",
            "CRIU",
            "at N",
            "ratio"
        ));
        for growth in &self.growth {
            emit(&growth_line(growth));
        }
    }

    /// Writes the JSON file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        emit(&format!("\nAll samples: {}", path.display()));
        Ok(())
    }
}

fn line(measure: &Measure) -> String {
    let time = |micros: Option<u64>| match micros {
        None => "-".to_owned(),
        Some(micros) if micros < 10_000 => format!("{micros} µs"),
        Some(micros) => format!("{:.1} ms", micros as f64 / 1000.0),
    };
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let met = match measure.met {
        None => "",
        Some(true) => "yes",
        Some(false) => "NO",
    };
    let missing = if measure.missing.is_some() { " (a side failed: see below)" } else { "" };
    format!(
        "{:<22} {:<22} {:>11} {:>11} {:>7} {:>6}  {:<5} {}{}",
        measure.case,
        measure.what,
        time(measure.ours_median_us),
        time(measure.theirs_median_us),
        number(measure.ratio),
        number(measure.goal),
        met,
        measure.peer,
        missing
    )
}

fn growth_line(growth: &GrowthOfBoth) -> String {
    let side = |side: &Option<Growth>| {
        let text = |of: fn(&Growth) -> Option<f64>, unit: &str| match side.as_ref().and_then(of) {
            Some(figure) => format!("{figure:.2}{unit}"),
            None => "-".to_owned(),
        };
        let (few, many) = (text(|g| Some(g.few_us), " µs"), text(|g| Some(g.many_us), " µs"));
        format!("{few:>10} {many:>10} {:>6}", text(|g| g.ratio, ""))
    };
    let count = growth.ours.as_ref().or(growth.theirs.as_ref()).map_or(0, |growth| growth.count);
    format!(
        "{:<12} {count:>6} {:<8} {} {MOST_GROWTH:>5}  {:<4} {}",
        growth.item,
        growth.what,
        side(&growth.ours),
        if growth.met { "yes" } else { "NO" },
        side(&growth.theirs)
    )
}

/// Prints a line of the table; a closed pipe is no failure.
fn emit(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
