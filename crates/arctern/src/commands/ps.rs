//! `ps`

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use arctern_container::Host;
use arctern_container::config::{PortMapping, short_id};
use arctern_container::state::{Record, Status};
use arctern_net::{Lock, Means};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::Context;
use super::select::{Filter, matches, parse_filter};
use crate::format::Format;
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
///   arctern ps --format '{{.Names}}: {{.Status}}'
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
    /// Only matching ones: id=, name=, status=, label=, ancestor=, exited=, until=, health=,
    /// restart-policy=, should-start-on-boot=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    pub filter: Vec<Filter>,
    /// Only the one that was created last, running or not
    #[arg(short, long, conflicts_with = "last")]
    pub latest: bool,
    /// Only as many as this, the newest, running or not
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// Sort by this
    #[arg(long, value_name = "FIELD", default_value = "created")]
    pub sort: Sort,
    /// Print no head
    #[arg(long)]
    pub noheading: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Output format: table, json, or fields: `{{.ID}} {{.Names}}`, `table {{.Names}}\\t{{.Status}}`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Sort {
    Created,
    Names,
    Id,
    Image,
    Command,
    Status,
    Runningfor,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("ImageID", "IMAGE ID"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("Created", "CREATED"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("Pid", "PID"),
    ("ExitCode", "EXIT CODE"),
    ("Exited", "EXITED"),
    ("ExitedAt", "EXITED AT"),
    ("StartedAt", "STARTED AT"),
    ("CreatedHuman", "CREATED"),
    ("AutoRemove", "AUTO REMOVE"),
    ("Health", "HEALTH"),
    ("Restarts", "RESTARTS"),
];

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let records = host.list().cannot(|| "list containers")?;
    let locks = host.locks().cannot(|| "list network locks")?;
    let by_status = args.filter.iter().any(|f| matches!(f, Filter::Status(_) | Filter::Exited(_)));
    let last = if args.latest { Some(1) } else { args.last };
    let all = args.all || by_status || last.is_some();
    let mut shown: Vec<&Record> = records
        .iter()
        .rev()
        .filter(|r| all || r.status == Status::Running)
        .filter(|r| matches(&args.filter, &host, r))
        .take(last.unwrap_or(usize::MAX))
        .collect();
    sort(&mut shown, args.sort);
    let id = |record: &Record| {
        if args.no_trunc { record.id().to_owned() } else { short_id(record.id()).to_owned() }
    };
    if args.quiet {
        for record in shown {
            outln!("{}", id(record));
        }
        return Ok(0);
    }
    if args.json || args.format == Format::Json {
        let list: Vec<Value> =
            shown.into_iter().map(|r| to_json(&host, r, lock_of(&locks, r))).collect();
        outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        return Ok(0);
    }
    let command = |record: &Record| {
        let command = record.config.args().join(" ");
        if args.no_trunc { command } else { shorten(&command, 20) }
    };
    if let Format::Fields(template) = &args.format {
        let row = |r: &&Record| fields(&host, r, lock_of(&locks, r), id(r), command(r));
        let rows: Vec<Value> = shown.iter().map(row).collect();
        out!("{}", template.render(&rows, FIELDS).cannot(|| "list containers")?);
        return Ok(0);
    }
    let head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
    let mut table = if args.noheading { Table::bare() } else { Table::new(&head) };
    for record in shown {
        table.row(vec![
            id(record),
            image(record).to_owned(),
            command(record),
            format!("{} ago", record.created_at.ago()),
            status(&host, record, lock_of(&locks, record)),
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

/// Newest first already; names and the like from a to z.
fn sort(records: &mut [&Record], by: Sort) {
    match by {
        Sort::Created => {}
        Sort::Names => records.sort_by(|a, b| a.name().cmp(b.name())),
        Sort::Id => records.sort_by(|a, b| a.id().cmp(b.id())),
        Sort::Image => records.sort_by(|a, b| image(a).cmp(image(b))),
        Sort::Command => records.sort_by_key(|record| record.config.args()),
        Sort::Status => records.sort_by_key(|record| record.status.as_str()),
        Sort::Runningfor => records.sort_by_key(|record| record.started_at),
    }
}

/// A row of --format.
fn fields(host: &Host, record: &Record, lock: Option<&Lock>, id: String, command: String) -> Value {
    let config = &record.config;
    let labels: Vec<String> = config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mounts: Vec<String> =
        config.volumes.iter().map(|v| v.destination.display().to_string()).collect();
    json!({
        "ID": id,
        "Image": image(record),
        "ImageID": short_id(&config.image_id),
        "Command": command,
        "CreatedAt": record.created_at.rfc3339(),
        "Created": format!("{} ago", record.created_at.ago()),
        "RunningFor": format!("{} ago", record.created_at.ago()),
        "Status": status(host, record, lock),
        "State": host.status(record),
        "Ports": ports(&config.ports),
        "Names": record.name(),
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "Networks": config.network_name().unwrap_or(config.network.as_str()),
        "Pid": pid(record),
        "ExitCode": record.exit_code.unwrap_or(0),
        "Exited": record.status != Status::Running,
        "ExitedAt": record.finished_at.map(|time| time.rfc3339()).unwrap_or_default(),
        "StartedAt": record.started_at.map(|time| time.rfc3339()).unwrap_or_default(),
        "CreatedHuman": format!("{} ago", record.created_at.ago()),
        "AutoRemove": config.auto_remove,
        "Health": host.health(record).map_or("", |health| health.as_str()),
        "Restarts": host.restarts(record),
    })
}

fn pid(record: &Record) -> i32 {
    record.init.filter(|_| record.status == Status::Running).map_or(0, |p| p.pid)
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

fn status(host: &Host, record: &Record, lock: Option<&Lock>) -> String {
    let ago = |time: Option<arctern_container::time::Timestamp>| {
        time.map_or_else(String::new, |t| format!(" {} ago", t.ago()))
    };
    match record.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let health = host.health(record).map(|health| format!(" ({})", health.as_str()));
            let paused = if host.is_paused(record) { " (paused)" } else { "" };
            let since = record.started_at.unwrap_or_default().ago();
            format!("Up {since}{}{paused}", health.unwrap_or_default())
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

fn to_json(host: &Host, record: &Record, lock: Option<&Lock>) -> Value {
    json!({
        "Id": record.id(),
        "Names": [record.name()],
        "Image": image(record),
        "ImageID": record.config.image_id,
        "Command": record.config.args(),
        "Created": record.created_at.rfc3339(),
        "StartedAt": record.started_at.map(|t| t.rfc3339()),
        "State": host.status(record),
        "Status": status(host, record, lock),
        "Health": host.health(record),
        "Restarts": host.restarts(record),
        "Lock": lock.map(|lock| json!({
            "Means": lock.means,
            "Elsewhere": lock.elsewhere,
            "RemainingSeconds": lock.remaining(),
        })),
        "Exited": matches!(record.status, Status::Exited | Status::Checkpointed),
        "ExitCode": record.exit_code.unwrap_or(0),
        "Pid": pid(record),
        "Ports": record.config.ports,
        "Labels": record.config.labels,
    })
}
