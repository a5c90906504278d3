//! `exec`

use arctern_container::lifecycle::ExecOptions;

use super::Context;
use super::run::exit_code;
use crate::report::{Cannot, CommandResult};

/// Run a command in a running container
///
///   arctern exec web nginx -s reload
///   arctern exec -it web sh
///   arctern exec -u www-data -w /tmp web id
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User and group, names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set a variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let container = args.container;
    let action = || format!("execute a command in container `{container}`");
    let options = ExecOptions {
        command: args.command,
        user: args.user,
        env: args.env,
        workdir: args.workdir,
        terminal: args.tty,
        stdin: args.interactive,
    };
    let mut session = ctx.host()?.exec(&container, options).cannot(action)?;
    let code = match session.terminal.take() {
        Some(terminal) => {
            crate::attach::exec(&session, terminal, args.interactive).cannot(action)?
        }
        None => session.wait().cannot(action)?,
    };
    Ok(exit_code(code))
}
