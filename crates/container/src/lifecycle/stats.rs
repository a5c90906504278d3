//! `stats`: what a container uses, from its control groups, and from /proc where they do not count.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cgroup::Hierarchies;
use crate::error::Result;
use crate::host::Host;
use crate::state::Record;
use crate::time::Timestamp;

/// What a container has used, and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// When it was looked at.
    pub at: Timestamp,
    /// When the container was started.
    pub started: Timestamp,
    /// CPU time in nanoseconds.
    pub cpu: u64,
    /// Memory in bytes, without the page cache that can be given up.
    pub memory: u64,
    /// Limit of the memory: of the container, or all that the machine has.
    pub memory_limit: u64,
    /// Bytes received from the network.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Usage {
    /// Hundredths of a percent of one CPU, since an earlier look or since the start.
    #[must_use]
    pub fn cpu_share(&self, earlier: Option<&Usage>) -> u64 {
        let (cpu, at) = earlier.map_or((0, self.started), |earlier| (earlier.cpu, earlier.at));
        let time = u64::try_from(self.at.0.saturating_sub(at.0)).unwrap_or(0);
        let used = u128::from(self.cpu.saturating_sub(cpu)) * 10_000;
        u64::try_from(used.checked_div(time.into()).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Hundredths of a percent of the memory that it may have.
    #[must_use]
    pub fn memory_share(&self) -> u64 {
        let share = u128::from(self.memory) * 10_000;
        u64::try_from(share.checked_div(self.memory_limit.into()).unwrap_or(0)).unwrap_or(0)
    }
}

/// The groups of a container, whichever has a file.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn read(&self, file: &str) -> Option<String> {
        self.0.iter().find_map(|group| fs::read_to_string(group.join(file)).ok())
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The value behind a word in a file of `word value` lines.
    fn field(&self, file: &str, word: &str) -> Option<u64> {
        let text = self.read(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    }

    fn cpu(&self) -> Option<u64> {
        let v2 = || self.field("cpu.stat", "usage_usec").map(|us| us.saturating_mul(1000));
        self.number("cpuacct.usage").or_else(v2)
    }

    fn memory(&self) -> Option<u64> {
        let (used, cache) = match self.number("memory.usage_in_bytes") {
            Some(used) => (used, self.field("memory.stat", "total_inactive_file")),
            None => (self.number("memory.current")?, self.field("memory.stat", "inactive_file")),
        };
        Some(used.saturating_sub(cache.unwrap_or(0)))
    }

    fn memory_limit(&self) -> Option<u64> {
        self.number("memory.limit_in_bytes").or_else(|| self.number("memory.max"))
    }

    /// Bytes read and written, from `blkio` (version 1) or `io` (version 2).
    fn disk(&self) -> Option<(u64, u64)> {
        if let Some(text) = self.read("blkio.throttle.io_service_bytes") {
            let sum = |what: &str| {
                let value = |line: &str| {
                    let mut words = line.split_ascii_whitespace().skip(1);
                    (words.next()? == what).then(|| words.next()?.parse::<u64>().ok())?
                };
                text.lines().filter_map(value).sum()
            };
            return Some((sum("Read"), sum("Write")));
        }
        let text = self.read("io.stat")?;
        let sum = |what: &str| {
            let words = text.split_ascii_whitespace();
            words.filter_map(|word| word.strip_prefix(what)?.parse::<u64>().ok()).sum()
        };
        Some((sum("rbytes="), sum("wbytes=")))
    }

    fn tasks(&self) -> Option<u64> {
        self.number("pids.current")
    }
}

/// The same of the processes themselves, where no controller counts.
struct Processes(Vec<i32>);

impl Processes {
    fn sum(&self, file: &str, value: impl Fn(&str) -> Option<u64>) -> u64 {
        let text = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        self.0.iter().filter_map(text).filter_map(|text| value(&text)).sum()
    }

    fn field(&self, file: &str, name: &str) -> u64 {
        self.sum(file, |text| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().split(' ').next()?.parse().ok()
        })
    }

    /// User and system time, in ticks of 10 ms.
    fn cpu(&self) -> u64 {
        let ticks = self.sum("stat", |text| {
            let fields: Vec<&str> = text.rsplit(')').next()?.split_ascii_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        });
        ticks.saturating_mul(10_000_000)
    }
}

/// Bytes received and sent by all interfaces but the loopback, in the network of a process.
fn network(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut sum = (0, 0);
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> =
            numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        if let (true, [received, ..]) = (name.trim() != "lo", numbers.as_slice()) {
            sum.0 += received;
            sum.1 += numbers.get(8).copied().unwrap_or(0);
        }
    }
    sum
}

fn all_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

impl Host {
    /// What a running container uses now.
    pub fn usage(&self, record: &Record) -> Result<Usage> {
        self.must_run(record)?;
        let hierarchies = Hierarchies::of(&self.paths)?;
        let groups = hierarchies.groups(record.id());
        let groups = Groups(groups.into_iter().filter(|dir: &PathBuf| Path::is_dir(dir)).collect());
        let processes = Processes(hierarchies.pids(record.id()));
        let (received, sent) = record.init.map_or((0, 0), |init| network(init.pid));
        let from_proc =
            || (processes.field("io", "read_bytes:"), processes.field("io", "write_bytes:"));
        let (read, written) = groups.disk().unwrap_or_else(from_proc);
        let machine = all_memory();
        Ok(Usage {
            at: Timestamp::now(),
            started: record.started_at.unwrap_or_default(),
            cpu: groups.cpu().unwrap_or_else(|| processes.cpu()),
            memory: groups
                .memory()
                .unwrap_or_else(|| processes.field("status", "RssAnon:").saturating_mul(1024)),
            memory_limit: groups.memory_limit().map_or(machine, |limit| limit.min(machine)),
            received,
            sent,
            read,
            written,
            pids: groups.tasks().unwrap_or_else(|| processes.field("status", "Threads:")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("write");
        };
        write("cpu.stat", "usage_usec 1500\nuser_usec 1\n");
        write("memory.current", "10000\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\ninactive_file 4000\n");
        write("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n");
        let groups = Groups(vec![dir.path().to_owned()]);
        assert_eq!(groups.cpu(), Some(1_500_000));
        assert_eq!(groups.memory(), Some(6000));
        assert_eq!(groups.memory_limit(), None);
        assert_eq!(groups.disk(), Some((11, 22)));
        write("cpuacct.usage", "7\n");
        write("memory.usage_in_bytes", "9000\n");
        write(
            "blkio.throttle.io_service_bytes",
            "8:0 Read 5\n8:0 Write 6\n8:0 Total 11\nTotal 11\n",
        );
        assert_eq!(groups.cpu(), Some(7));
        assert_eq!(groups.memory(), Some(9000));
        assert_eq!(groups.disk(), Some((5, 6)));
    }

    #[test]
    fn shares_are_of_the_time_that_has_passed() {
        let second = 1_000_000_000;
        let first = Usage { at: Timestamp(second), cpu: 500_000_000, ..Usage::default() };
        let later = Usage { at: Timestamp(3 * second), cpu: 1_000_000_000, ..first };
        assert_eq!(first.cpu_share(None), 5000);
        assert_eq!(later.cpu_share(Some(&first)), 2500);
        let memory = Usage { memory: 1, memory_limit: 8, ..Usage::default() };
        assert_eq!(memory.memory_share(), 1250);
        assert_eq!(Usage::default().memory_share(), 0);
    }
}
