//! `internal`: what this program runs of itself, and what packagers need.

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
    /// Write man pages into a directory
    Man {
        /// Directory
        dir: std::path::PathBuf,
    },
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
        Internal::Man { dir } => {
            let action = || format!("write man pages into {}", dir.display());
            std::fs::create_dir_all(&dir).cannot(action)?;
            clap_mangen::generate_to(Cli::command(), &dir).cannot(action)?;
        }
        Internal::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "arctern", &mut std::io::stdout());
        }
    }
    Ok(0)
}
