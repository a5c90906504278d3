//! `checkpoint`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arctern_container::checkpoint::{CheckpointOptions, Checkpointed};
use arctern_container::state::Record;
use arctern_container::{Error, Host};
use arctern_engine::options::ExternalUnix;
use arctern_image::archive::Compression;
use serde_json::{Value, json};

use super::engine_args::EngineArgs;
use super::seal_args::SealArgs;
use super::select::{Select, running};
use super::{Context, blockers, for_each};
use crate::interrupt;
use crate::progress::Progress;
use crate::report::{Cannot, CommandResult, Failure};
use crate::ui::{duration, size};

/// Freeze containers to disk
///
/// All processes are stopped at one instant and written down with their memory, files, sockets and
/// timers. The container stops, unless --leave-running is given, and `restore` lets it go on.
/// Without --file the checkpoint stays with the container.
///
///   arctern container checkpoint --dry-run web
///   arctern container checkpoint db
///   arctern container checkpoint --leave-running --compress none -e web.tar web
///   arctern container checkpoint --leave-running web --create-image registry.example/team/web-checkpoint
///   arctern container checkpoint web --file web.tar.gz
///   arctern container checkpoint --leave-running frozen --sign key --encrypt-to friends --file frozen.tar.zst.age
///   arctern container checkpoint --all
///   arctern container checkpoint web --file - | ssh root@hostB arctern container restore --file -
///
/// With --tcp-established, nothing reaches or leaves the container's address until a restore, and what
/// is sent to it is held and arrives then: whoever has a connection to it waits and notices nothing
/// else. `arctern ps -a` shows it. `arctern rm` gives it up, unless there is a file to restore from:
/// then `arctern rm --force` does.
///
/// When it fails the container goes on running and no file is left.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Write the checkpoint to this archive; `-` writes it to standard output, a pipe or a file
    #[arg(
        short = 'e',
        long = "file",
        visible_alias = "export",
        short_alias = 'F',
        value_name = "FILE",
        group = "target"
    )]
    pub file: Option<PathBuf>,
    /// Make an image of the checkpoint, which `push` and `pull` carry and `restore` takes
    #[arg(long, value_name = "IMAGE", group = "target")]
    pub create_image: Option<String>,
    /// Compress the archive [default: by its name: .gz, .zst, .tar; else zstd]
    #[arg(short, long, value_name = "METHOD", value_parser = ["zstd", "gzip", "none"], requires = "file")]
    pub compress: Option<String>,
    /// Let the container go on afterwards
    #[arg(short = 'R', long)]
    pub leave_running: bool,
    /// Leave changes of the root file system out of the archive
    #[arg(long, requires = "target")]
    pub ignore_rootfs: bool,
    /// Leave the contents of named volumes out of the archive
    #[arg(long, requires = "target")]
    pub ignore_volumes: bool,
    /// Put the container's image into the archive or image, too
    #[arg(long, requires = "target")]
    pub with_image: bool,
    /// Drop connections that the program has not accepted yet, and those that it has closed and that
    /// still send; without it they are refused where they cannot be carried
    #[arg(long, requires = "tcp_established")]
    pub skip_in_flight: bool,
    /// Connect unix sockets again by name to programs outside of the container; with `close`, let
    /// these connections be closed; without it they are refused
    #[arg(
        long,
        value_name = "POLICY",
        value_parser = ["reconnect", "close"],
        require_equals = true,
        num_args = 0..=1,
        default_missing_value = "reconnect"
    )]
    pub ext_unix_sk: Option<String>,
    /// How long packets for the stopped container are held, with --tcp-established: seconds, or a
    /// number with s, m or h, or `none` for as long as it takes
    #[arg(
        long,
        value_name = "TIME",
        default_value = "15m",
        value_parser = parse_limit,
        requires = "tcp_established"
    )]
    pub lock_timeout: Limit,
    /// Tell what stands in the way, all of it, and stop nobody: the container runs on, nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// Tell it as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    #[command(flatten)]
    pub seal: SealArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub select: Select,
}

/// A time, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

