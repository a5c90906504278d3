//! What has changed between two checkpoints, usually of one container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Connection, Descriptor, Process, Summary, SummaryError, build, read};
use crate::pages::PAGE_SIZE;
use crate::seal::Unseal;

/// What is in one checkpoint and not in the other. `removed` is only in the first one, `added` only in
/// the second one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Difference {
    /// Processes that both have, with what has changed of them.
    pub changed: Vec<ProcessDifference>,
    /// Processes of the second one.
    pub added: Vec<String>,
    /// Processes of the first one.
    pub removed: Vec<String>,
    /// Connections of the second one.
    pub added_connections: Vec<Connection>,
    /// Connections of the first one.
    pub removed_connections: Vec<Connection>,
    /// Fields of the container's configuration: the path, and both values.
    pub config: Vec<(String, Value, Value)>,
}

/// How a process has changed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProcessDifference {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Pages of memory that both store, with other contents.
    pub pages_changed: u64,
    /// Pages that only the second one stores.
    pub pages_added: u64,
    /// Pages that only the first one stores.
    pub pages_removed: u64,
    /// Pages that both store.
    pub pages_common: u64,
    /// Threads before and after.
    pub threads: (usize, usize),
    /// Descriptors that it has got.
    pub added_files: Vec<Descriptor>,
    /// Descriptors that it has lost.
    pub removed_files: Vec<Descriptor>,
}

impl ProcessDifference {
    /// Bytes of memory that differ.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.pages_changed + self.pages_added + self.pages_removed) * PAGE_SIZE
    }
}

/// Compares two archives, or directories of images; both are opened with the same keys.
///
/// # Errors
/// [`SummaryError`], of either.
pub fn compare(first: &Path, second: &Path, unseal: &Unseal) -> Result<Difference, SummaryError> {
    let read = |path| {
        let raw = read::read(path, read::Pages::Digests, unseal)?;
        build::build(&raw).map(|summary| (summary, raw.pages))
    };
    let (before, old_pages) = read(first)?;
    let (after, new_pages) = read(second)?;
    let none = BTreeMap::new();
    let mut difference = Difference::default();
    let known: BTreeMap<u32, &Process> = before.processes.iter().map(|p| (p.pid, p)).collect();
    for process in &after.processes {
        // The same pid and another program: another process.
        let same = known.get(&process.pid).filter(|old| old.program == process.program);
        let Some(old) = same else {
            difference.added.push(label(process));
            continue;
        };
        let pages = |of: &'_ BTreeMap<u64, BTreeMap<u64, u64>>| -> BTreeMap<u64, u64> {
            of.get(&u64::from(process.pid)).unwrap_or(&none).clone()
        };
        difference.changed.push(changed(old, process, &pages(&old_pages), &pages(&new_pages)));
    }
    let still: BTreeMap<u32, &Process> = after.processes.iter().map(|p| (p.pid, p)).collect();
    let gone = before
        .processes
        .iter()
        .filter(|old| still.get(&old.pid).is_none_or(|process| process.program != old.program));
    difference.removed = gone.map(label).collect();
    let connections = |summary: &Summary| -> BTreeSet<Connection> {
        summary.connections.iter().cloned().collect()
    };
    let (old, new) = (connections(&before), connections(&after));
    difference.added_connections = new.difference(&old).cloned().collect();
    difference.removed_connections = old.difference(&new).cloned().collect();
    let config = |summary: &Summary| {
        summary.container.as_ref().map(|container| container.config.clone()).unwrap_or_default()
    };
    fields("", &config(&before), &config(&after), &mut difference.config);
    Ok(difference)
}

fn label(process: &Process) -> String {
    match process.command.is_empty() {
        true => format!("{} ({})", process.pid, process.comm),
        false => format!("{} {}", process.pid, process.command.join(" ")),
    }
}

fn changed(
    old: &Process,
    new: &Process,
    before: &BTreeMap<u64, u64>,
    after: &BTreeMap<u64, u64>,
) -> ProcessDifference {
    let common = after.iter().filter(|(address, _)| before.contains_key(address)).count() as u64;
    let differ = after
        .iter()
        .filter(|(address, digest)| before.get(address).is_some_and(|old| old != *digest))
        .count() as u64;
    let only = |here: &[Descriptor], there: &[Descriptor]| -> Vec<Descriptor> {
        let there: BTreeMap<u32, &Descriptor> = there.iter().map(|d| (d.fd, d)).collect();
        let new = |d: &&Descriptor| there.get(&d.fd).is_none_or(|old| !is_same(old, d));
        here.iter().filter(new).cloned().collect()
    };
    ProcessDifference {
        pid: new.pid,
        comm: new.comm.clone(),
        pages_changed: differ,
        pages_added: after.len() as u64 - common,
        pages_removed: before.len() as u64 - common,
        pages_common: common,
        threads: (old.threads, new.threads),
        added_files: only(&new.descriptors, &old.descriptors),
        removed_files: only(&old.descriptors, &new.descriptors),
    }
}

/// Whether two checkpoints show the same file. What has no name has another number after a restore.
fn is_same(old: &Descriptor, new: &Descriptor) -> bool {
    let nameless = |d: &Descriptor| {
        let number = d.about.rsplit(' ').next().unwrap_or_default();
        matches!(d.kind.as_str(), "pipe" | "fifo" | "unixsk") && number.parse::<u64>().is_ok()
    };
    old.kind == new.kind && (old.about == new.about || (nameless(old) && nameless(new)))
}

/// The fields of two JSON objects that differ. JSON is read to a bounded depth.
fn fields(path: &str, before: &Value, after: &Value, found: &mut Vec<(String, Value, Value)>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(Value::Null)
                };
                fields(&place, &of(old), &of(new), found);
            }
        }
        _ if before != after => found.push((path.to_owned(), before.clone(), after.clone())),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_differ_are_named() {
        let before = serde_json::json!({ "a": 1, "b": { "c": [1], "d": 2 } });
        let after = serde_json::json!({ "a": 1, "b": { "c": [2] }, "e": true });
        let mut found = Vec::new();
        fields("", &before, &after, &mut found);
        let names: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, ["b.c", "b.d", "e"]);
    }
}
