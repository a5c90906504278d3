//! The command line: global options and the tree of commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::commands::{
    attach, check, checkpoint, checkpoint_diff, checkpoint_inspect, checkpoint_ls,
    checkpoint_prune, checkpoint_rm, container_exists, container_prune, cp, create, criu, diff,
    exec, forward_ls, forward_rm, healthcheck_run, images, import, info, inspect, internal, kill,
    logs, migrate, network_create, network_exists, network_inspect, network_ls, network_prune,
    network_rm, pause, port, ps, rename, restart, restore, rm, rmi, run, start, stats, stop,
    system_check, tag, top, unpause, version, volume_create, volume_exists, volume_export,
    volume_import, volume_inspect, volume_ls, volume_prune, volume_rm, wait,
};
use crate::commands::{
    history, image_exists, image_inspect, image_prune, image_tree, load, login, logout, pull, push,
    save, untag,
};

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Run containers and move them, running, from host to host.
///
/// Commands and options are those of Podman. A container can be frozen to a file with all its
/// processes, memory, files and connections, and go on from there later or elsewhere:
///
///   arctern run -d -p 8080:80 --name web nginx
///   arctern container checkpoint web --file web.tar.gz
///   arctern container restore --name web2 --file web.tar.gz
///
/// Exit codes: 125 arctern itself failed, 126 the command in the container cannot be executed, 127
/// it was not found, otherwise that of the command.
#[derive(Debug, Parser)]
#[command(name = "arctern", version, verbatim_doc_comment, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Directory for what survives a reboot: images, containers, checkpoints
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/arctern")]
    #[arg(help_heading = GLOBAL)]
    pub root: PathBuf,

    /// Directory for what belongs to the running system
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/arctern")]
    #[arg(help_heading = GLOBAL)]
    pub runroot: PathBuf,

    /// How much to say about what happens inside
    #[arg(long, global = true, value_name = "LEVEL", help_heading = GLOBAL)]
    pub log_level: Option<LogLevel>,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Level of diagnostics.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogLevel {
    /// Nothing but errors
    Error,
    /// What may be wrong
    Warn,
    /// What is done
    Info,
    /// How it is done
    Debug,
    /// Everything
    Trace,
}

impl LogLevel {
    /// As a filter of the tracing library.
    pub fn filter(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<run::Args>),
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Pause(pause::Args),
    Unpause(unpause::Args),
    Kill(kill::Args),
    Rm(rm::Args),
    Rename(rename::Args),
    Attach(attach::Args),
    Cp(cp::Args),
    Diff(diff::Args),
    Top(top::Args),
    Stats(stats::Args),
    Ps(ps::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Inspect(inspect::Args),
    Wait(wait::Args),
    Port(port::Args),
    Checkpoint(CheckpointArgs),
    Restore(restore::Args),
    Migrate(migrate::Args),
    /// Manage containers: all commands about them, also those with short forms
    #[command(subcommand, visible_alias = "ctr")]
    Container(Container),
    #[command(skip)]
    ContainerPrune(container_prune::Args),
    #[command(skip)]
    ContainerExists(container_exists::Args),
    /// Check the health of containers
    #[command(subcommand)]
    Healthcheck(Healthcheck),
    Import(import::Args),
    Images(images::Args),
    Rmi(rmi::Args),
    Tag(tag::Args),
    Untag(untag::Args),
    Pull(pull::Args),
    Push(push::Args),
    Load(load::Args),
    Save(save::Args),
    History(history::Args),
    Login(login::Args),
    Logout(logout::Args),
    /// Manage images
    #[command(subcommand)]
    Image(Image),
    /// Manage networks
    #[command(subcommand)]
    Network(Network),
    /// Connections by way of hosts that containers have left
    #[command(subcommand)]
    Forward(Forward),
    /// Manage volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Look after what is stored
    #[command(subcommand)]
    System(System),
    Info(info::Args),
    Version(version::Args),
    Check(check::Args),
    Criu(criu::Args),
    #[command(hide = true)]
    Internal(internal::Args),
}

/// Freeze containers to disk, and manage checkpoints
///
/// With names of containers, or with options, it is `arctern container checkpoint`, whose help says
/// more. The commands below are about checkpoints: those that are kept with containers, and files.
///
///   arctern checkpoint web
///   arctern checkpoint inspect web.tar.gz
///
/// A container whose name is one of these commands is checkpointed with `arctern container checkpoint`.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub struct CheckpointArgs {
    /// What is done with checkpoints.
    #[command(subcommand)]
    pub command: Option<Checkpoint>,
    #[command(flatten)]
    pub capture: checkpoint::Args,
}

/// `arctern checkpoint …`
#[derive(Debug, Subcommand)]
pub enum Checkpoint {
    #[command(name = "ls", visible_alias = "list")]
    Ls(checkpoint_ls::Args),
    Inspect(checkpoint_inspect::Args),
    Diff(checkpoint_diff::Args),
    Rm(checkpoint_rm::Args),
    Prune(checkpoint_prune::Args),
}