/// Reads a time, `none` for no limit.
pub fn parse_limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        unit => return Err(format!("`{unit}` is no unit of time: use s, m or h")),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match seconds {
        Some(seconds @ 1..) => Ok(Limit(Some(Duration::from_secs(seconds)))),
        _ => Err(format!("`{text}` is no time; `none` stands for no limit")),
    }
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let stream = stream(&args)?;
    let mut host = ctx.host()?;
    let fit = |host: &Host, record: &Record| running(host, record) && !host.is_paused(record);
    let names = args.select.names(&mut host, fit)?;
    if (args.file.is_some() || args.create_image.is_some()) && names.len() > 1 {
        return Err(anyhow::anyhow!("one archive or image holds one container"))
            .cannot(|| format!("checkpoint {} containers into one", names.len()));
    }
    let options = CheckpointOptions {
        seal: args.seal.seal()?,
        file: args.file.filter(|_| stream.is_none()),
        stream: stream.map(Arc::new),
        compression: args.compress.as_deref().map(|method| match method {
            "gzip" => Compression::Gzip,
            "none" => Compression::None,
            _ => Compression::Zstd,
        }),
        leave_running: args.leave_running,
        external_unix: match args.ext_unix_sk.as_deref() {
            None => ExternalUnix::Refuse,
            Some("close") => ExternalUnix::Close,
            Some(_) => ExternalUnix::Reconnect,
        },
        ignore_rootfs: args.ignore_rootfs,
        ignore_volumes: args.ignore_volumes,
        skip_volumes: Vec::new(),
        with_image: args.with_image,
        keep: args.engine.keep,
        file_locks: args.engine.file_locks,
        tcp: args.engine.tcp(),
        skip_in_flight: args.skip_in_flight,
        lock_limit: args.lock_timeout.0,
        cancel: interrupt::listen().cannot(|| "catch signals")?,
    };
    if args.dry_run {
        return dry_run(&mut host, &names, &options, args.json);
    }
    let begin = Instant::now();
    let mut statistics = Vec::new();
    let code = for_each(&names, |name| {
        let mut progress = Progress::new();
        let done = match &args.create_image {
            None => host.checkpoint(name, &options, &mut progress),
            Some(image) => {
                host.checkpoint_to_image(name, image, &options, &mut progress).map(|(done, _)| done)
            }
        };
        let done = done.map_err(|error| {
            let begun = matches!(
                error,
                Error::Capture(_)
                    | Error::Archive(_)
                    | Error::Interrupted
                    | Error::NoRoom(_)
                    | Error::Io { .. }
                    | Error::Storage(_)
            );
            let goes_on = begun && host.find(name).is_ok_and(|record| running(&host, &record));
            let failure = Failure::new(format!("checkpoint container `{name}`"), error);
            match goes_on {
                true => failure.leaving("The container runs on, and no file was written."),
                false => failure,
            }
        })?;
        drop(progress);
        if args.engine.print_stats {
            statistics.push(statistics_of(&done));
        } else if options.stream.is_some() {
            eprintln!("{}", done.record.id());
        } else {
            outln!("{}", done.record.id());
        }
        eprintln!(
            "frozen {}, total {}, size {}",
            duration(done.report.frozen_us),
            duration(done.total_us),
            size(done.size),
        );
        Ok(())
    })?;
    if args.engine.print_stats {
        let all = json!({
            "podman_checkpoint_duration": u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "container_statistics": statistics,
        });
        outln!("{}", serde_json::to_string_pretty(&all).cannot(|| "write JSON")?);
    }
    Ok(code)
}

/// Standard output, when the archive goes there: then it is nothing but the archive.
fn stream(args: &Args) -> Result<Option<File>, Failure> {
    if args.file.as_deref() != Some(Path::new("-")) {
        return Ok(None);
    }
    let action = || "write the archive to standard output";
    let reason = match (io::stdout().is_terminal(), args.engine.print_stats) {
        (true, _) => "an archive is nothing for a terminal: redirect it",
        (_, true) => "--print-stats writes there, too: give a file",
        _ => {
            let stream = io::stdout().as_fd().try_clone_to_owned().cannot(action)?;
            return Ok(Some(File::from(stream)));
        }
    };
    Err(anyhow::anyhow!(reason)).cannot(action)
}

/// Tells of each container what stands in the way; 1 if anything does.
fn dry_run(
    host: &mut Host,
    names: &[String],
    options: &CheckpointOptions,
    as_json: bool,
) -> CommandResult {
    let mut blocked = 0;
    let code = for_each(names, |name| {
        let found = host.checkpoint_dry_run(name, options);
        let found = found.cannot(|| format!("check container `{name}`"))?;
        if names.len() > 1 && !as_json {
            outln!("{name}:");
        }
        let code = blockers::print(&found, as_json).cannot(|| "write JSON")?;
        blocked = blocked.max(code);
        Ok(())
    })?;
    Ok(code.max(blocked))
}

/// Statistics in the shape of Podman's; times in microseconds.
fn statistics_of(done: &Checkpointed) -> Value {
    let report = &done.report;
    json!({
        "Id": done.record.id(),
        "runtime_checkpoint_duration": report.total_us,
        "criu_statistics": {
            "freezing_time": report.freezing_us,
            "frozen_time": report.frozen_us,
            "memdump_time": report.memory_us,
            "memwrite_time": report.memory_us,
            "pages_scanned": report.pages_scanned,
            "pages_written": report.pages_written,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_units() {
        let seconds = |n| Ok(Limit(Some(Duration::from_secs(n))));
        assert_eq!(parse_limit("90"), seconds(90));
        assert_eq!(parse_limit("15m"), seconds(900));
        assert_eq!(parse_limit("2h"), seconds(7200));
        assert_eq!(parse_limit("none"), Ok(Limit(None)));
        for bad in ["", "0", "m", "1d", "-1", "99999999999999999999h"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
    }
}
