//! `start`

use arctern_container::Error;
use arctern_container::state::Status;

use super::{Context, for_each};
use crate::attach::{self, Streams};
use crate::report::{Cannot, CommandResult};

/// Start containers that were created or have stopped
///
/// Prints the name of each container that was started; one that runs already is left alone.
///
///   arctern start web
///   arctern start --attach job
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Show the container's output and give its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Send standard input to the container
    #[arg(short, long)]
    pub interactive: bool,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let attach = args.attach || args.interactive;
    if let ([name], true) = (args.containers.as_slice(), attach) {
        let record = host.find(name).cannot(|| format!("start container `{name}`"))?;
        let streams = Streams { stdin: args.interactive, terminal: record.config.terminal };
        let started = host.start(name, true).cannot(|| format!("start container `{name}`"))?;
        let code = attach::container(started.connection, streams)
            .cannot(|| format!("follow container `{name}`"))?;
        return Ok(code.map_or(0, super::run::exit_code));
    }
    for_each(&args.containers, |name| {
        let action = || format!("start container `{name}`");
        match host.start(name, false) {
            Ok(_) | Err(Error::WrongState { status: Status::Running, .. }) => {}
            Err(error) => return Err(error).cannot(action),
        }
        outln!("{name}");
        Ok(())
    })
}