/// `arctern container …`
#[derive(Debug, Subcommand)]
pub enum Container {
    Run(Box<run::Args>),
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Pause(pause::Args),
    Unpause(unpause::Args),
    Kill(kill::Args),
    Rm(rm::Args),
    Rename(rename::Args),
    Attach(attach::Args),
    Cp(cp::Args),
    Diff(diff::Args),
    Top(top::Args),
    Stats(stats::Args),
    Prune(container_prune::Args),
    Exists(container_exists::Args),
    #[command(visible_aliases = ["list", "ls"])]
    Ps(ps::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Inspect(inspect::Args),
    Wait(wait::Args),
    Port(port::Args),
    Checkpoint(checkpoint::Args),
    Restore(restore::Args),
}

impl From<Container> for Command {
    fn from(command: Container) -> Command {
        match command {
            Container::Run(a) => Command::Run(a),
            Container::Create(a) => Command::Create(a),
            Container::Start(a) => Command::Start(a),
            Container::Stop(a) => Command::Stop(a),
            Container::Restart(a) => Command::Restart(a),
            Container::Pause(a) => Command::Pause(a),
            Container::Unpause(a) => Command::Unpause(a),
            Container::Rename(a) => Command::Rename(a),
            Container::Attach(a) => Command::Attach(a),
            Container::Cp(a) => Command::Cp(a),
            Container::Diff(a) => Command::Diff(a),
            Container::Top(a) => Command::Top(a),
            Container::Stats(a) => Command::Stats(a),
            Container::Prune(a) => Command::ContainerPrune(a),
            Container::Exists(a) => Command::ContainerExists(a),
            Container::Kill(a) => Command::Kill(a),
            Container::Rm(a) => Command::Rm(a),
            Container::Ps(a) => Command::Ps(a),
            Container::Logs(a) => Command::Logs(a),
            Container::Exec(a) => Command::Exec(a),
            Container::Inspect(a) => Command::Inspect(a),
            Container::Wait(a) => Command::Wait(a),
            Container::Port(a) => Command::Port(a),
            Container::Checkpoint(a) => {
                Command::Checkpoint(CheckpointArgs { command: None, capture: a })
            }
            Container::Restore(a) => Command::Restore(a),
        }
    }
}

/// `arctern healthcheck …`
#[derive(Debug, Subcommand)]
pub enum Healthcheck {
    Run(healthcheck_run::Args),
}

/// `arctern image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    Pull(pull::Args),
    Push(push::Args),
    Load(load::Args),
    Save(save::Args),
    Import(import::Args),
    #[command(name = "ls", visible_alias = "list")]
    Ls(images::Args),
    Inspect(image_inspect::Args),
    History(history::Args),
    Tree(image_tree::Args),
    Exists(image_exists::Args),
    Tag(tag::Args),
    Untag(untag::Args),
    Rm(rmi::Args),
    Prune(image_prune::Args),
}

impl Image {
    /// The command of the first level that does the same; itself where there is none.
    pub fn short_form(self) -> Command {
        match self {
            Image::Pull(a) => Command::Pull(a),
            Image::Push(a) => Command::Push(a),
            Image::Load(a) => Command::Load(a),
            Image::Save(a) => Command::Save(a),
            Image::Import(a) => Command::Import(a),
            Image::Ls(a) => Command::Images(a),
            Image::History(a) => Command::History(a),
            Image::Tag(a) => Command::Tag(a),
            Image::Untag(a) => Command::Untag(a),
            Image::Rm(a) => Command::Rmi(a),
            own => Command::Image(own),
        }
    }
}

/// `arctern network …`
#[derive(Debug, Subcommand)]
pub enum Network {
    Create(network_create::Args),
    #[command(name = "ls", visible_alias = "list")]
    Ls(network_ls::Args),
    Inspect(network_inspect::Args),
    Prune(network_prune::Args),
    Rm(network_rm::Args),
    Exists(network_exists::Args),
}

/// `arctern forward …`
#[derive(Debug, Subcommand)]
pub enum Forward {
    #[command(name = "ls", visible_alias = "list")]
    Ls(forward_ls::Args),
    Rm(forward_rm::Args),
}

/// `arctern volume …`
#[derive(Debug, Subcommand)]
pub enum Volume {
    Create(volume_create::Args),
    Exists(volume_exists::Args),
    Export(volume_export::Args),
    Import(volume_import::Args),
    Inspect(volume_inspect::Args),
    #[command(name = "ls", visible_alias = "list")]
    Ls(volume_ls::Args),
    Prune(volume_prune::Args),
    Rm(volume_rm::Args),
}

/// `arctern system …`
#[derive(Debug, Subcommand)]
pub enum System {
    Check(system_check::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn checkpoint_takes_names_and_commands() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Checkpoint(args)) = parse("arctern checkpoint web db") else {
            panic!("names")
        };
        assert!(args.command.is_none() && args.capture.select.containers == ["web", "db"]);
        let Ok(Command::Checkpoint(args)) = parse("arctern checkpoint ls") else { panic!("ls") };
        assert!(matches!(args.command, Some(Checkpoint::Ls(_))));
        let Ok(Command::Container(Container::Checkpoint(args))) =
            parse("arctern container checkpoint ls")
        else {
            panic!("a container called ls")
        };
        assert_eq!(args.select.containers, ["ls"]);
        assert!(parse("arctern checkpoint").is_err());
    }
}
