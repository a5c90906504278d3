//! `migrate`

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use arctern_container::config::parse_size;
use arctern_container::extras::parse_duration;
use arctern_container::time::Timestamp;
use arctern_engine::options::Fate;
use arctern_migrate::destination::{Destination, Remote};
use arctern_migrate::policy::Limits;
use arctern_migrate::{Forwarding, MigrateError, MigrateOptions, Moved, Outcome, Plan};

use super::Context;
use super::checkpoint::{Limit, parse_limit};
use crate::output::Output;
use crate::progress::Progress;
use crate::report::{Cannot, CommandResult, Failure};
use crate::timeline;
use crate::ui::{duration, size};

/// Of the last word clap cannot know that it is something else.
const USAGE: &str = "arctern migrate [OPTIONS] <CONTAINER>... <DESTINATION>\n       \
     arctern migrate [OPTIONS] --resolve <CONTAINER>";

/// Move running containers to another host
///
/// Each is frozen here, built there, and goes on there where it was: memory, open files, half-served
/// requests, live TCP connections. The other host needs arctern and an sshd, no daemon and no open
/// port; ssh is the system's, with your keys, agent and configuration.
///
///   arctern migrate web ssh://hostB
///   arctern migrate --dry-run web ssh://root@hostB:2222
///   arctern migrate --report move.html web ssh://hostB
///   arctern migrate web cache db ssh://hostB
///   arctern migrate --resolve web
///
/// Several containers are frozen together and go together, with what they say to each other: all of
/// them run there, or all of them go on here.
///
/// Its memory is sent ahead while it runs, what it wrote meanwhile again, in rounds that go on as long
/// as they get shorter; only the rest is sent while it stands still. If that would take longer than
/// --max-downtime, it is not moved.
///
/// Before anything is touched the other host says everything that is in the way. If the move fails,
/// the container goes on here, and so do those that were to go with it. When the connection ends in
/// the one instant in which the container is being handed over, nobody knows which copy is the right
/// one: neither runs here, `arctern ps` shows it as migrating, and --resolve asks the other host and
/// does what follows, for all containers of that move.
///
/// Open connections through published ports of this host, and those that it masquerades, go on by
/// way of it, and new ones are led to the other host, for as long as --forward-for says. Both hosts
/// must be on one segment, and ssh must use it. `arctern forward ls` shows what is led on.
///
/// Exit codes: 0 they run there, 125 they run here as before, 3 it is not known, 4 they are there and
/// one of them does not run yet.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, override_usage = USAGE)]
pub struct Args {
    /// Say what is in the way and what would be sent, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave the containers here, stopped
    #[arg(long)]
    pub keep_source: bool,
    /// Rounds of memory at most that are sent while it runs; 0 sends all of it in the freeze
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    pub rounds: u32,
    /// The longest freeze that is accepted, as `300ms`; if it would be longer the container stays
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub max_downtime: Option<Duration>,
    /// Send no more than this in a second, as `50m` for 50 MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub bandwidth: Option<u64>,
    /// How long connections by way of this host are led to the other one; `none`: until
    /// `arctern forward rm`
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_limit)]
    pub forward_for: Limit,
    /// Do not lead connections by way of this host to the other one
    #[arg(long, conflicts_with = "forward_for")]
    pub no_forward: bool,
    /// End the doubt about an earlier move
    #[arg(long, conflicts_with = "dry_run")]
    pub resolve: bool,
    /// Write what was done to this file, as a page for a browser with the timeline drawn
    #[arg(long, value_name = "FILE.html", conflicts_with_all = ["dry_run", "resolve"])]
    pub report: Option<PathBuf>,
    /// Print what was done as JSON: an object, for several containers a list of them
    #[arg(long)]
    pub json: bool,
    /// The program on the other host
    #[arg(long, value_name = "PATH", default_value = "arctern")]
    pub remote_program: PathBuf,
    /// Its --root
    #[arg(long, value_name = "DIR")]
    pub remote_root: Option<PathBuf>,
    /// Its --runroot
    #[arg(long, value_name = "DIR")]
    pub remote_runroot: Option<PathBuf>,
    /// The ssh program
    #[arg(long, value_name = "PROGRAM", default_value = "ssh")]
    pub ssh: String,
    /// An option for ssh, as in its configuration
    #[arg(short = 'o', long = "ssh-option", value_name = "KEY=VALUE")]
    pub ssh_options: Vec<String>,
    /// Containers by name or id, and last where they go: ssh://[user@]host[:port]
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    pub words: Vec<String>,
}

impl Args {
    /// The containers, and where they go unless an earlier move is resolved.
    fn places(&self) -> Result<(&[String], Option<Destination>), Failure> {
        let refuse = |text: &str| Err(anyhow::anyhow!("{text}")).cannot(|| "migrate");
        match (self.resolve, self.words.as_slice()) {
            (true, [_]) => Ok((&self.words, None)),
            (true, _) => refuse("--resolve takes one container, and ends the doubt about its move"),
            (false, [containers @ .., last]) if !containers.is_empty() => {
                let destination = last.parse().cannot(|| "migrate")?;
                Ok((containers, Some(destination)))
            }
            (false, _) => {
                refuse("name containers and then where they go: ssh://[user@]host[:port]")
            }
        }
    }
}

/// Exit code when nobody knows where the container is.
const IN_DOUBT: u8 = 3;

