//! `run`

use arctern_container::process::ProcessId;
use rustix::process::Signal;

use super::Context;
use super::create::ContainerArgs;
use crate::attach::{self, Streams};
use crate::report::{Cannot, CommandResult};

/// Create a container and start it
///
/// In the foreground the container's output is shown and its exit code is the command's; with
/// --detach its id is printed and it goes on in the background.
///
///   arctern run -d --name web -p 8080:80 nginx
///   arctern run --rm -it debian bash
///   arctern run --rm -e GREETING=hello debian sh -c 'echo $GREETING'
///
/// With a terminal, ctrl-p ctrl-q leaves the container running in the background.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let options = args.container.into_options();
    let image = options.image.clone();
    let streams = Streams { stdin: options.stdin, terminal: options.terminal };
    let auto_remove = options.auto_remove;
    let record = host.create(options).cannot(|| format!("run a container from `{image}`"))?;
    let started = match host.start(record.id(), !args.detach) {
        Ok(started) => started,
        Err(error) => {
            if auto_remove {
                let _ = host.remove(record.id(), true);
            }
            return Err(error).cannot(|| format!("start container `{}`", record.name()));
        }
    };
    for warning in &started.warnings {
        eprintln!("warning: {warning}");
    }
    if args.detach {
        outln!("{}", record.id());
        return Ok(0);
    }
    drop(host);
    if !streams.terminal {
        forward_signals(started.pid).cannot(|| "catch signals")?;
    }
    let code = attach::container(started.connection, streams)
        .cannot(|| format!("follow container `{}`", record.name()))?;
    Ok(code.map_or(0, exit_code))
}

/// An exit code as the system can give it.
pub fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(255)
}

/// Passes on to a container's init what this process is told.
pub fn forward_signals(pid: i32) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    let Some(init) = ProcessId::of(pid) else { return Ok(()) };
    let list = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
    let mut signals = signal_hook::iterator::Signals::new(list)?;
    std::thread::spawn(move || {
        for number in signals.forever() {
            if let (Some(signal), Some(process)) = (Signal::from_named_raw(number), init.open()) {
                let _ = process.signal(signal);
            }
        }
    });
    Ok(())
}
