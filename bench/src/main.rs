//! Arctern beside its peers: the same work, in turn, in the same run; medians and ratios.
//!
//! Bare process trees are captured and restored by `arctern criu` and by CRIU; containers by
//! `arctern` and by Podman with runc and CRIU. Only ratios of one run are compared, since the
//! machine's own speed changes by the minute. Where a peer cannot be had the table says so, and a
//! goal without a peer is not met.
#![forbid(unsafe_code)]

mod containers;
mod engines;
mod growth;
mod moves;
mod report;
mod stats;
mod trees;

use anyhow::{Context, Result};
use clap::Parser;
use report::Report;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Measure Arctern beside Podman, runc and CRIU.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each case; the first is not counted
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the figures go
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Set by the program when it calls itself within a mount namespace of its own
    #[arg(long, hide = true)]
    within: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if !args.within {
        return in_own_mounts();
    }
    let mut report = Report::new(args.rounds);
    trees::measure(&args.only, args.rounds, &mut report)?;
    containers::measure(&args.only, args.rounds, &mut report)?;
    moves::measure(&args.only, args.rounds, &mut report)?;
    report.print();
    report.write(&args.json)?;
    Ok(if report.met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls this program again where /run is a tmpfs of its own: CRIU keeps what it found out about the
/// kernel there, and only there, and would otherwise find it out again for every command.
fn in_own_mounts() -> Result<ExitCode> {
    let script =
        "mount --make-rprivate / && mount -t tmpfs tmpfs /run && exec \"$0\" --within \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(std::env::current_exe().context("cannot find this program")?)
        .args(std::env::args_os().skip(1))
        .status()
        .context("cannot run unshare")?;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into())
}
