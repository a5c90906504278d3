//! What stands in the way of a capture, told without stopping anybody.
//!
//! The rooms of [`crate::state`] look at the running tree as they look at a frozen one, from outside:
//! `/proc`, and descriptors that are duplicated for a moment. What only a stopped thread tells is not
//! seen: keyrings, AMX registers, syscall user dispatch, and queues that are peeked at (descriptors in
//! flight, datagrams). So a capture may still refuse what this did not.

use std::collections::BTreeSet;
use std::io::Read;

use arctern_sys::Pid;
use arctern_sys::pidfd::PidFd;
use arctern_sys::proc::{self, smaps, stat, status};

use crate::capture::{check_tree, file_options, mappings, planned_tasks};
use crate::error::{CaptureError, Refusal};
use crate::freeze::{failed, is_gone, narrow, share, traced, without_leader, without_vdso};
use crate::options::{CaptureOptions, TcpPolicy};
use crate::patience::{ATTEMPTS, in_vfork, is_vfork, shares_memory, waits, waits_for_child};
use crate::plan::plan;
use crate::state::files::{FileCollector, FileOptions};
use crate::state::namespaces::{NamespaceCollector, NamespaceOptions};
use crate::tree::{FrozenTask, FrozenTree, SharedIds};

/// Every reason for which a capture of the tree under `pid` would be refused now. The tasks run on all
/// the time. As in a capture, what is a matter of moments is looked at again for a quarter of a second.
///
/// # Errors
/// There is no such process, or the kernel does not answer.
pub fn check(pid: Pid, options: &CaptureOptions<'_>) -> Result<Vec<Refusal>, CaptureError> {
    let mut first = None;
    for attempt in 1..ATTEMPTS {
        let list = look_again(pid, options)?;
        if list.is_empty() || !list.iter().all(Refusal::is_momentary) {
            return Ok(list);
        }
        first.get_or_insert_with(|| (all_waits(&list), sharers(&list)));
        std::thread::sleep(std::time::Duration::from_millis(1 << attempt));
    }
    let mut list = look_again(pid, options)?;
    // A capture gets in between one vfork and the next.
    let (waiting, sharing) = first.unwrap_or_default();
    list.retain(|r| match &r.subject {
        subject if is_vfork(r) => waits(Pid(subject.pid)).iter().any(|w| waiting.contains(w)),
        subject if shares_memory(r) => sharing.contains(&subject.pid),
        _ => true,
    });
    Ok(list)
}

/// Who of those that are refused shares the memory of another.
fn sharers(list: &[Refusal]) -> Vec<i32> {
    list.iter().filter(|r| shares_memory(r)).map(|r| r.subject.pid).collect()
}

/// Who of those that are refused waits in vfork.
fn all_waits(list: &[Refusal]) -> Vec<(Pid, String)> {
    list.iter().filter(|r| is_vfork(r)).flat_map(|r| waits(Pid(r.subject.pid))).collect()
}

/// Looks until no task ends under our eyes; those that did are left out.
fn look_again(pid: Pid, options: &CaptureOptions<'_>) -> Result<Vec<Refusal>, CaptureError> {
    let mut ended = BTreeSet::new();
    loop {
        match look(pid, options, &ended) {
            Err(CaptureError::Kernel { subject, what, source }) => {
                let error = CaptureError::Kernel { subject: subject.clone(), what, source };
                if !error.is_gone() || subject.pid == pid.0 || !ended.insert(subject.pid) {
                    return Err(error);
                }
            }
            other => return other,
        }
    }
}

