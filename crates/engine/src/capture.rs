//! One capture from freeze to release.
//!
//! Everything is read while the tree stands still; nothing in it is changed. All reasons against a
//! capture are collected first and returned together.

mod described;
mod locked;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use arctern_image::images::ImageDir;
use arctern_image::messages::{CoreEntry, InventoryEntry, MmEntry};
use arctern_image::pages::PagesIds;
use arctern_sys::freezer::Freezer;
use arctern_sys::namespace::Kind;
use arctern_sys::{PAGE_SIZE, Pid, proc};

use self::described::{Described, conclude, inventory, tree_entries, write_core};
use self::locked::Locked;
use crate::error::{CaptureError, Refusal, Remedy, Subject};
use crate::faults::Faults;
use crate::freeze::{Depth, Frozen, freeze};
use crate::options::{
    AfterCapture, CaptureOptions, CaptureReport, Event, Events, Fate, HookError, TcpPolicy,
};
use crate::park::Parked;
use crate::patience::{SHARES_MEMORY, patiently};
use crate::plan::{PlannedTask, plan};
use crate::precopy::PageSink;
use crate::state::cgroup::CgroupCollector;
use crate::state::files::{FileCollector, FileOptions};
use crate::state::memory::{dump, marks, vma};
use crate::state::namespaces::{NamespaceCollector, NamespaceOptions};
use crate::state::restart::Restarts;
use crate::state::shmem;
use crate::state::task::capture as task_state;
use crate::tracking::{Ranges, Tracking};
use crate::tree::{FrozenTask, FrozenTree};
use crate::writer::Writer;

/// Names of the steps, in order: fault points, and what `arctern internal plan-steps` lists.
pub const STEPS: [&str; 11] = [
    "freeze",
    "namespaces",
    "descriptors",
    "mappings",
    "tasks",
    "connections",
    "while-frozen",
    "pages",
    "images",
    "before-release",
    "release",
];

/// Most memory that a capture takes to shorten the freeze.
const BUFFER_LIMIT: u64 = 256 << 20;

/// What it leaves to others, in bytes.
const MEMORY_LEFT: u64 = 64 << 20;

/// CRIU refuses longer auxiliary vectors. Programs read theirs from the stack, which is whole.
const AUXV_WORDS: usize = 44;

/// `network_lock_method` of the inventory.
const NFTABLES: u32 = 1;
const NO_LOCK: u32 = 2;

/// Captures the tree under `pid` into `images_dir`, which is made if it does not exist.
///
/// What the program is about to take (a connection that waits to be accepted, an unread event) and
/// what ends by itself (vfork) is not refused at once: the tasks go on for some milliseconds, longer
/// each time, and the capture begins anew.
///
/// That wait is a sleep, though a bounded one (8 attempts, a quarter of a second in all; for vfork until
/// the time limit of the capture): what the
/// tasks must do next is nothing that the kernel tells others. That a queue became empty wakes its
/// writers and not its readers, an accept wakes nobody, and the end of a vfork wakes the parent
/// alone; who polls the same socket sees that something *is* there, which is the opposite. Nor would
/// one event do: the moment must be free of all causes at once.
///
/// # Errors
/// Whatever happens, after an error the tasks go on as they were; what was written so far stays in
/// the directory.
pub fn capture(
    pid: Pid,
    images_dir: &Path,
    options: CaptureOptions<'_>,
    events: &mut dyn Events,
) -> Result<CaptureReport, CaptureError> {
    capture_with(pid, images_dir, options, events, MemoryPart::default())
}

/// What of the memory was taken before, and where the rest goes.
#[derive(Default)]
pub(crate) struct MemoryPart<'a, 's> {
    pub(crate) tracking: Option<&'a mut Tracking>,
    /// The tracking goes on after the capture.
    pub(crate) go_on: bool,
    /// None: into the images.
    pub(crate) sink: Option<&'a mut (dyn PageSink + 's)>,
}

/// As [`capture`], after memory was copied ahead.
pub(crate) fn capture_with(
    pid: Pid,
    images_dir: &Path,
    mut options: CaptureOptions<'_>,
    events: &mut dyn Events,
    mut memory: MemoryPart<'_, '_>,
) -> Result<CaptureReport, CaptureError> {
    patiently(options.timeout, || {
        attempt_capture(pid, images_dir, &mut options, &mut memory, events)
    })
}

