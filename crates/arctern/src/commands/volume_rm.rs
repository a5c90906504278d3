//! `volume rm`

use arctern_container::Error;
use arctern_storage::StoreError;

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Remove volumes with their files
///
///   arctern volume rm data
///   arctern volume rm --force data      # also the containers that have it
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Remove the containers that have it as well; a volume that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// All volumes
    #[arg(short, long)]
    pub all: bool,
    /// Volumes, by name
    #[arg(value_name = "VOLUME", required_unless_present = "all")]
    pub volumes: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut names = args.volumes;
    if args.all {
        let volumes = host.volumes().cannot(|| "list volumes")?;
        names.extend(volumes.into_iter().map(|info| info.volume.name));
    }
    let missing = |error: &Error| match error {
        Error::Storage(inner) => {
            matches!(inner.downcast_ref(), Some(StoreError::NoSuchVolume(_)))
        }
        _ => false,
    };
    for_each(&names, |name| match host.volume_remove(name, args.force) {
        Err(error) if args.force && missing(&error) => Ok(()),
        result => {
            result.cannot(|| format!("remove volume `{name}`"))?;
            outln!("{name}");
            Ok(())
        }
    })
}
