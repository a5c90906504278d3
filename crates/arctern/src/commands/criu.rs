//! `criu`: the engine on bare process trees, with CRIU's command line.
//!
//! Options have CRIU's names and meanings and exit codes are its: 0 and 1. What this version does
//! not know is refused as an unknown option, never ignored; options that only concern state which
//! the engine refuses anyway are accepted.

mod ahead;
mod lock;
mod log;
mod spec;
pub(super) mod tracker;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use arctern_engine::options::{
    AfterCapture, CaptureOptions, Event, Events, External, ExternalUnix, NetworkLock,
    RestoreOptions, TcpPolicy,
};
use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::{DumpStatsEntry, InventoryEntry, RestoreStatsEntry, StatsEntry};
use clap::Parser;

use crate::report::{CommandResult, Failure};
use lock::TreeLock;
use log::Log;

/// Dump and restore process trees with CRIU's command line
///
/// Takes the commands and options of CRIU; `arctern criu --help` lists them. The program does the
/// same when it is called as `criu`.
///
///   arctern criu dump -t 4711 -D /tmp/images --shell-job
///   arctern criu restore -d -D /tmp/images --shell-job
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, disable_help_flag = true)]
pub struct Args {
    /// A CRIU command with its options
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}

/// Dump and restore process trees, as CRIU does
#[derive(Debug, Parser)]
#[command(name = "criu", disable_version_flag = true, max_term_width = 100)]
struct Criu {
    /// dump, pre-dump, restore or check
    #[arg(value_name = "COMMAND", required_unless_present = "version")]
    command: Option<Command>,

    /// Process whose tree is dumped
    #[arg(short = 't', long = "tree", value_name = "PID")]
    tree: Option<i32>,
    /// Directory of the images
    #[arg(short = 'D', long, value_name = "DIR", default_value = ".")]
    images_dir: PathBuf,
    /// Directory of logs, pid files and statistics [default: that of the images]
    #[arg(short = 'W', long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Log to this file in the work directory [default: standard error]
    #[arg(short = 'o', long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Say more: -v to -vvvv, or -v0 to -v4
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log level, 0 to 4
    #[arg(long, value_name = "LEVEL", require_equals = true, num_args = 0..=1, default_missing_value = "3")]
    verbosity: Option<u8>,
    /// Print the version
    #[arg(short = 'V', long)]
    version: bool,