fn attempt_capture(
    pid: Pid,
    images_dir: &Path,
    options: &mut CaptureOptions<'_>,
    memory: &mut MemoryPart<'_, '_>,
    events: &mut dyn Events,
) -> Result<CaptureReport, CaptureError> {
    let started = Instant::now();
    let mut faults = Faults::from_env("capture");
    let mut step = |events: &mut dyn Events, number: usize| {
        events.event(Event::Phase(STEPS[number]));
        tracing::debug!("{} after {} µs", STEPS[number], started.elapsed().as_micros());
        faults.step(STEPS[number]).map_err(CaptureError::Injected)
    };
    let freezer = match options.after {
        AfterCapture::HandOver => Some(freezer(options.freeze_cgroup.as_deref())?),
        _ => None,
    };
    let images = ImageDir::create(images_dir)?;
    let mut refusals = Vec::new();
    let mut report = CaptureReport::default();

    let before = proc::tree(pid);
    // Tasks that go on wait for a copy in memory only, not for a file system.
    let early = options.after == AfterCapture::Resume;
    let mut buffer = None;
    if early {
        let estimate = dump::estimate(&before);
        let size = estimate + estimate / 8 + (1 << 20);
        // Without it the freeze lasts longer; a machine without memory would kill something.
        let room = proc::meminfo::read().map_or(0, |memory| memory.room());
        if size <= BUFFER_LIMIT && size.saturating_add(MEMORY_LEFT) <= room {
            buffer = Some(dump::Buffer::new(size as usize));
        }
    }

    step(events, 0)?;
    let mut frozen = freeze(pid, &before, options.timeout, Depth::Sessions, &mut refusals)?;
    if let Some(tracking) = &mut memory.tracking {
        tracking.adopt(&mut frozen.tree);
    }
    report.freezing_us = frozen.since.elapsed().as_micros() as u64;
    let (tree, waited) = (&mut frozen.tree, &frozen.waited);
    report.processes = tree.tasks.len() as u64;
    report.threads = tree.tasks.iter().map(|t| t.threads.len() as u64).sum();
    check_tree(tree, &mut refusals);
    if let Err(list) = plan(&planned_tasks(tree), options.shell_job) {
        // What the restore could not arrange must not be killed.
        refusals.extend(list);
    }

    step(events, 1)?;
    let ns_options = NamespaceOptions { externals: &options.externals };
    let mut namespaces = NamespaceCollector::collect(tree, &ns_options, &mut refusals)?;
    let cgroups = CgroupCollector::collect(tree, options.freeze_cgroup.as_deref())?;

    step(events, 2)?;
    let mut files = FileCollector::new(&file_options(options, &namespaces));
    files.collect_descriptors(tree, &mut refusals)?;
    let moves = options.tcp == TcpPolicy::Established && options.after.moves();
    if moves && !options.skip_in_flight {
        files.check_draining(tree, &mut refusals)?;
    }

    step(events, 3)?;
    let pages_ids = PagesIds::new();
    let mut spaces = Vec::new();
    for index in 0..tree.tasks.len() {
        if tree.tasks[index].is_zombie() {
            continue;
        }
        spaces.push((index, mappings(tree, index, &mut files, &mut refusals)?));
    }

    step(events, 4)?;
    // What is only described needs no freeze, unless the tasks are to die: then it must be safe before.
    let writer = if early { None } else { Some(Writer::start(images_dir)?) };
    let mut filters = task_state::SeccompFilters::default();
    let mut restarts = Restarts::default();
    let mut cores: Vec<(i32, CoreEntry)> = Vec::new();
    let mut halted: HashMap<usize, Vec<i32>> = HashMap::new();
    for task in tree.tasks.iter().filter(|task| task.stat.state == 'T') {
        if let Some(parent) = task.parent {
            halted.entry(parent).or_default().push(task.inner_pid);
        }
    }
    for (index, task) in tree.tasks.iter_mut().enumerate() {
        if task.is_zombie() {
            cores.push((task.inner_pid, task_state::capture_zombie(task)));
            continue;
        }
        if task.session.is_none() {
            continue; // Refused above.
        }
        let halted = halted.get(&index).map_or(&[][..], Vec::as_slice);
        let captured =
            task_state::capture(task, &mut filters, &mut restarts, waited, halted, &mut refusals)?;
        if let Ok(at) = spaces.binary_search_by_key(&index, |(task, _)| *task) {
            let (_, mm) = &mut spaces[at];
            mm.mm_brk = captured.memory.brk;
            mm.dumpable = Some(captured.memory.dumpable);
            mm.thp_disabled = captured.memory.thp_disabled.then_some(true);
        }
        restarts.marks.extend(marks::capture(task)?);
        for (thread, (tid, mut core)) in captured.cores.into_iter().enumerate() {
            let set = cgroups.set_of(index, thread);
            if let Some(tc) = &mut core.tc {
                tc.cg_set = Some(set);
            }
            if let Some(thread_core) = &mut core.thread_core {
                thread_core.cg_set = Some(set);
            }
            match &writer {
                Some(writer) => writer.write(move |images| write_core(images, tid, &core)),
                None => cores.push((tid, core)),
            }
        }
    }
    if !refusals.is_empty() {
        frozen.resume()?;
        return Err(CaptureError::Refused(refusals));
    }

    step(events, 5)?;
    let mut lock = Locked::default();
    let mut guard = None;
    let run_id = options.network.as_ref().and_then(|network| network.run_id());
    if options.tcp == TcpPolicy::Established {
        lock.lock(options.network.as_deref_mut(), &files, tree.tasks[0].pid)?;
        // Nothing reaches the listeners any more.
        let late = files.late_arrivals(tree)?;
        if !late.is_empty() {
            return Err(CaptureError::Refused(late));
        }
        guard = files.guard_connections(tree, lock.network())?;
        files.write_connections(&images)?;
        files.write_waiting(tree, &images)?;
        if options.after != AfterCapture::Kill {
            guard = None;
        }
    }

    step(events, 6)?;
    if let Some(hook) = &mut options.while_frozen {
        hook().map_err(CaptureError::Hook)?;
    }

    step(events, 7)?;
    let memory_started = Instant::now();
    let mut plans = Vec::new();
    for (index, mm) in &mut spaces {
        let task = &tree.tasks[*index];
        let known = memory.tracking.as_ref().and_then(|tracking| tracking.known(task));
        let files = memory.sink.is_none().then(|| (&images, pages_ids.next()));
        let plan = dump::plan(task, mm, files, known)?;
        report.pages_scanned += plan.scanned;
        report.pages_written += plan.stored;
        report.pages_unchanged += plan.unchanged_pages();
        plans.push(plan);
    }
    if let (Some(tracking), true) = (&mut memory.tracking, memory.go_on) {
        go_on_tracking(tracking, tree, &plans)?;
    }
    shared_memory(tree, &spaces, &images, &pages_ids)?;
    let mut described = Some(Described {
        tree: tree_entries(tree, &namespaces),
        spaces: spaces.into_iter().map(|(i, mm)| (tree.tasks[i].inner_pid, mm)).collect(),
        cores,
        seccomp: filters.into_entry(),
    });
    if let Some(writer) = &writer
        && let Some(described) = described.take()
    {
        writer.write(move |images| described.write(images));
    }
    let total = report.pages_written * PAGE_SIZE;
    let blame = |tree: &FrozenTree, (pid, source): (Pid, std::io::Error)| match tree
        .tasks
        .iter()
        .find(|t| t.pid == pid)
    {
        Some(task) => task.failed("", "copy its memory")(source),
        None => CaptureError::NoSuchProcess(pid),
    };
    if let Some(sink) = &mut memory.sink {
        let mut done = 0;
        dump::give(&plans, &mut **sink, |bytes| {
            done += bytes;
            events.event(Event::Progress { done, total });
        })
        .map_err(|(pid, e)| match e {
            dump::GiveError::Read(e) => blame(tree, (pid, e)),
            dump::GiveError::Sink(e) => CaptureError::Hook(e),
        })?;
        plans.clear();
    }
    let taken = match &mut buffer {
        Some(buffer) => buffer.fill(&plans).map_err(|e| blame(tree, e))?,
        None => false,
    };
    if !taken {
        buffer = None;
        let mut done = 0;
        dump::copy_pages(&plans, |bytes| {
            done += bytes;
            events.event(Event::Progress { done, total });
        })
        .map_err(|e| blame(tree, e))?;
    }
    report.memory_us = memory_started.elapsed().as_micros() as u64;

    step(events, 8)?;
    files.write(tree, &images, &pages_ids)?;
    namespaces.write(tree, &images, &pages_ids)?;
    cgroups.write(&images)?;
    let inventory = InventoryEntry {
        network_lock_method: Some(if run_id.is_some() { NFTABLES } else { NO_LOCK }),
        dump_criu_run_id: run_id,
        ..inventory(&namespaces, cgroups.root_set())
    };
    if let Some(writer) = writer {
        writer.finish()?;
        conclude(&images, &restarts, &inventory)?;
    }

    step(events, 9)?;
    if let Some(hook) = &mut options.before_release {
        hook().map_err(CaptureError::Hook)?;
    }

    step(events, 10)?;
    let since = frozen.since;
    match freezer {
        Some(freezer) => {
            let parked = frozen.park(freezer, options.timeout)?;
            hand_over(parked, &files, lock, options.hand_over.as_deref_mut())?;
        }
        None => {
            if options.after == AfterCapture::Kill {
                files.silence_connections()?;
                if let Some(guard) = &guard {
                    let failed = tree.tasks[0].failed("", "tell the guard of its connections");
                    guard.commit().map_err(failed)?;
                }
                lock.keep();
            }
            drop(lock);
            release(frozen, options.after)?;
            drop(guard);
        }
    }
    report.frozen_us = since.elapsed().as_micros() as u64;
    tracing::debug!("released after {} µs", started.elapsed().as_micros());
    if let Some(buffer) = buffer {
        buffer.write(&plans).map_err(|(pid, source)| CaptureError::Kernel {
            subject: Subject { pid: pid.0, comm: String::new(), part: String::new() },
            what: "write its pages".to_owned(),
            source,
        })?;
        events.event(Event::Progress { done: total, total });
    }
    if let Some(described) = described {
        described.write(&images)?;
        conclude(&images, &restarts, &inventory)?;
    }
    report.total_us = started.elapsed().as_micros() as u64;
    Ok(report)
}