fn look(
    pid: Pid,
    options: &CaptureOptions<'_>,
    ended: &BTreeSet<i32>,
) -> Result<Vec<Refusal>, CaptureError> {
    let mut refusals = Vec::new();
    let mut tree = observe(pid, ended, &mut refusals)?;
    share(&mut tree)?;
    check_tree(&tree, &mut refusals);
    if let Err(list) = plan(&planned_tasks(&tree), options.shell_job) {
        refusals.extend(list);
    }
    let ns_options = NamespaceOptions { externals: &options.externals };
    let namespaces = NamespaceCollector::collect(&mut tree, &ns_options, &mut refusals)?;
    let file_options = FileOptions { observing: true, ..file_options(options, &namespaces) };
    let mut files = FileCollector::new(&file_options);
    files.collect_descriptors(&mut tree, &mut refusals)?;
    let moves = options.tcp == TcpPolicy::Established && options.after.moves();
    if moves && !options.skip_in_flight {
        files.check_draining(&tree, &mut refusals)?;
    }
    for index in (0..tree.tasks.len()).filter(|index| !tree.tasks[*index].is_zombie()) {
        mappings(&tree, index, &mut files, &mut refusals)?;
    }
    Ok(refusals)
}

/// The tree as it is at this moment.
fn observe(
    root: Pid,
    ended: &BTreeSet<i32>,
    refusals: &mut Vec<Refusal>,
) -> Result<FrozenTree, CaptureError> {
    if !proc::path(root, "stat").exists() {
        return Err(CaptureError::NoSuchProcess(root));
    }
    let mut tree = FrozenTree::default();
    let mut left = vec![(root, None)];
    while let Some((pid, parent)) = left.pop() {
        match task(pid, parent, refusals) {
            Ok(task) => tree.tasks.push(task),
            Err(error) if error.is_gone() && pid != root => continue,
            Err(error) => return Err(error),
        }
        let at = tree.tasks.len() - 1;
        match proc::children(pid) {
            Ok(children) => {
                let there = children.into_iter().filter(|child| !ended.contains(&child.0));
                left.extend(there.map(|child| (child, Some(at))));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(failed(pid, "list its children")(error)),
        }
    }
    Ok(tree)
}

fn task(
    pid: Pid,
    parent: Option<usize>,
    refusals: &mut Vec<Refusal>,
) -> Result<FrozenTask, CaptureError> {
    let stat = stat::read(pid).map_err(failed(pid, "read its state"))?;
    let status = status::read(pid, pid).map_err(failed(pid, "read its status"))?;
    let tids = proc::threads(pid).map_err(failed(pid, "list its threads"))?;
    let mut thread_status = Vec::with_capacity(tids.len());
    for tid in tids {
        let status = match status::read(pid, tid) {
            Err(error) if is_gone(&error) => continue,
            status => status.map_err(failed(pid, "read a thread's status"))?,
        };
        if status.tracer != 0 {
            refusals.push(traced(pid, tid, status.tracer));
        }
        if !matches!(status.state, 'Z' | 'X') {
            thread_status.push(status);
        }
    }
    let mut task = FrozenTask {
        pid,
        inner_pid: status.inner_pid(),
        parent,
        pidfd: PidFd::open(pid).map_err(failed(pid, "open it"))?,
        observed: !thread_status.is_empty(),
        stat,
        status,
        threads: Vec::new(),
        thread_status,
        mappings: Vec::new(),
        session: None,
        ids: SharedIds::default(),
    };
    if task.is_zombie() {
        return Ok(task);
    }
    if matches!(task.status.state, 'Z' | 'X') {
        refusals.push(without_leader(&task));
        // Its descriptors and its memory are reached through the leader.
        task.observed = false;
        return Ok(task);
    }
    if waits_for_child(pid) {
        refusals.push(in_vfork(pid, task.stat.comm.clone()));
    }
    task.mappings = smaps::read(pid).map_err(task.failed("", "read its mappings"))?;
    if is_narrow(pid) {
        refusals.push(narrow(&task));
    } else if !task.mappings.iter().any(|mapping| mapping.name == "[vdso]") {
        refusals.push(without_vdso(&task));
    }
    Ok(task)
}

/// Whether the program is a 32-bit one: the class in the head of an ELF file.
fn is_narrow(pid: Pid) -> bool {
    let mut head = [0; 5];
    let read =
        std::fs::File::open(proc::path(pid, "exe")).and_then(|mut f| f.read_exact(&mut head));
    read.is_ok() && head == *b"\x7fELF\x01"
}
