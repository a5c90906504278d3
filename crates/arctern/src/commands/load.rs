//! `load`

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Take images from an archive
///
/// That `save` wrote, here or in Podman or Docker, compressed with gzip or zstd or not. Without
/// --input it comes from standard input. Every digest is compared.
///
///   arctern load -i web.tar
///   curl https://images.example/web.tar.zst | arctern load
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// File to read
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let name = args.input.as_ref().map_or("standard input".into(), |f| f.display().to_string());
    let action = || format!("load images from {name}");
    let source: Box<dyn Read> = match &args.input {
        Some(file) => Box::new(File::open(file).cannot(action)?),
        None if io::stdin().is_terminal() => {
            let reason = "a terminal is no archive: give --input, or redirect it";
            return Err(anyhow::anyhow!(reason)).cannot(action);
        }
        None => Box::new(io::stdin().lock()),
    };
    let host = ctx.host()?;
    let images = host.images.load(source).cannot(action)?;
    if !args.quiet {
        for image in images {
            match image.names.is_empty() {
                true => outln!("Loaded image: sha256:{}", image.id),
                false => image.names.iter().for_each(|name| outln!("Loaded image: {name}")),
            }
        }
    }
    Ok(0)
}
