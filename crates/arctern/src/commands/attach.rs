//! `attach`

use super::Context;
use super::select::One;
use crate::attach::{self, DetachKeys, Streams};
use crate::report::{Cannot, CommandResult};

/// Show a running container's output and send it what is typed
///
/// From now on: what it wrote before is in `logs`. Ends with the container, and gives its exit code.
/// With a terminal, ctrl-p ctrl-q leaves the container running; without one, the signals that end
/// this command go to the container.
///
///   arctern attach job
///   arctern attach --no-stdin --sig-proxy=false job
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Send no input
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the container, when it has no terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
    /// Keys that leave the container running, with a terminal; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: DetachKeys,
    #[command(flatten)]
    pub one: One,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let name = args.one.name(&host)?;
    let action = || format!("attach to container `{name}`");
    let (record, connection) = host.attach(&name).cannot(action)?;
    let streams =
        Streams { stdin: !args.no_stdin, terminal: record.config.terminal, keys: args.detach_keys };
    drop(host);
    if let (true, false, Some(init)) = (args.sig_proxy, streams.terminal, record.init) {
        super::run::forward_signals(init.pid).cannot(|| "catch signals")?;
    }
    let code = attach::container(connection, streams).cannot(action)?;
    Ok(code.map_or(0, super::run::exit_code))
}
