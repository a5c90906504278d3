//! `start`

use arctern_container::Error;
use arctern_container::state::Status;

use super::select::{Filter, Select, parse_filter, running};
use super::{Context, for_each};
use crate::attach::{self, DetachKeys, Streams};
use crate::report::{Cannot, CommandResult};

/// Start containers that were created or have stopped
///
/// Prints the name of each container that was started; one that runs already is left alone. After a
/// boot nothing starts by itself: the last example starts what is to run then.
///
///   arctern start web
///   arctern start --attach job
///   arctern start --all --filter should-start-on-boot=true
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Show the container's output and give its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Send standard input to the container
    #[arg(short, long)]
    pub interactive: bool,
    /// Keys that leave the container running, with a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: DetachKeys,
    /// All that do not run
    #[arg(long, conflicts_with = "containers")]
    pub all: bool,
    /// The container that was created last
    #[arg(short, long, conflicts_with_all = ["all", "containers"])]
    pub latest: bool,
    /// All that match, as those of `ps`
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_filter, conflicts_with_all = ["latest", "containers"])]
    pub filter: Vec<Filter>,
    /// Containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "latest", "filter"])]
    pub containers: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let attach = args.attach || args.interactive;
    // `-a` is --attach here, as Podman has it; all else is as everywhere.
    let Args { all, latest, filter, containers, .. } = args;
    let select = Select { all, latest, filter, containers };
    let names = select.names(&mut host, |host, record| !running(host, record))?;
    if let ([name], true) = (names.as_slice(), attach) {
        let action = || format!("start container `{name}`");
        let record = host.find(name).cannot(action)?;
        let streams = Streams {
            stdin: args.interactive,
            terminal: record.config.terminal,
            keys: args.detach_keys,
        };
        let started = host.start(name, true).cannot(action)?;
        drop(host);
        if !streams.terminal {
            super::run::forward_signals(started.pid).cannot(|| "catch signals")?;
        }
        let code = attach::container(started.connection, streams)
            .cannot(|| format!("follow container `{name}`"))?;
        return Ok(code.map_or(0, super::run::exit_code));
    }
    for_each(&names, |name| {
        let action = || format!("start container `{name}`");
        match host.start(name, false) {
            Ok(_) | Err(Error::WrongState { status: Status::Running, .. }) => {}
            Err(error) => return Err(error).cannot(action),
        }
        outln!("{name}");
        Ok(())
    })
}
