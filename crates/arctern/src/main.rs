//! Run containers and move them, running, from host to host.
#![forbid(unsafe_code)]

#[macro_use]
mod ui;

mod attach;
mod cli;
mod commands;
mod format;
mod interrupt;
mod output;
mod progress;
mod report;
mod timeline;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let called_as = args
        .first()
        .and_then(|a| std::path::Path::new(a).file_name())
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    // CRIU's command line has options with the names of ours and other meanings.
    let rest = |n| args.iter().skip(n).cloned().collect::<Vec<_>>();
    let criu = match args.get(1) {
        _ if called_as == "criu" => Some(rest(1)),
        Some(first) if first == "criu" => Some(rest(2)),
        _ => None,
    };
    if let Some(arguments) = criu {
        ui::init_logging(None, false);
        return finish(commands::criu::main(arguments));
    }
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failure; a wrong option is one of this program: 125.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 125 } else { 0 });
        }
    };
    let shim = matches!(cli.command, cli::Command::Internal(_));
    ui::init_logging(cli.log_level, shim);
    finish(commands::run(cli))
}

fn finish(result: report::CommandResult) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(report::print(&error)),
    }
}
