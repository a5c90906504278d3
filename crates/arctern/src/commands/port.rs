//! `port`

use arctern_container::state::{Record, Status};

use super::Context;
use super::select::One;
use crate::report::{Cannot, CommandResult};

/// List the published ports of a container
///
///   arctern port web            # 80/tcp -> 0.0.0.0:8080
///   arctern port web 80         # 0.0.0.0:8080
///   arctern port --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// All running containers
    #[arg(short, long, conflicts_with = "container")]
    pub all: bool,
    /// The container that was created last
    #[arg(short, long, conflicts_with_all = ["all", "container"])]
    pub latest: bool,
    /// Container, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "latest"])]
    pub container: Option<String>,
    /// Only this port of the container
    #[arg(value_name = "PORT[/PROTO]")]
    pub port: Option<String>,
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    if args.all {
        for record in host.list().cannot(|| "list containers")? {
            if record.status == Status::Running {
                let id = format!("{}\t", record.config.short_id());
                list(&record, &id, None);
            }
        }
        return Ok(0);
    }
    let one = One { latest: args.latest, container: args.container };
    let name = one.name(&host)?;
    let action = || format!("list the ports of container `{name}`");
    let record = host.find(&name).cannot(action)?;
    let found = list(&record, "", args.port.as_deref());
    match args.port {
        Some(port) if !found => Err(anyhow::anyhow!("port {port} is not published")).cannot(action),
        _ => Ok(0),
    }
}

/// Prints the ports of a container, or where one of them is; says whether there was any.
fn list(record: &Record, before: &str, only: Option<&str>) -> bool {
    let mut found = false;
    for mapping in &record.config.ports {
        let ip = mapping.host_ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        for offset in 0..mapping.range {
            let inside = format!("{}/{}", mapping.container_port + offset, mapping.protocol);
            let outside = format!("{ip}:{}", mapping.host_port + offset);
            match only {
                None => outln!("{before}{inside} -> {outside}"),
                Some(port) if *port == inside || format!("{port}/tcp") == inside => {
                    outln!("{outside}")
                }
                Some(_) => continue,
            }
            found = true;
        }
    }
    found
}
