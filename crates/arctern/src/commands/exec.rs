//! `exec`

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use arctern_container::lifecycle::ExecOptions;

use super::Context;
use super::run::exit_code;
use crate::report::{Cannot, CommandResult};

/// Run a command in a running container
///
/// Gives the command's exit code; with --detach the command goes on by itself, and nobody hears of
/// its output.
///
///   arctern exec web nginx -s reload
///   arctern exec -it web sh
///   arctern exec -u www-data -w /tmp web id
///   arctern exec -d -e LEVEL=2 web sh -c 'sleep 1; echo $LEVEL > /tmp/done'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Do not wait for the command
    #[arg(short, long, conflicts_with = "tty")]
    pub detach: bool,
    /// The container that was created last
    #[arg(short, long)]
    pub latest: bool,
    /// Variables from files, a line each: NAME=VALUE, or NAME
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// All capabilities
    #[arg(long)]
    pub privileged: bool,
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
    /// Container, by name or id, without --latest; then the command and its arguments
    #[arg(
        value_names = ["CONTAINER", "COMMAND"],
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub words: Vec<String>,
}

/// Set for the process that waits for a detached command.
const BACKGROUND: &str = "ARCTERN_EXEC_BACKGROUND";

/// Starts this program once more, to execute the command and to wait for it: a container does not
/// end before somebody has waited for each of its processes. Returns when the command runs, with
/// what was said if it does not.
fn detach() -> std::io::Result<u8> {
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    if said.is_empty() {
        return Ok(0);
    }
    eprint!("{said}");
    Ok(child.wait()?.code().map_or(125, exit_code))
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    if args.detach && std::env::var_os(BACKGROUND).is_none() {
        return detach().cannot(|| "execute a command in the background");
    }
    if args.detach {
        rustix::process::setsid().cannot(|| "leave the session of the terminal")?;
    }
    let mut host = ctx.host()?;
    let mut command = args.words;
    let container = match args.latest {
        true => host.latest().cannot(|| "find the latest container")?,
        false => command.remove(0),
    };
    let action = || format!("execute a command in container `{container}`");
    if command.is_empty() {
        return Err(anyhow::anyhow!("there is no command after the container")).cannot(action);
    }
    let mut env = super::files::lines(&args.env_file).cannot(action)?;
    env.extend(args.env);
    let options = ExecOptions {
        command,
        user: args.user,
        env,
        workdir: args.workdir,
        terminal: args.tty,
        stdin: args.interactive && !args.detach,
        detach: args.detach,
        privileged: args.privileged,
    };
    let background = options.detach;
    let mut session = host.exec(&container, options).cannot(action)?;
    if background {
        // This tells the command that it is done: nothing was said.
        let null = File::options().write(true).open("/dev/null").cannot(action)?;
        rustix::stdio::dup2_stderr(&null).cannot(action)?;
    }
    let code = match session.terminal.take() {
        Some(terminal) => {
            crate::attach::exec(&session, terminal, args.interactive).cannot(action)?
        }
        None => session.wait().cannot(action)?,
    };
    Ok(exit_code(code))
}
