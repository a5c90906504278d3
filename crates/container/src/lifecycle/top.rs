//! `top`: the processes of a container, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result};
use crate::host::Host;

/// What can be shown of a process: name, head of its column.
pub const DESCRIPTORS: &[(&str, &str)] = &[
    ("user", "USER"),
    ("uid", "UID"),
    ("group", "GROUP"),
    ("pid", "PID"),
    ("hpid", "HPID"),
    ("ppid", "PPID"),
    ("pgid", "PGID"),
    ("pcpu", "%CPU"),
    ("etime", "ELAPSED"),
    ("tty", "TTY"),
    ("time", "TIME"),
    ("nice", "NI"),
    ("rss", "RSS"),
    ("vsz", "VSZ"),
    ("state", "STATE"),
    ("comm", "COMMAND"),
    ("args", "COMMAND"),
];

/// What is shown when nothing was asked for.
const DEFAULT: &[&str] = &["user", "pid", "ppid", "pcpu", "etime", "tty", "time", "args"];

/// Clock ticks a second in `/proc/PID/stat`, on every architecture that Linux runs on (USER_HZ).
const TICKS: u64 = 100;

/// A process as /proc shows it.
struct Process {
    pid: i32,
    /// Fields of `stat` from the state on (field 3 of proc_pid_stat(5)).
    stat: Vec<String>,
    comm: String,
    status: BTreeMap<String, String>,
    args: String,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let text = fs::read_to_string(dir.join("stat")).ok()?;
        let (head, rest) = text.split_at(text.rfind(')')?);
        let comm = head.split_once('(')?.1.to_owned();
        let stat = rest[1..].split_ascii_whitespace().map(str::to_owned).collect();
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let status = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let line = fs::read(dir.join("cmdline")).ok()?;
        let args = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
        let args = if args.is_empty() { format!("[{comm}]") } else { args };
        Some(Process { pid, stat, comm, status, args })
    }

    /// A numbered field of `stat`, as proc_pid_stat(5) counts them.
    fn number(&self, field: usize) -> i64 {
        self.stat.get(field - 3).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn word(&self, name: &str, index: usize) -> &str {
        let line = self.status.get(name).map_or("", String::as_str);
        line.split_ascii_whitespace().nth(index).unwrap_or("")
    }

    /// The last one is that of the innermost namespace: the container's.
    fn inner(&self, name: &str) -> String {
        let line = self.status.get(name).map_or("", String::as_str);
        line.split_ascii_whitespace().last().unwrap_or("0").to_owned()
    }
}

/// What is the same for all processes of a container.
struct Surroundings {
    users: BTreeMap<String, String>,
    groups: BTreeMap<String, String>,
    /// Seconds since boot.
    uptime: u64,
    /// Pids on the host with those in the container.
    inner: BTreeMap<i32, String>,
}

impl Surroundings {
    fn show(&self, process: &Process, what: &str) -> String {
        let ticks = u64::try_from(process.number(14) + process.number(15)).unwrap_or(0);
        let since = u64::try_from(process.number(22)).unwrap_or(0) / TICKS;
        let elapsed = self.uptime.saturating_sub(since);
        let name = |names: &BTreeMap<String, String>, id: &str| {
            names.get(id).cloned().unwrap_or_else(|| id.to_owned())
        };
        match what {
            "user" => name(&self.users, process.word("Uid", 1)),
            "uid" => process.word("Uid", 1).to_owned(),
            "group" => name(&self.groups, process.word("Gid", 1)),
            "pid" => process.inner("NSpid"),
            "hpid" => process.pid.to_string(),
            "ppid" => {
                let parent = i32::try_from(process.number(4)).unwrap_or(0);
                self.inner.get(&parent).cloned().unwrap_or_else(|| "0".to_owned())
            }
            "pgid" => process.inner("NSpgid"),
            "pcpu" => {
                // Tenths of a percent of one CPU.
                let tenths = (ticks * 1000 / TICKS).checked_div(elapsed).unwrap_or(0);
                format!("{}.{}", tenths / 10, tenths % 10)
            }
            "etime" => clock(elapsed),
            "time" => clock(ticks / TICKS),
            "tty" => tty(process.number(7)),
            "nice" => process.number(19).to_string(),
            "rss" => process.word("VmRSS", 0).to_owned(),
            "vsz" => process.word("VmSize", 0).to_owned(),
            "state" => process.stat.first().cloned().unwrap_or_default(),
            "comm" => process.comm.clone(),
            _ => process.args.clone(),
        }
    }
}

/// `1h2m3s`, without leading zeros.
fn clock(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// The terminal of a device number: `pts/0`, `tty1`, `?` for none.
fn tty(device: i64) -> String {
    let device = u64::try_from(device).unwrap_or(0);
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

/// Names by number, from a file like /etc/passwd.
fn names(file: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.to_owned()))
    };
    text.lines().filter_map(entry).map(|(name, number)| (number, name)).collect()
}

impl Host {
    /// The processes of a running container, a row each under a head, with what was asked for.
    pub fn top(&mut self, name_or_id: &str, asked: &[String]) -> Result<Vec<Vec<String>>> {
        let asked: Vec<&str> = match asked {
            [] => DEFAULT.to_vec(),
            asked => asked.iter().map(String::as_str).collect(),
        };
        let head = |name: &&str| {
            let found = DESCRIPTORS.iter().find(|(known, _)| known == name);
            found.map(|(_, head)| (*head).to_owned()).ok_or_else(|| {
                let known: Vec<&str> = DESCRIPTORS.iter().map(|(known, _)| *known).collect();
                Error::Invalid(format!("`{name}` cannot be shown: use {}", known.join(", ")))
            })
        };
        let mut rows = vec![asked.iter().map(head).collect::<Result<Vec<_>>>()?];
        let record = self.find(name_or_id)?;
        self.must_run(&record)?;
        let pids = Hierarchies::of(&self.paths)?.pids(record.id());
        let processes: Vec<Process> = pids.into_iter().filter_map(Process::read).collect();
        let root = record.init.map_or(0, |init| init.pid);
        let etc = PathBuf::from(format!("/proc/{root}/root/etc"));
        let uptime =
            fs::read_to_string("/proc/uptime").map_err(Error::io("read", "/proc/uptime"))?;
        let surroundings = Surroundings {
            users: names(&etc.join("passwd")),
            groups: names(&etc.join("group")),
            uptime: uptime.split('.').next().and_then(|t| t.parse().ok()).unwrap_or(0),
            inner: processes.iter().map(|p| (p.pid, p.inner("NSpid"))).collect(),
        };
        rows.extend(
            processes.iter().map(|p| asked.iter().map(|what| surroundings.show(p, what)).collect()),
        );
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_and_times() {
        assert_eq!(tty(0), "?");
        assert_eq!(tty(136 << 8 | 3), "pts/3");
        assert_eq!(tty(4 << 8 | 1), "tty1");
        assert_eq!(clock(59), "59s");
        assert_eq!(clock(3723), "1h2m3s");
    }

    #[test]
    fn this_process_is_shown() {
        let own = Process::read(i32::try_from(std::process::id()).expect("pid")).expect("read");
        let around = Surroundings {
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            uptime: 1 << 40,
            inner: BTreeMap::new(),
        };
        assert_eq!(around.show(&own, "hpid"), std::process::id().to_string());
        assert_eq!(around.show(&own, "ppid"), "0");
        assert!(around.show(&own, "rss").parse::<u64>().is_ok());
    }
}
