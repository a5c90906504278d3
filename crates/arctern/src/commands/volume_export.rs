//! `volume export`

use std::io::{self, BufWriter};
use std::path::PathBuf;

use super::Context;
use crate::output::Output;
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
    let out = Output::open(args.output.as_deref()).cannot(action)?;
    let mut out = BufWriter::with_capacity(1 << 20, out);
    arctern_storage::tree::archive(&info.mountpoint, &mut out).cannot(action)?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error).cannot(action)?;
    out.finish().cannot(action)?;
    Ok(0)
}
