//! `run`

use arctern_container::Host;
use arctern_container::checkpoint::RestoreOptions;
use arctern_container::process::ProcessId;
use arctern_storage::Image;
use clap::Parser;
use rustix::process::Signal;

use super::Context;
use super::create::{ContainerArgs, create};
use super::restore::restore_image;
use crate::attach::{self, DetachKeys, Streams};
use crate::report::{Cannot, CommandResult};
use crate::transfer::Transfers;

/// Create a container and start it
///
/// In the foreground the container's output is shown and its exit code is the command's; with
/// --detach its id is printed and it goes on in the background.
///
///   arctern run -d --name web -p 8080:80 nginx
///   arctern run --rm -it debian bash
///   arctern run --rm -e GREETING=hello debian sh -c 'echo $GREETING'
///   arctern run -d --restart on-failure:3 --init --name worker debian sleep infinity
///
/// An image that is a checkpoint is restored, as by `arctern container restore IMAGE`.
///
/// With a terminal, ctrl-p ctrl-q leaves the container running in the background.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// Pass signals on to the container, when it has no terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
    /// Keys that leave the container running, with a terminal; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: DetachKeys,
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let image = args.container.image.clone();
    let found = args.container.pull.clone().ensure(&host, &image)?;
    if !found.checkpoint.is_empty() {
        return from_checkpoint(&mut host, &found, args);
    }
    let container = args.container;
    let streams =
        Streams { stdin: container.interactive, terminal: container.tty, keys: args.detach_keys };
    let auto_remove = container.rm;
    let record = create(&mut host, container, found.id)
        .cannot(|| format!("run a container from `{image}`"))?;
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
    if args.sig_proxy && !streams.terminal {
        forward_signals(started.pid).cannot(|| "catch signals")?;
    }
    let code = attach::container(started.connection, streams)
        .cannot(|| format!("follow container `{}`", record.name()))?;
    Ok(code.map_or(0, exit_code))
}

/// Lets a checkpoint go on as a new container. What else makes a container is in the checkpoint.
fn from_checkpoint(host: &mut Host, image: &Image, args: Args) -> CommandResult {
    let container = args.container;
    let name = container.image.clone();
    let action = || format!("run the checkpoint `{name}`");
    let plain = Plain::try_parse_from(["run", &name]).cannot(action)?.container;
    let allowed = ContainerArgs {
        name: container.name.clone(),
        publish: container.publish.clone(),
        pull: container.pull.clone(),
        ..plain
    };
    if format!("{allowed:?}") != format!("{container:?}") {
        let reason = "it can be run with --detach, --name, --publish and the registry options only: \
                      the rest is as it was when the checkpoint was made, and `container restore` has \
                      options for what it may have";
        return Err(anyhow::anyhow!(reason)).cannot(action);
    }
    let options =
        RestoreOptions { name: container.name, publish: container.publish, ..Default::default() };
    let pull = container.pull.options();
    let done =
        restore_image(host, image, &options, &pull, &Transfers::new(false)).cannot(action)?;
    for warning in &done.warnings {
        eprintln!("warning: {warning}");
    }
    if args.detach {
        outln!("{}", done.record.id());
        return Ok(0);
    }
    let config = &done.record.config;
    let keys = args.detach_keys;
    let streams = Streams { stdin: config.stdin, terminal: config.terminal, keys };
    let connection = host.connect(&done.record, true).cannot(action)?;
    if !streams.terminal {
        forward_signals(done.report.pid).cannot(|| "catch signals")?;
    }
    let code = attach::container(connection, streams)
        .cannot(|| format!("follow container `{}`", config.name))?;
    Ok(code.map_or(0, exit_code))
}

/// A command line with an image and nothing else.
#[derive(Debug, clap::Parser)]
struct Plain {
    #[command(flatten)]
    container: ContainerArgs,
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
