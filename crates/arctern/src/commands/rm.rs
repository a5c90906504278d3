//! `rm`

use super::select::Select;
use super::{Context, for_each};
use crate::report::{Cannot, CommandResult};

/// Remove containers with their files and checkpoints
///
///   arctern rm web
///   arctern rm --force db      # also if it runs
///   arctern rm --filter status=exited
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Kill a container that runs, and give up connections that wait for the restore of a file; a
    /// container that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// Seconds to stop a running container before it is killed, with --force
    #[arg(short, long, value_name = "SECONDS", requires = "force")]
    pub time: Option<u32>,
    /// Also the volumes of theirs that nobody gave a name
    #[arg(short, long)]
    pub volumes: bool,
    /// A container that does not exist is no error
    #[arg(short, long)]
    pub ignore: bool,
    #[command(flatten)]
    pub select: Select,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let names = args.select.names(&mut host, |_, _| true)?;
    for_each(&names, |name| {
        let action = || format!("remove container `{name}`");
        if let (true, Some(time)) = (args.force, args.time) {
            host.stop(name, Some(time)).cannot(action)?;
        }
        match host.remove(name, args.force) {
            Err(arctern_container::Error::NoSuchContainer(_)) if args.force || args.ignore => {}
            result => {
                let record = result.cannot(action)?;
                if args.volumes {
                    host.remove_anonymous(&record.config).cannot(action)?;
                }
                outln!("{name}");
            }
        }
        Ok(())
    })
}
