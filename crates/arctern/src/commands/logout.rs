//! `logout`

use std::path::PathBuf;

use arctern_storage::registry::login;

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Forget user name and password of a registry
///
///   arctern logout registry.example:5000
///   arctern logout --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Of all registries
    #[arg(short, long, conflicts_with = "registry")]
    pub all: bool,
    /// File with credentials
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Host and port of the registry
    #[arg(value_name = "REGISTRY", required_unless_present = "all")]
    pub registry: Option<String>,
}

/// Runs the command.
pub fn run(_: &Context, args: Args) -> CommandResult {
    let name = args.registry.as_deref();
    let action = || format!("log out of {}", name.unwrap_or("all registries"));
    let file = login::own_file(args.authfile.as_deref());
    let gone = login::forget(&file, name).cannot(action)?;
    if let (Some(name), false) = (name, gone) {
        if login::find(name, args.authfile.as_deref()).cannot(action)?.is_some() {
            let reason = "the credentials are in a file of another program, which is left alone";
            return Err(anyhow::anyhow!(reason)).cannot(action);
        }
        return Err(anyhow::anyhow!("nobody is logged in")).cannot(action);
    }
    match name {
        Some(name) => outln!("Removed login credentials for {name}"),
        None => outln!("Removed login credentials for all registries"),
    }
    Ok(0)
}
