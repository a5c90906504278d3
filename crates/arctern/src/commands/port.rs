//! `port`

use super::Context;
use crate::report::{Cannot, CommandResult};

/// List the published ports of a container
///
///   arctern port web            # 80/tcp -> 0.0.0.0:8080
///   arctern port web 80         # 0.0.0.0:8080
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Container, by name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Only this port of the container
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: Option<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let action = || format!("list the ports of container `{}`", args.container);
    let record = ctx.host()?.find(&args.container).cannot(action)?;
    let mut found = false;
    for mapping in &record.config.ports {
        let ip = mapping.host_ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        for offset in 0..mapping.range {
            let inside = format!("{}/{}", mapping.container_port + offset, mapping.protocol);
            let outside = format!("{ip}:{}", mapping.host_port + offset);
            match &args.port {
                None => outln!("{inside} -> {outside}"),
                Some(port) if *port == inside || format!("{port}/tcp") == inside => {
                    outln!("{outside}")
                }
                Some(_) => continue,
            }
            found = true;
        }
    }
    match args.port {
        Some(port) if !found => Err(anyhow::anyhow!("port {port} is not published")).cannot(action),
        _ => Ok(0),
    }
}
