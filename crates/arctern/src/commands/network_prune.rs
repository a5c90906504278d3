//! `network prune`

use super::lists::{Condition, parse_condition};
use super::network_ls::is_meant;
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};
use crate::ui::confirm;

/// Remove the networks that no container is made for
///
/// The default network stays, and so does one on which packets are held for a container that waits
/// to be restored from a file. Prints the names of the removed ones.
///
///   arctern network prune --force
///   arctern network prune --force --filter label=test --filter until=24h
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only matching ones: id=, name=, label=, driver=, until=
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    if !args.force && !confirm("Remove all networks that no container uses?").cannot(|| "ask")? {
        return Ok(0);
    }
    let mut host = ctx.host()?;
    let used = host.used_networks().cannot(|| "list networks")?;
    let unused =
        host.networks().cannot(|| "list networks")?.into_iter().filter(|network| {
            !used.contains(&network.name) && is_meant(&args.filter, network, false)
        });
    let names: Vec<String> = unused.map(|network| network.name).collect();
    for_each(&names, |name| {
        match host.remove_network(name, false) {
            // Gone, or used meanwhile: that is what others wanted of it.
            Err(
                arctern_container::Error::NoSuchNetwork(_)
                | arctern_container::Error::NetworkInUse { .. },
            ) => return Ok(()),
            result => result.cannot(|| format!("remove network `{name}`"))?,
        }
        outln!("{name}");
        Ok(())
    })
}
