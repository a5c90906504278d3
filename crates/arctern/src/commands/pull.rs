//! `pull`

use arctern_storage::registry::{Platform, PullOptions};

use super::registry_args::{RegistryArgs, parse};
use super::{Context, for_each};
use crate::report::{CommandResult, Failure};
use crate::transfer::Transfers;

/// Get images from registries
///
/// A short name goes by the aliases of registries.conf, and then by the registries that it says are
/// to be searched, else docker.io. Layers that are here already are not moved; everything that comes
/// is compared with its digest. Prints the images' ids.
///
///   arctern pull nginx
///   arctern pull quay.io/prometheus/busybox:latest
///   arctern pull --creds user:secret registry.example:5000/team/web@sha256:DIGEST
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print nothing but ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Get the image for this kind of machine
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse::<Platform>)]
    pub platform: Option<Platform>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Images: [REGISTRY/]PATH[:TAG|@sha256:DIGEST]
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let options = PullOptions {
        access: args.registry.access(),
        platform: args.platform,
        ..PullOptions::default()
    };
    for_each(&args.images, |name| {
        let transfers = Transfers::new(args.quiet);
        let image = host.images.pull(name, &options, &transfers).map_err(|error| {
            Failure::new(format!("pull `{name}`"), error).leaving("Nothing of it was kept.")
        })?;
        outln!("{}", image.id);
        Ok(())
    })
}
