//! `logs`

use std::collections::VecDeque;
use std::io::Write;

use arctern_container::lifecycle::LogLine;
use arctern_container::shim::log::Stream;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Show what a container wrote
///
///   arctern logs web
///   arctern logs --follow --tail 10 web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only the last lines
    #[arg(long, value_name = "NUMBER")]
    pub tail: Option<usize>,
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("show the log of container `{}`", args.container);
    let (_, mut reader) = ctx.host()?.logs(&args.container).cannot(action)?;
    let mut begins = [true, true];
    let mut last: VecDeque<LogLine> = VecDeque::new();
    while let Some(line) = reader.next_line().cannot(action)? {
        match args.tail {
            None => print(&args, &mut begins, &line).cannot(action)?,
            Some(tail) => {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
        }
    }
    for line in last {
        print(&args, &mut begins, &line).cannot(action)?;
    }
    while args.follow && reader.wait_for_more().cannot(action)? {
        while let Some(line) = reader.next_line().cannot(action)? {
            print(&args, &mut begins, &line).cannot(action)?;
        }
    }
    Ok(0)
}

/// Prints a piece to the stream that it came from; the time stands before the first of a line.
fn print(args: &Args, begins: &mut [bool; 2], line: &LogLine) -> std::io::Result<()> {
    let mut text = Vec::new();
    let index = usize::from(line.stream == Stream::Stderr);
    if args.timestamps && begins[index] {
        text.extend_from_slice(line.time.as_bytes());
        text.push(b' ');
    }
    begins[index] = line.text.ends_with(b"\n");
    text.extend_from_slice(&line.text);
    match line.stream {
        Stream::Stdout => std::io::stdout().lock().write_all(&text),
        Stream::Stderr => std::io::stderr().lock().write_all(&text),
    }
}
