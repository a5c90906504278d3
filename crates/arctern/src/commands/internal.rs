//! `internal`: what this program runs of itself, and what packagers need.

use std::fs::File;
use std::os::fd::AsFd;

use arctern_container::keeper;
use arctern_container::shim::{self, Action};
use clap::{CommandFactory, ValueEnum};

use super::Context;
use crate::cli::Cli;
use crate::report::{Cannot, CommandResult};

/// Parts of this program that are not for people
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Internal,
}

#[derive(Debug, clap::Subcommand)]
enum Internal {
    /// The shim of a container; started by start, run and restore
    Shim {
        /// What to do first
        action: ShimAction,
        /// Container id
        id: String,
        /// Send output to the command
        #[arg(long)]
        attach: bool,
    },
    /// The keeper of a container's network lock; started by checkpoint
    Keeper {
        /// Container id
        id: String,
    },
    /// Takes in a container that another host sends; started by its `migrate`, through ssh
    Receive,
    /// Keeps the tracking of a tree's written memory between two dumps; started by criu pre-dump
    Tracker {
        /// Root process of the tree
        pid: i32,
    },
    /// Write man pages into a directory
    Man {
        /// Directory
        dir: std::path::PathBuf,
    },
    /// Print the examples of every command's help, as JSON
    Examples,
    /// Print shell completions
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShimAction {
    Start,
    Restore,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    match args.command {
        Internal::Shim { action, id, attach } => {
            let action = match action {
                ShimAction::Start => Action::Start,
                ShimAction::Restore => Action::Restore,
            };
            shim::run(ctx.paths().clone(), &id, action, attach)
                .cannot(|| format!("be the shim of container {id}"))?;
        }
        Internal::Keeper { id } => {
            keeper::run(ctx.paths().clone(), &id)
                .cannot(|| format!("keep the network lock of container {id}"))?;
        }
        Internal::Receive => {
            let mut host = ctx.host()?;
            // Unbuffered: whoever waits for a message must see all that is there.
            let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
            let from = stdin.as_fd().try_clone_to_owned().cannot(|| "take over standard input")?;
            let to = stdout.as_fd().try_clone_to_owned().cannot(|| "take over standard output")?;
            arctern_migrate::receive(&mut host, File::from(from), File::from(to))
                .cannot(|| "take in a container of another host")?;
        }
        Internal::Tracker { pid } => {
            super::criu::tracker::keep(pid)
                .cannot(|| format!("keep the tracking of process {pid}"))?;
        }
        Internal::Man { dir } => {
            let action = || format!("write man pages into {}", dir.display());
            std::fs::create_dir_all(&dir).cannot(action)?;
            clap_mangen::generate_to(Cli::command(), &dir).cannot(action)?;
        }
        Internal::Examples => {
            let all = super::examples::of(&Cli::command());
            outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
        }
        Internal::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "arctern", &mut std::io::stdout());
        }
    }
    Ok(0)
}
