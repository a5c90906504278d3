//! `version`

use serde_json::json;

use crate::report::{Cannot, CommandResult};

/// Show the version
///
///   arctern version
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: text or json
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// Runs the command.
pub fn run(args: Args) -> CommandResult {
    let version = env!("CARGO_PKG_VERSION");
    let system = rustix::system::uname();
    let os = format!("linux/{}", system.machine().to_string_lossy());
    if args.json || args.format == "json" {
        let value = json!({ "Version": version, "OsArch": os, "Images": "CRIU 1.1" });
        outln!("{}", serde_json::to_string_pretty(&value).cannot(|| "write JSON")?);
    } else {
        outln!("Version:  {version}\nOS/Arch:  {os}\nImages:   CRIU 1.1");
    }
    Ok(0)
}