/// What the caller decided about files.
pub(crate) fn file_options(
    options: &CaptureOptions<'_>,
    namespaces: &NamespaceCollector,
) -> FileOptions {
    FileOptions {
        shell_job: options.shell_job,
        orphan_terminals: options.orphan_terminals && namespaces.is_nested(Kind::Mount),
        file_locks: options.file_locks,
        ghost_limit: options.ghost_limit,
        externals: options.externals.clone(),
        external_unix: options.external_unix,
        mount_namespace: namespaces.is_nested(Kind::Mount),
        net_ns_id: namespaces.number(Kind::Net).unwrap_or(0),
        tcp: options.tcp,
        skip_in_flight: options.skip_in_flight,
        takes_waiting: options.tcp == TcpPolicy::Established && options.network.is_some(),
        observing: false,
    }
}

/// Begins to track anew at this moment, with what the images hold as what was stored.
fn go_on_tracking(
    tracking: &mut Tracking,
    tree: &mut FrozenTree,
    plans: &[dump::Plan],
) -> Result<(), CaptureError> {
    let looks = tracking.look(tree)?;
    let plans: HashMap<Pid, &dump::Plan> = plans.iter().map(|plan| (plan.pid, plan)).collect();
    for (look, plan) in looks.iter().filter_map(|look| Some((look, plans.get(&look.pid)?))) {
        tracking.stored(look.inner_pid, plan.in_images(), Ranges::default());
    }
    Ok(())
}

