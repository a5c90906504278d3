//! `top`

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::Table;

/// Show the processes of a container
///
/// With those that `exec` started. Pids are the container's; hpid is the host's. What is shown:
/// user, uid, group, pid, hpid, ppid, pgid, pcpu, etime, tty, time, nice, rss and vsz (in KiB), state,
/// comm, args.
///
///   arctern top web
///   arctern top web pid hpid rss args
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The container that was created last
    #[arg(short, long)]
    pub latest: bool,
    /// Container, by name or id, without --latest; then what to show
    #[arg(value_names = ["CONTAINER", "DESCRIPTOR"], required_unless_present = "latest")]
    pub words: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut asked: Vec<String> = args.words;
    let name = match args.latest {
        true => host.latest().cannot(|| "find the latest container")?,
        false => asked.remove(0),
    };
    // Podman's users write them apart or with commas.
    let asked: Vec<String> =
        asked.iter().flat_map(|word| word.split(',')).map(str::to_ascii_lowercase).collect();
    let rows =
        host.top(&name, &asked).cannot(|| format!("show the processes of container `{name}`"))?;
    let mut table = Table::bare();
    rows.into_iter().for_each(|row| table.row(row));
    out!("{}", table.render());
    Ok(0)
}
