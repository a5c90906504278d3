//! One command a file: its options, which are its help page, and what it does with them.

pub mod attach;
mod blockers;
pub mod check;
pub mod checkpoint;
pub mod checkpoint_diff;
pub mod checkpoint_inspect;
pub mod checkpoint_ls;
pub mod checkpoint_prune;
pub mod checkpoint_rm;
pub mod container_exists;
pub mod container_prune;
pub mod cp;
pub mod create;
pub mod criu;
pub mod diff;
pub mod engine_args;
mod examples;
pub mod exec;
pub mod files;
pub mod forward_ls;
pub mod forward_rm;
pub mod health_args;
pub mod healthcheck_run;
pub mod history;
pub mod image_exists;
pub mod image_inspect;
pub mod image_prune;
pub mod image_tree;
pub mod images;
pub mod import;
pub mod info;
pub mod inspect;
pub mod internal;
pub mod kill;
mod lists;
pub mod load;
pub mod login;
pub mod logout;
pub mod logs;
pub mod migrate;
pub mod network_create;
pub mod network_exists;
pub mod network_inspect;
pub mod network_ls;
pub mod network_prune;
pub mod network_rm;
pub mod pause;
pub mod port;
pub mod ps;
pub mod pull;
pub mod push;
pub mod registry_args;
pub mod rename;
pub mod restart;
pub mod restore;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod save;
pub mod seal_args;
mod select;
pub mod start;
pub mod stats;
pub mod stop;
pub mod system_check;
pub mod tag;
pub mod top;
pub mod unpause;
pub mod untag;
pub mod version;
pub mod volume_create;
pub mod volume_exists;
pub mod volume_export;
pub mod volume_import;
pub mod volume_inspect;
pub mod volume_ls;
pub mod volume_prune;
pub mod volume_rm;
pub mod wait;

use arctern_container::Host;
use arctern_container::paths::Paths;

use crate::cli::{Checkpoint, Cli, Command, Forward, Healthcheck, Image, Network, System, Volume};
use crate::report::{Cannot, CommandResult, Failure};

/// What every command gets: where the host is. It is opened by those that need it.
pub struct Context {
    paths: Paths,
}

impl Context {
    /// Opens the host.
    pub fn host(&self) -> Result<Host, Failure> {
        Host::open(self.paths.clone()).cannot(|| format!("open {}", self.paths.root.display()))
    }

    /// Where the host is.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }
}

