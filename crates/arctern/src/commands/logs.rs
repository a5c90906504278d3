//! `logs`

use std::collections::VecDeque;
use std::io::Write;

use arctern_container::lifecycle::LogLine;
use arctern_container::shim::log::Stream;
use arctern_container::time::Timestamp;

use super::Context;
use super::select::{One, parse_time};
use crate::report::{Cannot, CommandResult};

/// Show what a container wrote
///
///   arctern logs web
///   arctern logs --follow --tail 10 web
///   arctern logs --timestamps --since 10m web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only the last lines; -1 or `all` for every one
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = parse_tail)]
    pub tail: Option<Tail>,
    /// Only what was written from this time on: 2030-01-31T12:00:00Z, seconds since 1970, or how long
    /// ago: 10m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only what was written before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<Timestamp>,
    #[command(flatten)]
    pub one: One,
}

/// How many lines of the end; None for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail(Option<usize>);

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" | "-1" => Ok(Tail(None)),
        text => text.parse().map(|n| Tail(Some(n))).map_err(|_| "expected a number".to_owned()),
    }
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let Args { follow, timestamps, tail, since, until, one } = args;
    let name = one.name(&host)?;
    let action = || format!("show the log of container `{name}`");
    let (_, mut reader) = host.logs(&name).cannot(action)?;
    drop(host);
    let mut printer = Printer { timestamps, begins: [true, true] };
    let fits = |line: &LogLine| {
        let time = Timestamp::parse_rfc3339(&line.time).unwrap_or_default();
        since.is_none_or(|since| time >= since) && until.is_none_or(|until| time < until)
    };
    let tail = tail.and_then(|tail| tail.0);
    let mut last: VecDeque<LogLine> = VecDeque::new();
    let mut lines = 0;
    while let Some(line) = reader.next_line().cannot(action)? {
        if !fits(&line) {
            continue;
        }
        let Some(tail) = tail else {
            printer.print(&line).cannot(action)?;
            continue;
        };
        lines += usize::from(line.is_full());
        last.push_back(line);
        // A line that goes on in other pieces counts with its last one.
        while lines > tail {
            let Some(first) = last.pop_front() else { break };
            lines -= usize::from(first.is_full());
        }
    }
    for line in last.iter().filter(|_| tail != Some(0)) {
        printer.print(line).cannot(action)?;
    }
    while follow && reader.wait_for_more(until).cannot(action)? {
        while let Some(line) = reader.next_line().cannot(action)? {
            if fits(&line) {
                printer.print(&line).cannot(action)?;
            }
        }
    }
    Ok(0)
}

struct Printer {
    timestamps: bool,
    /// Whether the next piece of each stream begins a line.
    begins: [bool; 2],
}

impl Printer {
    /// Prints a piece to the stream that it came from; the time stands before the first of a line.
    fn print(&mut self, line: &LogLine) -> std::io::Result<()> {
        let mut text = Vec::new();
        let index = usize::from(line.stream == Stream::Stderr);
        if self.timestamps && self.begins[index] {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        self.begins[index] = line.text.ends_with(b"\n");
        text.extend_from_slice(&line.text);
        match line.stream {
            Stream::Stdout => std::io::stdout().lock().write_all(&text),
            Stream::Stderr => std::io::stderr().lock().write_all(&text),
        }
    }
}
