//! Run containers and move them, running, from host to host.
#![forbid(unsafe_code)]

#[macro_use]
mod ui;

mod attach;
mod cli;
mod commands;
mod report;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let called_as = args
        .first()
        .and_then(|a| std::path::Path::new(a).file_name())
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let cli = if called_as == "criu" {
        // As CRIU's own name: its options, its exit codes.
        let mut all = vec!["arctern".into(), "criu".into()];
        all.extend(args.into_iter().skip(1));
        cli::Cli::try_parse_from(all)
    } else {
        cli::Cli::try_parse_from(args)
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failure; a wrong option is one of this program: 125.
            let _ = error.print();
            let code = if error.use_stderr() { cli::usage_code(&called_as) } else { 0 };
            return ExitCode::from(code);
        }
    };
    ui::init_logging(&cli);
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(report::print(&error)),
    }
}
