//! `save`

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use arctern_storage::SaveFormat;

use super::Context;
use crate::output::Output;
use crate::report::{Cannot, CommandResult};

/// Write images to an archive
///
/// Without --output it goes to standard output. `load` reads it, here and in Podman and Docker.
/// Images that are checkpoints need the form oci-archive.
///
///   arctern save -o web.tar web
///   arctern save --format oci-archive web | ssh other arctern load
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Form of the archive
    #[arg(long, value_name = "FORMAT", value_parser = ["docker-archive", "oci-archive"], default_value = "docker-archive")]
    pub format: String,
    /// Several images in one archive; they are understood without it, too
    #[arg(short, long)]
    pub multi_image_archive: bool,
    /// Print nothing; this is the default
    #[arg(short, long)]
    pub quiet: bool,
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("save `{}`", args.images.join("`, `"));
    let format = match args.format.as_str() {
        "oci-archive" => SaveFormat::Oci,
        _ => SaveFormat::Docker,
    };
    if args.output.is_none() && io::stdout().is_terminal() {
        let reason = "an archive is nothing for a terminal: give --output, or redirect it";
        return Err(anyhow::anyhow!(reason)).cannot(action);
    }
    let host = ctx.host()?;
    let mut archive = host.images.save(&args.images, format).cannot(action)?;
    let mut out = Output::open(args.output.as_deref()).cannot(action)?;
    io::copy(&mut archive, &mut out).cannot(action)?;
    out.finish().cannot(action)?;
    Ok(0)
}
