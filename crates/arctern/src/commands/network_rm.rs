//! `network rm`

use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Remove networks
///
///   arctern network rm lan
///   arctern network rm --force lan      # with its containers
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Remove its containers and locks too; a network that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// Networks, by name or id
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    for_each(&args.networks, |name| {
        match host.remove_network(name, args.force) {
            Err(arctern_container::Error::NoSuchNetwork(_)) if args.force => {}
            result => {
                result.cannot(|| format!("remove network `{name}`"))?;
                outln!("{name}");
            }
        }
        Ok(())
    })
}
