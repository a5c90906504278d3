//! From images to a summary.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::read::Raw;
use super::{
    Connection, Container, Descriptor, Member, Memory, Mount, Process, Summary, SummaryError,
};
use crate::archive::Compression;
use crate::images::ImageKind;
use crate::manifest::{MANIFEST_NAME, Manifest};
use crate::messages::{
    CoreEntry, CriuEnum, FdTypes, FdinfoEntry, FileEntry, Fstype, InetSkEntry, MmEntry, MntEntry,
    PstreeEntry, TaskKobjIdsEntry, UtsnsEntry,
};
use crate::pages::Run;
use crate::seal::{SIGNATURE_NAME, Signature};

/// Bits of `vma_entry.status` (CRIU's image.h).
mod status {
    pub const SPECIAL: u32 = 0x4 | 0x8 | 0x1000;
    pub const FILE_PRIVATE: u32 = 0x40;
    pub const ANON_PRIVATE: u32 = 0x200;
}

/// `MAP_SHARED` of `vma_entry.flags`.
const MAP_SHARED: u32 = 1;

/// `O_PATH` and the like say nothing here; families and protocols as in socket(2).
const AF_INET6: u32 = 10;

/// Members of the tree that are shown; the rest is counted as a problem.
const MAX_PROCESSES: usize = 100_000;

pub(super) fn build(raw: &Raw) -> Result<Summary, SummaryError> {
    let mut summary = Summary {
        compression: raw.compression.map(|compression| {
            match compression {
                Compression::None => "none",
                Compression::Gzip => "gzip",
                Compression::Zstd => "zstd",
            }
            .to_owned()
        }),
        ..Summary::default()
    };
    let members = raw.members.iter();
    summary.members =
        members.map(|(name, size)| Member { name: name.clone(), size: *size }).collect();
    about(raw, &mut summary);
    let files: BTreeMap<u32, FileEntry> =
        raw.records::<FileEntry>(ImageKind::Files, 0)?.into_iter().map(|f| (f.id, f)).collect();
    processes(raw, &files, &mut summary)?;
    let sockets: BTreeSet<Connection> =
        files.values().filter_map(|file| file.isk.as_deref()).map(connection).collect();
    summary.connections = sockets.into_iter().collect();
    for (kind, id) in raw.images.keys() {
        match kind {
            ImageKind::Mountpoints if summary.mounts.is_empty() => {
                let entries: Vec<MntEntry> = raw.records(*kind, *id)?;
                summary.mounts = entries.iter().map(mount).collect();
                summary.mounts.sort();
            }
            ImageKind::Utsns => {
                let uts: Option<UtsnsEntry> = raw.record(*kind, *id)?;
                summary.hostname = uts.map(|uts| printable(&uts.nodename));
            }
            _ => {}
        }
    }
    Ok(summary)
}

/// Text of a stranger, for a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What the documents of the archive say.
fn about(raw: &Raw, summary: &mut Summary) {
    if let Some(json) = raw.documents.get(MANIFEST_NAME) {
        match Manifest::from_json(json) {
            Ok(manifest) => {
                summary.written_by = manifest.written_by;
                summary.created = Some(manifest.created);
                summary.host = Some(manifest.host);
            }
            Err(error) => summary.problems.push(error.to_string()),
        }
        match raw.documents.get(SIGNATURE_NAME).map(|text| Signature::check(text, json)) {
            Some(Ok(signature)) => summary.signed_by = Some(signature.fingerprint()),
            Some(Err(error)) => summary.problems.push(error.to_string()),
            None => {}
        }
    }
    let mut document = |name: &str| {
        let parsed = serde_json::from_slice::<Value>(raw.documents.get(name)?);
        parsed.map_err(|error| summary.problems.push(format!("{name} is damaged: {error}"))).ok()
    };
    let (config, network) = (document("config.dump"), document("network.status"));
    let spec = document("spec.dump");
    if summary.written_by.is_empty() && !raw.documents.is_empty() {
        let manager = spec.as_ref().and_then(|s| s["annotations"]["io.container.manager"].as_str());
        summary.written_by = match manager {
            Some("libpod") => "podman".to_owned(),
            Some(other) => printable(other),
            None => String::new(),
        };
    }
    let Some(config) = config else { return };
    let text = |key: &str| printable(config[key].as_str().unwrap_or_default());
    let volumes = config["namedVolumes"].as_array().into_iter().flatten();
    summary.container = Some(Container {
        id: text("id"),
        name: text("name"),
        image: text("rootfsImageName"),
        image_id: text("rootfsImageID"),
        created: text("createdTime"),
        addresses: network.as_ref().map(addresses).unwrap_or_default(),
        volumes: volumes.filter_map(|v| v["volumeName"].as_str()).map(printable).collect(),
        config,
    });
}

