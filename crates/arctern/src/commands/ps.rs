//! `ps`

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use arctern_container::config::{PortMapping, short_id};
use arctern_container::state::{Record, Status};
use arctern_net::{Lock, Means};
use serde_json::{Value, json};

use super::Context;
use crate::report::{Cannot, CommandResult};
use crate::ui::{Table, shorten};

/// List containers
///
/// Without --all only running ones. A container that was checkpointed with its connections says how
/// long packets for it are still held; so does one that was removed while a file waits to be restored.
///
///   arctern ps
///   arctern ps -a --filter status=exited
///   arctern ps -aq
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Only matching ones: id=, name=, status=, label=, ancestor=, exited=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    pub filter: Vec<Filter>,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: table or json
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
}

/// A condition on containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    Id(String),
    Name(String),
    Status(String),
    Label(String, Option<String>),
    Ancestor(String),
    Exited(i32),
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let own = value.to_owned();
    Ok(match key {
        "id" => Filter::Id(own),
        "name" => Filter::Name(own),
        "status" => match value {
            "created" | "running" | "exited" | "checkpointed" | "migrating" | "stopped" => {
                Filter::Status(own)
            }
            _ => return Err(format!("`{value}` is no status")),
        },
        "label" => match value.split_once('=') {
            Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
            None => Filter::Label(own, None),
        },
        "ancestor" => Filter::Ancestor(own),
        "exited" => {
            Filter::Exited(value.parse().map_err(|_| format!("`{value}` is no exit code"))?)
        }
        _ => return Err(format!("`{key}` cannot be filtered by")),
    })
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        let config = &record.config;
        match self {
            Filter::Id(id) => config.id.starts_with(id),
            Filter::Name(name) => config.name.contains(name),
            Filter::Status(status) => {
                let status = if status == "stopped" { "exited" } else { status };
                record.status.as_str() == status
            }
            Filter::Label(name, value) => {
                config.labels.get(name).is_some_and(|v| value.as_ref().is_none_or(|w| w == v))
            }
            Filter::Ancestor(image) => {
                config.image_id.starts_with(image)
                    || config.image_name == *image
                    || config.raw_image_name == *image
                    || config.image_name.rsplit('/').next().and_then(|n| n.split(':').next())
                        == Some(image)
            }
            Filter::Exited(code) => {
                record.status == Status::Exited && record.exit_code == Some(*code)
            }
        }
    }
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let records = host.list().cannot(|| "list containers")?;
    let locks = host.locks().cannot(|| "list network locks")?;
    let by_status = args.filter.iter().any(|f| matches!(f, Filter::Status(_) | Filter::Exited(_)));
    let shown: Vec<&Record> = records
        .iter()
        .rev()
        .filter(|r| args.all || by_status || r.status == Status::Running)
        .filter(|r| args.filter.iter().all(|f| f.matches(r)))
        .collect();
    let id = |record: &Record| {
        if args.no_trunc { record.id().to_owned() } else { short_id(record.id()).to_owned() }
    };
    if args.quiet {
        for record in shown {
            outln!("{}", id(record));
        }
        return Ok(0);
    }
    if args.json || args.format == "json" {
        let list: Vec<Value> = shown.into_iter().map(|r| to_json(r, lock_of(&locks, r))).collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
    let mut table = Table::new(&head);
    for record in shown {
        let command = record.config.args().join(" ");
        table.row(vec![
            id(record),
            image(record).to_owned(),
            if args.no_trunc { command } else { shorten(&command, 20) },
            format!("{} ago", record.created_at.ago()),
            status(record, lock_of(&locks, record)),
            ports(&record.config.ports),
            record.name().to_owned(),
        ]);
    }
    if args.all && args.filter.is_empty() {
        for (ip, lock) in &locks {
            if !records.iter().any(|record| record.id() == lock.container) {
                table.row(removed(*ip, lock));
            }
        }
    }
    out!("{}", table.render());
    Ok(0)
}

/// The lock that stands for a container.
fn lock_of<'a>(locks: &'a BTreeMap<Ipv4Addr, Lock>, record: &Record) -> Option<&'a Lock> {
    locks.values().find(|lock| lock.container == record.id())
}

/// The row of a container that is gone, and whose address is locked all the same.
fn removed(ip: Ipv4Addr, lock: &Lock) -> Vec<String> {
    let gone = || "-".to_owned();
    vec![
        short_id(&lock.container).to_owned(),
        gone(),
        gone(),
        gone(),
        format!("Removed ({} {})", held(lock), ip),
        ports(&[]),
        lock.name.clone(),
    ]
}

/// What happens to packets, and how long.
fn held(lock: &Lock) -> String {
    let what = match lock.means {
        _ if lock.elsewhere => "on another host, address reserved",
        Means::Hold => "packets held",
        Means::Drop => "packets dropped",
    };
    match lock.remaining() {
        Some(seconds) => format!("{what} for {seconds} s more"),
        None => what.to_owned(),
    }
}

fn image(record: &Record) -> &str {
    match record.config.image_name.as_str() {
        "" => &record.config.raw_image_name,
        name => name,
    }
}

fn status(record: &Record, lock: Option<&Lock>) -> String {
    let ago = |time: Option<arctern_container::time::Timestamp>| {
        time.map_or_else(String::new, |t| format!(" {} ago", t.ago()))
    };
    match record.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            format!("Up {}", record.started_at.unwrap_or_default().ago())
        }
        Status::Exited => {
            format!("Exited ({}){}", record.exit_code.unwrap_or(0), ago(record.finished_at))
        }
        Status::Restoring => "Restoring".to_owned(),
        Status::Migrating => "Migrating".to_owned(),
        Status::Checkpointed => {
            let held = lock.map(|lock| format!(" ({})", held(lock))).unwrap_or_default();
            format!("Checkpointed{}{held}", ago(record.checkpointed_at))
        }
    }
}

fn ports(list: &[PortMapping]) -> String {
    let one = |p: &PortMapping| {
        let ip = p.host_ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        let range = |first: u16| match p.range {
            0 | 1 => first.to_string(),
            n => format!("{first}-{}", first.saturating_add(n - 1)),
        };
        format!("{ip}:{}->{}/{}", range(p.host_port), range(p.container_port), p.protocol)
    };
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn to_json(record: &Record, lock: Option<&Lock>) -> Value {
    json!({
        "Id": record.id(),
        "Names": [record.name()],
        "Image": image(record),
        "ImageID": record.config.image_id,
        "Command": record.config.args(),
        "Created": record.created_at.rfc3339(),
        "StartedAt": record.started_at.map(|t| t.rfc3339()),
        "State": record.status,
        "Status": status(record, lock),
        "Lock": lock.map(|lock| json!({
            "Means": lock.means,
            "Elsewhere": lock.elsewhere,
            "RemainingSeconds": lock.remaining(),
        })),
        "Exited": matches!(record.status, Status::Exited | Status::Checkpointed),
        "ExitCode": record.exit_code.unwrap_or(0),
        "Pid": record.init.filter(|_| record.status == Status::Running).map_or(0, |p| p.pid),
        "Ports": record.config.ports,
        "Labels": record.config.labels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_parsed() {
        assert_eq!(parse_filter("name=web"), Ok(Filter::Name("web".into())));
        assert_eq!(parse_filter("label=a=b"), Ok(Filter::Label("a".into(), Some("b".into()))));
        assert!(parse_filter("status=odd").is_err());
        assert!(parse_filter("x=y").is_err());
        assert!(parse_filter("name").is_err());
    }
}
