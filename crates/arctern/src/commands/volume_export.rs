//! `volume export`

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Write the files of a volume as a tar
///
///   arctern volume export data --output data.tar
///   arctern volume export data | tar t
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Volume, by name
    #[arg(value_name = "VOLUME")]
    pub volume: String,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("export volume `{}`", args.volume);
    let info = ctx.host()?.volume(&args.volume).cannot(action)?;
    let out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(std::fs::File::create(path).cannot(action)?),
        None => Box::new(io::stdout().lock()),
    };
    let mut out = BufWriter::with_capacity(1 << 20, out);
    arctern_storage::tree::archive(&info.mountpoint, &mut out).cannot(action)?;
    out.flush().cannot(action)?;
    Ok(0)
}