fn addresses(network: &Value) -> BTreeMap<String, Vec<String>> {
    let interfaces = |status: &Value| -> Vec<String> {
        let all = status["interfaces"].as_object().into_iter().flatten();
        all.flat_map(|(_, interface)| interface["subnets"].as_array().into_iter().flatten())
            .filter_map(|subnet| subnet["ipnet"].as_str().map(printable))
            .collect()
    };
    let networks = network.as_object().into_iter().flatten();
    networks.map(|(name, status)| (printable(name), interfaces(status))).collect()
}

fn processes(
    raw: &Raw,
    files: &BTreeMap<u32, FileEntry>,
    summary: &mut Summary,
) -> Result<(), SummaryError> {
    let entries: Vec<PstreeEntry> = raw.records(ImageKind::Pstree, 0)?;
    if entries.len() > MAX_PROCESSES {
        let more = entries.len() - MAX_PROCESSES;
        summary.problems.push(format!("{more} more processes are not shown"));
    }
    let mut depths: BTreeMap<u32, usize> = BTreeMap::new();
    for entry in entries.iter().take(MAX_PROCESSES) {
        // Parents come first.
        let depth = depths.get(&entry.ppid).map_or(0, |depth| depth + 1);
        depths.insert(entry.pid, depth);
        let process = process(raw, entry, depth, files, &mut summary.problems);
        summary.processes.push(process);
    }
    order(&mut summary.processes);
    Ok(())
}

/// Puts children behind their parents, as a tree is read.
fn order(processes: &mut Vec<Process>) {
    let mut children: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let known: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
    let mut stack = Vec::new();
    for (index, process) in processes.iter().enumerate().rev() {
        match known.contains(&process.ppid) && process.ppid != process.pid {
            true => children.entry(process.ppid).or_default().push(index),
            false => stack.push(index),
        }
    }
    let mut sorted = Vec::with_capacity(processes.len());
    while let Some(index) = stack.pop() {
        sorted.push(index);
        // Taken out, so that a pid that comes twice ends.
        stack.extend(children.remove(&processes[index].pid).unwrap_or_default());
    }
    let mut taken: Vec<Option<Process>> = std::mem::take(processes).into_iter().map(Some).collect();
    processes.extend(sorted.into_iter().filter_map(|index| taken[index].take()));
    // What is in a circle has no root.
    processes.extend(taken.into_iter().flatten());
}

fn process(
    raw: &Raw,
    entry: &PstreeEntry,
    depth: usize,
    files: &BTreeMap<u32, FileEntry>,
    problems: &mut Vec<String>,
) -> Process {
    let id = u64::from(entry.pid);
    let mut note = |error: SummaryError| problems.push(error.to_string());
    let core: Option<CoreEntry> =
        raw.record(ImageKind::Core, id).map_err(&mut note).unwrap_or(None);
    let mm: Option<MmEntry> = raw.record(ImageKind::Mm, id).map_err(&mut note).unwrap_or(None);
    let ids: Option<TaskKobjIdsEntry> =
        raw.record(ImageKind::Ids, id).map_err(&mut note).unwrap_or(None);
    let ids = ids.or_else(|| core.as_ref().and_then(|core| core.ids.clone()));
    let table: Vec<FdinfoEntry> = ids
        .map(|ids| raw.records(ImageKind::Fdinfo, ids.files_id.into()))
        .transpose()
        .map_err(&mut note)
        .unwrap_or(None)
        .unwrap_or_default();
    let task = core.as_ref().and_then(|core| core.tc.as_ref());
    let path = |id: u32| files.get(&id)?.reg.as_ref().map(|reg| printable(&reg.name));
    let runs = raw.maps.get(&id).map(|(_, runs)| runs.as_slice()).unwrap_or_default();
    let command = raw.commands.get(&id).map(Vec::as_slice).unwrap_or_default();
    let command = command.strip_suffix(b"\0").unwrap_or(command);
    Process {
        pid: entry.pid,
        ppid: entry.ppid,
        pgid: entry.pgid,
        sid: entry.sid,
        depth,
        comm: task.map(|task| printable(&task.comm)).unwrap_or_default(),
        command: match command.is_empty() {
            true => Vec::new(),
            false => command
                .split(|byte| *byte == 0)
                .map(|word| printable(&String::from_utf8_lossy(word)))
                .collect(),
        },
        // CRIU's task states.
        state: match task.map(|task| task.task_state) {
            Some(1) => "running",
            Some(2 | 6) => "dead",
            Some(3) => "stopped",
            _ => "unknown",
        },
        threads: entry.threads.len(),
        program: mm.as_ref().and_then(|mm| path(mm.exe_file_id)),
        memory: mm.map(|mm| memory(&mm, runs)).unwrap_or_default(),
        descriptors: table.iter().map(|info| descriptor(info, files)).collect(),
    }
}