    /// Tell what a dump would refuse, all of it, and stop nobody
    #[arg(long)]
    check: bool,
    /// Tell it as JSON
    #[arg(long, requires = "check")]
    json: bool,
    /// Let the tasks go on after a dump
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Leave the tasks stopped
    #[arg(short = 's', long, conflicts_with = "leave_running")]
    leave_stopped: bool,
    /// Return as soon as the tasks are restored
    #[arg(short = 'd', long)]
    restore_detached: bool,
    /// Restore the root task as a sibling of this process; needs -d
    #[arg(short = 'S', long, requires = "restore_detached")]
    restore_sibling: bool,
    /// Write the root task's pid to this file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Root of the restored mount namespace; a mount point
    #[arg(short = 'r', long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Session, group or terminal may belong to somebody outside the tree
    #[arg(short = 'j', long)]
    shell_job: bool,
    /// Dump and restore file locks
    #[arg(short = 'l', long)]
    file_locks: bool,
    /// Something that stays outside the images
    #[arg(long, value_name = "KEY[:VALUE]")]
    external: Vec<String>,
    /// Use this process's descriptor N for what the images call KEY
    #[arg(long, value_name = "fd[N]:KEY")]
    inherit_fd: Vec<String>,
    /// Connect unix sockets again by name to sockets outside: those with these inodes, or all; with
    /// `close`, their other ends are closed
    #[arg(short = 'x', long, value_name = "INODE,…|close", require_equals = true, num_args = 0..=1, default_missing_value = "")]
    ext_unix_sk: Option<String>,
    /// Carry live TCP connections
    #[arg(long, conflicts_with = "tcp_close")]
    tcp_established: bool,
    /// Drop live TCP connections: their descriptors become closed sockets
    #[arg(long)]
    tcp_close: bool,
    /// Drop TCP connections that nobody has accepted yet
    #[arg(long)]
    skip_in_flight: bool,
    /// How connections are kept from harm meanwhile: nftables, or skip
    #[arg(long, value_name = "METHOD", value_parser = ["nftables", "skip"], default_value = "nftables")]
    network_lock: String,
    /// Link deleted files back while they are dumped
    #[arg(long)]
    link_remap: bool,
    /// Largest deleted file that goes into the images
    #[arg(long, value_name = "SIZE", value_parser = spec::parse_ghost_limit, default_value = "1M")]
    ghost_limit: u64,
    /// Control groups: none, props, soft, full, strict or ignore
    #[arg(long, value_name = "MODE", require_equals = true, num_args = 0..=1, default_missing_value = "soft")]
    #[arg(value_parser = ["none", "props", "soft", "full", "strict", "ignore"])]
    manage_cgroups: Option<String>,
    /// Freeze through this control group
    #[arg(long, value_name = "DIR")]
    freeze_cgroup: Option<PathBuf>,
    /// Give up stopping the tasks after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// Go on to notice which memory is written, for the next dump
    #[arg(long)]
    track_mem: bool,
    /// Dump only what was written since the dump in this directory, relative to that of the images
    #[arg(long, value_name = "DIR")]
    prev_images_dir: Option<PathBuf>,
    /// How a pre-dump reads memory; the tasks run meanwhile in either case
    #[arg(long, value_name = "MODE", value_parser = ["splice", "read"], default_value = "splice")]
    pre_dump_mode: String,
    /// Print statistics
    #[arg(long)]
    display_stats: bool,
    /// Read no configuration files; none are read
    #[arg(long)]
    no_default_config: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Command {
    Dump,
    PreDump,
    Restore,
    Check,
}

/// Runs the command from `arctern criu`.
pub fn run(args: Args) -> CommandResult {
    main(args.arguments)
}

/// Runs the command with its arguments, without the name.
pub fn main(arguments: Vec<std::ffi::OsString>) -> CommandResult {
    let mut all = vec![std::ffi::OsString::from("criu")];
    all.extend(arguments.into_iter().map(expand_verbosity));
    let args = match Criu::try_parse_from(all) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return Ok(u8::from(error.use_stderr()));
        }
    };
    let fail =
        |action: &str, error| Failure { action: action.to_owned(), error, code: 1, state: None };
    if args.version {
        outln!("Version: 4.2");
        return Ok(0);
    }
    match args.command {
        Some(Command::Dump) if args.check => {
            let tree = args.tree.map_or_else(String::new, |pid| format!(" {pid}"));
            check(&args).map_err(|e| fail(&format!("check process tree{tree}"), e))
        }
        Some(Command::Dump) => {
            let tree = args.tree.map_or_else(String::new, |pid| format!(" {pid}"));
            dump(args).map_err(|e| fail(&format!("dump process tree{tree}"), e))
        }
        Some(Command::PreDump) => {
            let tree = args.tree.map_or_else(String::new, |pid| format!(" {pid}"));
            ahead::pre_dump(&args)
                .map_err(|e| fail(&format!("copy the memory of process tree{tree} ahead"), e))
        }
        Some(Command::Restore) => {
            let dir = args.images_dir.display().to_string();
            restore(args).map_err(|e| fail(&format!("restore from {dir}"), e))
        }
        Some(Command::Check) => {
            let code = super::check::failed();
            outln!(
                "{}",
                if code {
                    "Some features are missing: see `arctern check`."
                } else {
                    "Looks good."
                }
            );
            Ok(u8::from(code))
        }
        None => Ok(1),
    }
}

/// `-v4` as the parser knows it.
fn expand_verbosity(argument: std::ffi::OsString) -> std::ffi::OsString {
    match argument.to_str().and_then(|a| a.strip_prefix("-v")) {
        Some(level) if level.len() == 1 && level.bytes().all(|b| b.is_ascii_digit()) => {
            format!("--verbosity={level}").into()
        }
        _ => argument,
    }
}

/// `criu dump --check`: nothing is stopped, nothing is written.
fn check(args: &Criu) -> anyhow::Result<u8> {
    let pid = args.tree.context("no process is named: give -t PID")?;
    let root = OnceCell::from(pid);
    let network = TreeLock::new(&root).context("make an id for the lock")?;
    let mut lock = &network;
    let network_lock = args.locks().then_some(&mut lock as &mut dyn NetworkLock);
    let options = capture_options(args, network_lock)?;
    let refusals = arctern_engine::check(arctern_sys::Pid(pid), &options)?;
    super::blockers::print(&refusals, args.json)
}