/// Microseconds since the boot, as images have them.
pub(crate) fn uptime() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some((seconds * 1e6) as u64)
}

fn release(frozen: Frozen, after: AfterCapture) -> Result<(), CaptureError> {
    match after {
        AfterCapture::Kill | AfterCapture::HandOver => frozen.kill(),
        AfterCapture::Resume => frozen.resume(),
        AfterCapture::Stop => frozen.leave_stopped(),
    }
}

/// The freezer of the tree's group.
fn freezer(group: Option<&Path>) -> Result<Freezer, CaptureError> {
    let freezer = group.and_then(|dir| Freezer::of(dir).ok().flatten());
    freezer.ok_or(CaptureError::NoFreezer)
}

/// Asks the caller what becomes of a tree that stands in its frozen group, and does it.
fn hand_over(
    parked: Parked,
    files: &FileCollector,
    mut lock: Locked<'_, '_>,
    hook: Option<&mut (dyn FnMut() -> Result<Fate, HookError> + '_)>,
) -> Result<(), CaptureError> {
    let fate = match hook {
        Some(hook) => hook(),
        None => Ok(Fate::Back),
    };
    match fate {
        Ok(Fate::Gone) => {
            lock.keep();
            // Nothing may keep it alive now; under the lock nobody hears of an end.
            if let Err(error) = files.silence_connections() {
                tracing::warn!("{error}");
            }
            parked.kill()
        }
        Ok(Fate::Back) => {
            drop(lock);
            parked.resume()?;
            Err(CaptureError::NotTaken)
        }
        Err(error) => {
            lock.keep();
            Err(CaptureError::InDoubt(error))
        }
    }
}

pub(crate) fn planned_tasks(tree: &FrozenTree) -> Vec<PlannedTask> {
    let inner = |ids: &[i32], outer: i32| ids.last().copied().unwrap_or(outer);
    let planned = |task: &FrozenTask| PlannedTask {
        pid: task.inner_pid,
        parent: task.parent,
        sid: inner(&task.status.ns_sid, task.stat.session),
        pgid: inner(&task.status.ns_pgid, task.stat.pgrp),
        zombie: task.is_zombie(),
        common_memory: false,
        comm: task.stat.comm.clone(),
    };
    tree.tasks.iter().map(planned).collect()
}

/// Refusals about tasks as such.
pub(crate) fn check_tree(tree: &FrozenTree, refusals: &mut Vec<Refusal>) {
    let mut first: HashMap<u32, Pid> = HashMap::new();
    for task in tree.tasks.iter().filter(|task| !task.is_zombie()) {
        let other = *first.entry(task.ids.vm).or_insert(task.pid);
        if other != task.pid {
            refusals.push(task.refuse(
                "",
                format!("{SHARES_MEMORY} {other} (clone or vfork)"),
                Remedy::try_again("when it has called execve"),
            ));
        }
    }
}

/// The mappings of a task as its image, without pages.
pub(crate) fn mappings(
    tree: &FrozenTree,
    index: usize,
    files: &mut FileCollector,
    refusals: &mut Vec<Refusal>,
) -> Result<MmEntry, CaptureError> {
    let task = &tree.tasks[index];
    let mut vmas: Vec<arctern_image::messages::VmaEntry> = Vec::with_capacity(task.mappings.len());
    for mapping in &task.mappings {
        let part = || format!("mapping {:x}-{:x} {}", mapping.start, mapping.end, mapping.name);
        let kind = match vma::classify(mapping) {
            Ok(kind) => kind,
            Err((cause, remedy)) => {
                refusals.push(task.refuse(part(), cause, remedy));
                continue;
            }
        };
        let file = match kind {
            vma::Kind::File | vma::Kind::Memfd => {
                files.mapped_file(tree, index, mapping, refusals)?.into()
            }
            vma::Kind::SharedAnonymous | vma::Kind::SysV => mapping.inode,
            _ => 0,
        };
        let entry = vma::entry(mapping, kind, file);
        match vmas.last_mut() {
            // The parts of the kernel's variables are one to CRIU.
            Some(last)
                if kind == vma::Kind::Vvar
                    && last.end == entry.start
                    && last.status == entry.status =>
            {
                last.end = entry.end;
            }
            _ => vmas.push(entry),
        }
    }
    let exe = files.link_file(tree, index, "exe", refusals)?;
    let auxv = proc::auxv(task.pid).map_err(task.failed("", "read its auxiliary vector"))?;
    let stat = &task.stat;
    Ok(MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: 0,
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id: exe,
        mm_saved_auxv: auxv
            .chunks_exact(8)
            .take(AUXV_WORDS)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect(),
        vmas,
        dumpable: None,
        aios: Vec::new(),
        thp_disabled: None,
    })
}

/// Contents of shared anonymous memory, each object once.
fn shared_memory(
    tree: &FrozenTree,
    spaces: &[(usize, MmEntry)],
    images: &ImageDir,
    pages_ids: &PagesIds,
) -> Result<(), CaptureError> {
    let mut done = std::collections::BTreeSet::new();
    for (index, mm) in spaces {
        let task: &FrozenTask = &tree.tasks[*index];
        let shared = mm.vmas.iter().filter(|v| vma::is_shared_anonymous(v));
        for entry in shared {
            if !done.insert(entry.shmid) {
                continue;
            }
            let range = format!("{:x}-{:x}", entry.start, entry.end);
            let path = proc::path(task.pid, &format!("map_files/{range}"));
            let file = std::fs::File::open(path)
                .map_err(task.failed(format!("shared memory at {range}"), "open it"))?;
            shmem::capture(&file, entry.shmid, images, pages_ids)?;
        }
    }
    Ok(())
}