/// Where the pages of each kind are. Mappings and runs both ascend.
fn memory(mm: &MmEntry, runs: &[Run]) -> Memory {
    let mut memory = Memory::default();
    let mut next = 0;
    for vma in &mm.vmas {
        let length = vma.end.saturating_sub(vma.start);
        if vma.status & status::SPECIAL != 0 {
            continue;
        }
        memory.mapped = memory.mapped.saturating_add(length);
        let (mut stored, mut in_parent) = (0u64, 0u64);
        while runs.get(next).is_some_and(|run| run.end() <= vma.start) {
            next += 1;
        }
        for run in runs[next..].iter().take_while(|run| run.vaddr < vma.end) {
            let part = run.end().min(vma.end).saturating_sub(run.vaddr.max(vma.start));
            match run.flags.present {
                true => stored = stored.saturating_add(part),
                false if run.flags.parent => in_parent = in_parent.saturating_add(part),
                false => {}
            }
        }
        memory.in_parent = memory.in_parent.saturating_add(in_parent);
        let add = |to: &mut u64, bytes: u64| *to = to.saturating_add(bytes);
        if vma.flags & MAP_SHARED != 0 {
            add(&mut memory.shared, length);
        } else if vma.status & status::FILE_PRIVATE != 0 {
            add(&mut memory.file, stored);
        } else if vma.status & status::ANON_PRIVATE != 0 {
            add(&mut memory.anonymous, stored);
            add(&mut memory.zero, length.saturating_sub(stored).saturating_sub(in_parent));
        }
    }
    memory
}

fn descriptor(info: &FdinfoEntry, files: &BTreeMap<u32, FileEntry>) -> Descriptor {
    let kind = FdTypes::name(info.r#type).unwrap_or("unknown").to_ascii_lowercase();
    let about = files.get(&info.id).map(describe).unwrap_or_default();
    Descriptor { fd: info.fd, kind, about }
}

/// What a file is, in a few words.
pub(super) fn describe(file: &FileEntry) -> String {
    if let Some(reg) = &file.reg {
        return printable(&reg.name);
    }
    if let Some(socket) = &file.isk {
        let Connection { protocol, state, local, remote } = connection(socket);
        return match remote.is_empty() {
            true => format!("{protocol} {state} {local}"),
            false => format!("{protocol} {state} {local} -> {remote}"),
        };
    }
    if let Some(socket) = &file.usk {
        let name = String::from_utf8_lossy(&socket.name);
        // A name without a file begins with a zero byte.
        let name = printable(name.trim_end_matches('\0'));
        return match (name.is_empty(), socket.peer) {
            (false, _) => name,
            (true, 0) => String::new(),
            (true, peer) => format!("peer {peer}"),
        };
    }
    if let Some(pipe) = &file.pipe {
        return format!("pipe {}", pipe.pipe_id);
    }
    if let Some(fifo) = &file.fifo {
        return format!("fifo {}", fifo.pipe_id);
    }
    file.ext.as_ref().map(|_| "kept outside".to_owned()).unwrap_or_default()
}

fn connection(socket: &InetSkEntry) -> Connection {
    // The kernel's numbers of TCP states.
    const STATES: &[&str] = &[
        "",
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait1",
        "fin-wait2",
        "time-wait",
        "close",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
        "new-syn-recv",
    ];
    let protocol = match socket.proto {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        136 => "udplite".to_owned(),
        other => other.to_string(),
    };
    let state = STATES.get(socket.state as usize).copied().unwrap_or("unknown");
    let remote = match socket.dst_port {
        0 => String::new(),
        port => address(socket.family, &socket.dst_addr, port),
    };
    let local = address(socket.family, &socket.src_addr, socket.src_port);
    Connection { protocol, state: state.to_owned(), local, remote }
}

/// Words of an address in network order.
fn address(family: u32, words: &[u32], port: u32) -> String {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    if family == AF_INET6 {
        return format!("[{}]:{port}", Ipv6Addr::from(bytes));
    }
    format!("{}:{port}", Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
}

fn mount(entry: &MntEntry) -> Mount {
    let kind = i32::try_from(entry.fstype).ok().and_then(Fstype::name);
    let kind = match (kind, entry.fsname.as_deref()) {
        (Some("AUTO"), Some(name)) => printable(name),
        // A mount of the host's, of which only the key is known.
        (Some("UNSUPPORTED"), _) if entry.ext_key.is_some() => "bind".to_owned(),
        (kind, _) => kind.unwrap_or("unknown").to_ascii_lowercase(),
    };
    Mount {
        path: printable(&entry.mountpoint),
        kind,
        external: entry.ext_key.as_deref().map(printable),
    }
}