/// Exit code when a container has arrived and was not let go.
const STOPPED: u8 = 4;

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let (containers, destination) = args.places()?;
    let Some(destination) = destination else {
        let container = &containers[0];
        let fate = arctern_migrate::resolve(&mut host, container, &args.ssh, args.keep_source)
            .cannot(|| format!("resolve the move of container `{container}`"))?;
        outln!(
            "{}",
            match fate {
                Fate::Gone => "it is at its destination",
                Fate::Back => "it goes on here",
            }
        );
        return Ok(0);
    };
    let options = MigrateOptions {
        remote: Remote {
            destination,
            program: args.remote_program.clone(),
            root: args.remote_root.clone(),
            runroot: args.remote_runroot.clone(),
            ssh_options: args.ssh_options.clone(),
        },
        ssh: args.ssh.clone(),
        dry_run: args.dry_run,
        keep_source: args.keep_source,
        limits: Limits { rounds: args.rounds, downtime: args.max_downtime },
        bandwidth: args.bandwidth.filter(|rate| *rate > 0),
        forward: match (args.no_forward, args.forward_for.0) {
            (true, _) => Forwarding::Never,
            (false, Some(time)) => Forwarding::For(time),
            (false, None) => Forwarding::Always,
        },
    };
    // A page that cannot be written is told before anything is touched.
    let action = || format!("write the report of the move of {}", named(containers));
    let report = args.report.as_deref().map(|file| Output::open(Some(file))).transpose();
    let report = report.cannot(action)?;
    let mut progress = Progress::new();
    let outcome = arctern_migrate::migrate(&mut host, containers, &options, &mut progress)
        .map_err(|error| failure(containers, error))?;
    drop(progress);
    if let (Some(file), Outcome::Moved(moved)) = (report, &outcome) {
        // It runs there, whatever becomes of the page.
        if let Err(error) = write_page(file, moved) {
            eprintln!("warning: there is no report: {error:#}");
        }
    }
    if args.json {
        outln!("{}", json(&outcome).cannot(|| "write JSON")?);
        return Ok(0);
    }
    match outcome {
        Outcome::Planned(plans) => plans.iter().for_each(tell_plan),
        Outcome::Moved(moved) => tell(&moved),
    }
    Ok(0)
}

/// One container as an object, several as a list.
fn json(outcome: &Outcome) -> serde_json::Result<String> {
    match outcome {
        Outcome::Planned(plans) if plans.len() == 1 => serde_json::to_string_pretty(&plans[0]),
        Outcome::Moved(moved) if moved.len() == 1 => serde_json::to_string_pretty(&moved[0]),
        several => serde_json::to_string_pretty(several),
    }
}

/// Containers as a sentence has them.
fn named(containers: &[String]) -> String {
    let kind = if containers.len() == 1 { "container" } else { "containers" };
    format!("{kind} `{}`", containers.join("`, `"))
}

fn write_page(mut file: Output, moved: &[Moved]) -> anyhow::Result<()> {
    let page = timeline::page(moved, &Timestamp::now().rfc3339_seconds());
    file.write_all(page.as_bytes())?;
    file.finish()
}

fn failure(containers: &[String], error: MigrateError) -> Failure {
    let state = match (&error, containers.len()) {
        (MigrateError::InDoubt { .. }, 1) => "The container is frozen here.",
        (MigrateError::InDoubt { .. }, _) => "The containers are frozen here.",
        (MigrateError::Stopped { .. }, _) => "Nothing runs here any more.",
        (_, 1) => "The container runs on here.",
        _ => "The containers run on here.",
    };
    let code = match error {
        MigrateError::InDoubt { .. } => Some(IN_DOUBT),
        MigrateError::Stopped { .. } => Some(STOPPED),
        _ => None,
    };
    let hint = error.hint();
    let mut failure = Failure::new(format!("migrate {}", named(containers)), error);
    if let Some(code) = code {
        failure.code = code;
    }
    match hint {
        Some(hint) => failure.leaving(format!("hint: {hint}\n{state}")),
        None => failure.leaving(state),
    }
}

fn tell_plan(plan: &Plan) {
    let image = match plan.image {
        true => format!(", and the image: {} layer(s), {}", plan.layers, size(plan.image_bytes)),
        false => String::new(),
    };
    outln!("nothing is in the way of `{}` to {}", plan.container, plan.destination);
    outln!("memory {}, changed files {}{image}", size(plan.memory), size(plan.changed));
    let Some(estimate) = plan.estimate else { return };
    outln!(
        "it writes {}/s of memory, {}/s are carried: {} round(s) with {}, then {} in a freeze of about {}",
        size(estimate.dirty_rate),
        size(estimate.rate),
        estimate.rounds,
        size(estimate.ahead),
        size(estimate.rest),
        duration(estimate.downtime_us),
    );
    if estimate.refused {
        outln!("that is longer than --max-downtime: it would not be moved");
    }
}

fn tell(all: &[Moved]) {
    for moved in all {
        for warning in &moved.warnings {
            eprintln!("warning: {warning}");
        }
        outln!("{} runs at {}", moved.plan.container, moved.plan.destination);
        let of = match all.len() {
            1 => String::new(),
            _ => format!("{}: ", moved.plan.container),
        };
        tell_times(&of, moved);
    }
}

fn tell_times(of: &str, moved: &Moved) {
    eprintln!(
        "{of}down {} (capture {}, send {}, build {}, hand over {}), total {}, sent {}",
        duration(moved.downtime_us),
        duration(moved.capture_us),
        duration(moved.sending_us),
        duration(moved.building_us),
        duration(moved.commit_us),
        duration(moved.total_us),
        size(moved.sent),
    );
}
