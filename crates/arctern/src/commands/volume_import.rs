//! `volume import`

use std::io::{self, Read};
use std::path::PathBuf;

use arctern_storage::unpack::Devices;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Write the files of a tar into a volume, over what is there
///
///   arctern volume import data data.tar
///   tar c . | arctern volume import data -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Volume, by name
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// The tar; `-` for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("import into volume `{}`", args.volume);
    let info = ctx.host()?.volume(&args.volume).cannot(action)?;
    let source: Box<dyn Read> = match args.file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(std::fs::File::open(&args.file).cannot(action)?),
    };
    arctern_storage::tree::extract(source, &info.mountpoint, Devices::Character).cannot(action)?;
    arctern_storage::tree::sync(&info.mountpoint).cannot(action)?;
    Ok(0)
}