/// What the command line says of a dump.
fn capture_options<'a>(
    args: &Criu,
    network: Option<&'a mut dyn NetworkLock>,
) -> anyhow::Result<CaptureOptions<'a>> {
    let externals =
        args.external.iter().map(|s| spec::parse_dump(s)).collect::<Result<Vec<_>, _>>()?;
    let (external_unix, sockets) = match args.ext_unix_sk.as_deref() {
        None => (ExternalUnix::Refuse, Vec::new()),
        Some(text) => spec::parse_sockets(text)?,
    };
    Ok(CaptureOptions {
        after: match (args.leave_running, args.leave_stopped) {
            (true, _) => AfterCapture::Resume,
            (_, true) => AfterCapture::Stop,
            _ => AfterCapture::Kill,
        },
        externals: externals
            .into_iter()
            .chain(sockets.into_iter().map(|ino| External::Unix { ino }))
            .collect(),
        shell_job: args.shell_job,
        orphan_terminals: false,
        external_unix,
        file_locks: args.file_locks,
        ghost_limit: args.ghost_limit,
        timeout: Duration::from_secs(args.timeout),
        freeze_cgroup: args.freeze_cgroup.clone(),
        tcp: args.tcp(),
        skip_in_flight: args.skip_in_flight,
        network,
        while_frozen: None,
        before_release: None,
        hand_over: None,
    })
}

fn dump(args: Criu) -> anyhow::Result<u8> {
    let pid = args.tree.context("no process is named: give -t PID")?;
    let mut log = open_log(&args)?;
    let root = OnceCell::from(pid);
    let network = TreeLock::new(&root).context("make an id for the lock")?;
    let (mut lock, stops) = (&network, !args.leave_running && !args.leave_stopped);
    let mut before_release = || if stops { network.keep() } else { Ok(()) };
    let network_lock = args.locks().then_some(&mut lock as &mut dyn NetworkLock);
    let options = CaptureOptions {
        before_release: Some(&mut before_release),
        ..capture_options(&args, network_lock)?
    };
    match ahead::capture(&args, pid, options, &mut log) {
        Ok(report) => {
            log.info(&format!(
                "Dumping finished successfully: {} processes, {} pages",
                report.processes, report.pages_written
            ));
            let entry = DumpStatsEntry {
                freezing_time: micros(report.freezing_us),
                frozen_time: micros(report.frozen_us),
                memdump_time: micros(report.memory_us),
                memwrite_time: micros(report.memory_us),
                pages_scanned: report.pages_scanned,
                pages_skipped_parent: report.pages_unchanged,
                pages_written: report.pages_written,
                ..DumpStatsEntry::default()
            };
            let stats = StatsEntry { dump: Some(entry), restore: None };
            write_stats(&args, ImageKind::StatsDump, &stats)?;
            if args.display_stats {
                outln!("Displaying dump stats:");
                outln!("Freezing time: {} us", report.freezing_us);
                outln!("Frozen time: {} us", report.frozen_us);
                outln!("Memory dump time: {} us", report.memory_us);
                outln!("Memory pages scanned: {}", report.pages_scanned);
                outln!("Memory pages skipped from parent: {}", report.pages_unchanged);
                outln!("Memory pages written: {}", report.pages_written);
            }
            Ok(0)
        }
        Err(error) => {
            log.error(&arctern_container::error::chain(error.as_ref()));
            log.error("Dumping FAILED.");
            Err(error)
        }
    }
}

