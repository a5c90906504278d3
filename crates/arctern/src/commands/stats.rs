//! `stats`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use arctern_container::Host;
use arctern_container::config::short_id;
use arctern_container::lifecycle::Usage;
use arctern_container::state::{Record, Status};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde_json::{Value, json};

use super::Context;
use crate::format::{Format, table};
use crate::report::{Cannot, CommandResult};
use crate::ui::size;

/// Show what containers use: CPU, memory, network, disks, processes
///
/// Again and again, until it is interrupted; with --no-stream once. The share of the CPU is that
/// since the look before, at the first look that since the container's start.
///
///   arctern stats --no-stream
///   arctern stats --no-stream --format json web
///   arctern stats --no-stream --format 'table {{.Name}}\t{{.MemUsage}}'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Do not clear the screen before each time
    #[arg(long)]
    pub no_reset: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Seconds between two times
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub interval: u32,
    /// All containers: those that do not run with zeros
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// The container that was created last
    #[arg(short, long, conflicts_with_all = ["all", "containers"])]
    pub latest: bool,
    /// Output format: table, json, or fields: `{{.Name}} {{.CPUPerc}}`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Containers, by name or id; all that run if there is none
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// The fields of a row for --format, and the heads of their columns.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("ContainerID", "ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("AvgCPU", "AVG CPU %"),
    ("CPUTime", "CPU TIME"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET IO"),
    ("BlockIO", "BLOCK IO"),
    ("PIDS", "PIDS"),
];

/// The columns of the table.
const COLUMNS: &[&str] =
    &["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDS", "CPUTime"];

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let timer = Timer::new(Duration::from_secs(args.interval.into())).cannot(|| "set a timer")?;
    let mut before: BTreeMap<String, Usage> = BTreeMap::new();
    loop {
        let rows = look(&mut host, &args, &mut before)?;
        if !args.no_stream && !args.no_reset && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            out!("\x1b[H\x1b[J");
        }
        show(&args, &rows)?;
        if args.no_stream {
            return Ok(0);
        }
        timer.wait().cannot(|| "wait for a timer")?;
    }
}

/// One look at all containers that are meant.
fn look(
    host: &mut Host,
    args: &Args,
    before: &mut BTreeMap<String, Usage>,
) -> Result<Vec<Value>, crate::report::Failure> {
    let named = match args.latest {
        true => vec![host.latest().cannot(|| "find the latest container")?],
        false => args.containers.clone(),
    };
    let records = match named.as_slice() {
        [] => {
            let mut all = host.list().cannot(|| "list containers")?;
            all.retain(|record| args.all || record.status == Status::Running);
            all
        }
        names => names
            .iter()
            .map(|name| host.find(name).cannot(|| format!("find container `{name}`")))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let mut rows = Vec::new();
    for record in &records {
        let usage = match host.usage(record) {
            Ok(usage) => usage,
            // One that was named, and does not run.
            Err(error) if !named.is_empty() => {
                return Err(error).cannot(|| format!("look at container `{}`", record.name()));
            }
            // Ended meanwhile, or asked for by --all.
            Err(_) if args.all => Usage::default(),
            Err(_) => continue,
        };
        rows.push(row(record, &usage, before.get(record.id()), args.no_trunc));
        before.insert(record.id().to_owned(), usage);
    }
    Ok(rows)
}

fn row(record: &Record, usage: &Usage, before: Option<&Usage>, no_trunc: bool) -> Value {
    let percent = |hundredths: u64| format!("{}.{:02}%", hundredths / 100, hundredths % 100);
    let id = if no_trunc { record.id() } else { short_id(record.id()) };
    json!({
        "ID": id,
        "ContainerID": record.id(),
        "Name": record.name(),
        "CPUPerc": percent(usage.cpu_share(before)),
        "AvgCPU": percent(usage.cpu_share(None)),
        "CPUTime": crate::ui::duration(usage.cpu / 1000),
        "MemUsage": format!("{} / {}", size(usage.memory), size(usage.memory_limit)),
        "MemPerc": percent(usage.memory_share()),
        "NetIO": format!("{} / {}", size(usage.received), size(usage.sent)),
        "BlockIO": format!("{} / {}", size(usage.read), size(usage.written)),
        "PIDS": usage.pids,
    })
}

fn show(args: &Args, rows: &[Value]) -> Result<(), crate::report::Failure> {
    match &args.format {
        Format::Json => {
            let names = [
                ("id", "ID"),
                ("name", "Name"),
                ("cpu_percent", "CPUPerc"),
                ("avg_cpu", "AvgCPU"),
                ("cpu_time", "CPUTime"),
                ("mem_usage", "MemUsage"),
                ("mem_percent", "MemPerc"),
                ("net_io", "NetIO"),
                ("block_io", "BlockIO"),
                ("pids", "PIDS"),
            ];
            let renamed = |row: &Value| -> Value {
                names
                    .iter()
                    .map(|(name, field)| ((*name).to_owned(), row[*field].clone()))
                    .collect()
            };
            let list: Vec<Value> = rows.iter().map(renamed).collect();
            outln!("{}", serde_json::to_string_pretty(&list).cannot(|| "write JSON")?);
        }
        Format::Fields(template) => {
            out!("{}", template.render(rows, FIELDS).cannot(|| "show the fields")?);
        }
        Format::Table => {
            out!("{}", table(rows, FIELDS, COLUMNS, true));
        }
    }
    Ok(())
}

/// Comes at equal times, however long the looks take.
struct Timer(std::os::fd::OwnedFd);

impl Timer {
    fn new(interval: Duration) -> std::io::Result<Timer> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let time = rustix::fs::Timespec {
            tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: interval.subsec_nanos().into(),
        };
        let both = Itimerspec { it_interval: time, it_value: time };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &both)?;
        Ok(Timer(timer))
    }

    fn wait(&self) -> std::io::Result<()> {
        let mut expirations = [0u8; 8];
        loop {
            match rustix::io::read(&self.0, &mut expirations) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}