/// Runs the command.
pub fn run(cli: Cli) -> CommandResult {
    let paths = Paths::new(&cli.root, &cli.runroot).cannot(|| "find the current directory")?;
    let ctx = Context { paths };
    let command = match cli.command {
        Command::Container(command) => command.into(),
        Command::Image(command) => command.short_form(),
        command => command,
    };
    match command {
        Command::Run(args) => run::run(&ctx, *args),
        Command::Create(args) => create::run(&ctx, *args),
        Command::Start(args) => start::run(&ctx, args),
        Command::Stop(args) => stop::run(&ctx, args),
        Command::Restart(args) => restart::run(&ctx, args),
        Command::Pause(args) => pause::run(&ctx, args),
        Command::Unpause(args) => unpause::run(&ctx, args),
        Command::Rename(args) => rename::run(&ctx, args),
        Command::Attach(args) => attach::run(&ctx, args),
        Command::Cp(args) => cp::run(&ctx, args),
        Command::Diff(args) => diff::run(&ctx, args),
        Command::Top(args) => top::run(&ctx, args),
        Command::Stats(args) => stats::run(&ctx, args),
        Command::ContainerPrune(args) => container_prune::run(&ctx, args),
        Command::ContainerExists(args) => container_exists::run(&ctx, args),
        Command::Healthcheck(Healthcheck::Run(args)) => healthcheck_run::run(&ctx, args),
        Command::Kill(args) => kill::run(&ctx, args),
        Command::Rm(args) => rm::run(&ctx, args),
        Command::Ps(args) => ps::run(&ctx, args),
        Command::Logs(args) => logs::run(&ctx, args),
        Command::Exec(args) => exec::run(&ctx, args),
        Command::Inspect(args) => inspect::run(&ctx, args),
        Command::Wait(args) => wait::run(&ctx, args),
        Command::Port(args) => port::run(&ctx, args),
        Command::Checkpoint(args) => match (args.command, args.capture) {
            (Some(Checkpoint::Ls(args)), _) => checkpoint_ls::run(&ctx, args),
            (Some(Checkpoint::Inspect(args)), _) => checkpoint_inspect::run(&ctx, args),
            (Some(Checkpoint::Diff(args)), _) => checkpoint_diff::run(&ctx, args),
            (Some(Checkpoint::Rm(args)), _) => checkpoint_rm::run(&ctx, args),
            (Some(Checkpoint::Prune(args)), _) => checkpoint_prune::run(&ctx, args),
            (None, args) => checkpoint::run(&ctx, args),
        },
        Command::Restore(args) => restore::run(&ctx, args),
        Command::Migrate(args) => migrate::run(&ctx, args),
        Command::Import(args) => import::run(&ctx, args),
        Command::Images(args) => images::run(&ctx, args),
        Command::Rmi(args) => rmi::run(&ctx, args),
        Command::Tag(args) => tag::run(&ctx, args),
        Command::Untag(args) => untag::run(&ctx, args),
        Command::Pull(args) => pull::run(&ctx, args),
        Command::Push(args) => push::run(&ctx, args),
        Command::Load(args) => load::run(&ctx, args),
        Command::Save(args) => save::run(&ctx, args),
        Command::History(args) => history::run(&ctx, args),
        Command::Login(args) => login::run(&ctx, args),
        Command::Logout(args) => logout::run(&ctx, args),
        Command::Image(Image::Exists(args)) => image_exists::run(&ctx, args),
        Command::Image(Image::Inspect(args)) => image_inspect::run(&ctx, args),
        Command::Image(Image::Prune(args)) => image_prune::run(&ctx, args),
        Command::Image(Image::Tree(args)) => image_tree::run(&ctx, args),
        Command::Network(Network::Create(args)) => network_create::run(&ctx, args),
        Command::Network(Network::Ls(args)) => network_ls::run(&ctx, args),
        Command::Network(Network::Inspect(args)) => network_inspect::run(&ctx, args),
        Command::Network(Network::Prune(args)) => network_prune::run(&ctx, args),
        Command::Network(Network::Rm(args)) => network_rm::run(&ctx, args),
        Command::Network(Network::Exists(args)) => network_exists::run(&ctx, args),
        Command::Forward(Forward::Ls(args)) => forward_ls::run(&ctx, args),
        Command::Forward(Forward::Rm(args)) => forward_rm::run(&ctx, args),
        Command::Volume(Volume::Create(args)) => volume_create::run(&ctx, args),
        Command::Volume(Volume::Exists(args)) => volume_exists::run(&ctx, args),
        Command::Volume(Volume::Export(args)) => volume_export::run(&ctx, args),
        Command::Volume(Volume::Import(args)) => volume_import::run(&ctx, args),
        Command::Volume(Volume::Inspect(args)) => volume_inspect::run(&ctx, args),
        Command::Volume(Volume::Ls(args)) => volume_ls::run(&ctx, args),
        Command::Volume(Volume::Prune(args)) => volume_prune::run(&ctx, args),
        Command::Volume(Volume::Rm(args)) => volume_rm::run(&ctx, args),
        Command::System(System::Check(args)) => system_check::run(&ctx, args),
        Command::Info(args) => info::run(&ctx, args),
        Command::Version(args) => version::run(args),
        Command::Check(args) => check::run(args),
        Command::Criu(args) => criu::run(args),
        Command::Internal(args) => internal::run(&ctx, args),
        // Turned into their members above.
        Command::Container(_) | Command::Image(_) => Ok(0),
    }
}

/// Runs a closure for each name, goes on after a failure, and fails at the end with the first one;
/// the others are printed as they happen.
pub fn for_each(
    names: &[String],
    mut act: impl FnMut(&str) -> Result<(), Failure>,
) -> CommandResult {
    let mut first: Option<Failure> = None;
    for name in names {
        if let Err(failure) = act(name) {
            match &first {
                None => first = Some(failure),
                Some(_) => {
                    crate::report::print(&failure);
                }
            }
        }
    }
    first.map_or(Ok(0), Err)
}
