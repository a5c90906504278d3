//! `push`

use std::path::PathBuf;

use arctern_storage::registry::{Format, PushOptions};

use super::Context;
use super::registry_args::RegistryArgs;
use crate::report::{Cannot, CommandResult};
use crate::transfer::Transfers;

/// Send an image to a registry
///
/// To the registry of its name, or to another name. Layers that the registry has are not sent again.
/// An image that is a checkpoint is pushed like any other.
///
///   arctern push registry.example:5000/team/web:1
///   arctern push web registry.example:5000/team/web:1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the digest of the manifest to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,
    /// Format of the manifest: oci or v2s2 (Docker's) [default: as it is]
    #[arg(short, long, value_name = "FORMAT", value_parser = ["oci", "v2s2"])]
    pub format: Option<String>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Name in the registry, if it is another one
    #[arg(value_name = "DESTINATION")]
    pub destination: Option<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let action = || format!("push `{}`", args.image);
    let options = PushOptions {
        access: args.registry.access(),
        format: args.format.as_deref().map(|format| match format {
            "v2s2" => Format::Docker,
            _ => Format::Oci,
        }),
    };
    let transfers = Transfers::new(args.quiet);
    let destination = args.destination.as_deref();
    let pushed = host.images.push(&args.image, destination, &options, &transfers).cannot(action)?;
    if let Some(file) = &args.digestfile {
        std::fs::write(file, format!("sha256:{}", pushed.digest))
            .cannot(|| format!("write {}", file.display()))?;
    }
    if !args.quiet {
        eprintln!("{} has the digest sha256:{}", pushed.name, pushed.digest);
    }
    Ok(0)
}