fn restore(args: Criu) -> anyhow::Result<u8> {
    let mut log = open_log(&args)?;
    let externals =
        args.external.iter().map(|s| spec::parse_restore(s)).collect::<Result<Vec<_>, _>>()?;
    let inherit_fds =
        args.inherit_fd.iter().map(|s| spec::inherit(s)).collect::<Result<Vec<_>, _>>()?;
    let pidfile = args.pidfile.as_ref().map(|f| args.work().join(f));
    let inventory: InventoryEntry =
        ImageDir::open(&args.images_dir)?.read_one(ImageKind::Inventory, 0)?;
    if args.locks() && inventory.network_lock_method == Some(IPTABLES) {
        log.event(Event::Warning(
            "the connections were locked with iptables rules, which only CRIU removes: dump with \
             --network-lock nftables"
                .to_owned(),
        ));
    }
    let tree = OnceCell::new();
    let network = TreeLock::of(inventory.dump_criu_run_id.as_deref().unwrap_or("none"), &tree);
    let mut lock = &network;
    let mut note_root = |pid: i32| {
        tree.get_or_init(|| pid);
        Ok(())
    };
    // A program whose connections were dropped may end before the lock of its dump does.
    let mut hold_namespace = |_| network.hold_namespace();
    let options = RestoreOptions {
        confinement: None,
        root: args.root.clone(),
        externals,
        inherit_fds,
        cgroups: Vec::new(),
        shell_job: args.shell_job,
        orphan_terminal: None,
        leave_stopped: args.leave_stopped,
        file_locks: args.file_locks,
        tcp: args.tcp(),
        network: args.locks().then_some(&mut lock),
        preloaded: None,
        sibling: args.restore_sibling,
        setup_namespaces: Some(&mut note_root),
        before_resume: Some(&mut hold_namespace),
    };
    match arctern_engine::restore(&args.images_dir, options, &mut log) {
        Ok(report) => {
            // Without connections the restore has nothing to unlock, but the dump had locked.
            if args.tcp_close
                && args.locks()
                && inventory.dump_criu_run_id.is_some()
                && let Err(e) = lock.unlock()
            {
                log.event(Event::Warning(format!("the lock of the dump stays: {e}")));
            }
            log.info("Restore finished successfully. Tasks resumed.");
            if let Some(file) = pidfile {
                std::fs::write(&file, report.pid.to_string())
                    .with_context(|| format!("write {}", file.display()))?;
            }
            let entry = RestoreStatsEntry {
                forking_time: micros(report.forking_us),
                restore_time: micros(report.total_us),
                pages_restored: Some(report.pages_restored),
                ..RestoreStatsEntry::default()
            };
            let stats = StatsEntry { dump: None, restore: Some(entry) };
            write_stats(&args, ImageKind::StatsRestore, &stats)?;
            if !args.restore_detached {
                wait(report.pid)?;
            }
            Ok(0)
        }
        Err(error) => {
            log.error(&arctern_container::error::chain(&error));
            log.error("Restoring FAILED.");
            Err(error.into())
        }
    }
}

/// `network_lock_method` of an inventory.
const IPTABLES: u32 = 0;

impl Criu {
    fn tcp(&self) -> TcpPolicy {
        match (self.tcp_established, self.tcp_close) {
            (true, _) => TcpPolicy::Established,
            (_, true) => TcpPolicy::Close,
            _ => TcpPolicy::Refuse,
        }
    }

    fn locks(&self) -> bool {
        self.network_lock != "skip"
    }

    fn work(&self) -> &Path {
        self.work_dir.as_deref().unwrap_or(&self.images_dir)
    }

    fn level(&self) -> u8 {
        self.verbosity.unwrap_or(if self.verbose == 0 { 2 } else { self.verbose.min(4) })
    }
}

/// Writes `stats-dump` or `stats-restore` into the work directory.
fn write_stats(args: &Criu, kind: ImageKind, stats: &StatsEntry) -> anyhow::Result<()> {
    ImageDir::open(args.work())?.write_one(kind, 0, stats)?;
    Ok(())
}

/// Microseconds as the statistics hold them.
fn micros(time: u64) -> u32 {
    u32::try_from(time).unwrap_or(u32::MAX)
}

fn open_log(args: &Criu) -> anyhow::Result<Log> {
    if !args.images_dir.is_dir() {
        bail!("images directory {} does not exist", args.images_dir.display());
    }
    let file = args.log_file.as_ref().map(|f| args.work().join(f));
    Log::open(file.as_deref(), args.level())
        .with_context(|| format!("open the log {}", file.unwrap_or_default().display()))
}

/// Waits for the restored root task, this process's child.
fn wait(pid: i32) -> anyhow::Result<()> {
    use rustix::process::{Pid, WaitOptions, waitpid};
    loop {
        match waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) if status.exited() || status.signaled() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Not our child: somebody else waits for it.
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(e) => return Err(e).context("wait for the restored tasks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Criu {
        let words = line.split_whitespace().map(|w| expand_verbosity(w.into()));
        Criu::try_parse_from(std::iter::once("criu".into()).chain(words)).expect(line)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Criu::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_after_the_command() {
        let args =
            parse("-v4 dump -t 12 -D . -o dump.log --manage-cgroups --external mnt[/a]:b -j");
        assert_eq!((args.tree, args.level(), args.shell_job), (Some(12), 4, true));
        assert_eq!(args.manage_cgroups.as_deref(), Some("soft"));
        let args = parse("restore -d -vvv -S --root /x --inherit-fd fd[3]:pipe:[12]");
        assert_eq!((args.level(), args.restore_sibling), (3, true));
        assert_eq!(args.root, Some(PathBuf::from("/x")));
    }
}
