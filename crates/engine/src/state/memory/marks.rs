//! What mappings have for which CRIU's images have no field: NUMA policy (mbind(2)) and seals (mseal(2)).
//! It is kept beside the interrupted calls ([`crate::state::restart`]).
//!
//! The policy is asked of the kernel by the task itself, mapping by mapping; private mappings of files
//! are left out, whose pages follow the policy of whoever reads them first. Seals are in smaps. Restored:
//! the policy when the pages are there, which are moved to where it wants them; seals when nothing is
//! mapped or unmapped any more.

use arctern_sys::proc::smaps::Mapping;
use arctern_tracee::stub::Stub;
use arctern_tracee::{Arena, Batch, CallId};
use serde::{Deserialize, Serialize};

use crate::error::{CaptureError, RestoreError};
use crate::options::{Event, Events};
use crate::state::task::settings::{NODES, mask_of, nodes_of};
use crate::tree::FrozenTask;

/// Questions in one batch.
const AT_ONCE: usize = 2000;

/// What a mapping has that is not as usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Inner id of the process.
    pub pid: i32,
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// NUMA policy: mode with its flags, and nodes.
    #[serde(default)]
    pub memory_policy: Option<(i32, Vec<usize>)>,
    /// Whether it is sealed.
    #[serde(default)]
    pub sealed: bool,
}

/// Reads the marks of all mappings of a task.
pub(crate) fn capture(task: &mut FrozenTask) -> Result<Vec<Marks>, CaptureError> {
    let kernels = |mapping: &&Mapping| !mapping.name.starts_with("[v");
    let sealed: Vec<(u64, u64)> = task
        .mappings
        .iter()
        .filter(kernels)
        .filter(|mapping| mapping.has("sl"))
        .map(|mapping| (mapping.start, mapping.end))
        .collect();
    let own: Vec<(u64, u64)> = task
        .mappings
        .iter()
        .filter(kernels)
        .filter(|mapping| mapping.inode == 0 || mapping.shared)
        .map(|mapping| (mapping.start, mapping.end))
        .collect();
    let mut marks = Vec::new();
    for some in own.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        let modes: Vec<(Arena, CallId)> =
            some.iter().map(|(start, _)| ask(&mut batch, *start, None)).collect();
        task.run(&mut batch)?;
        let mode = |(at, call): &(Arena, CallId)| match batch.result(*call) {
            Ok(_) => i32::from_ne_bytes(batch.memory(*at)[..4].try_into().expect("four bytes")),
            // A kernel without NUMA.
            Err(_) => 0,
        };
        let chosen = some.iter().zip(&modes).map(|(range, asked)| (*range, mode(asked)));
        let chosen: Vec<((u64, u64), i32)> = chosen.filter(|(_, mode)| *mode != 0).collect();
        for ((start, end), mode) in chosen {
            let mut batch = Batch::new();
            let nodes = batch.reserve(NODES / 8);
            ask(&mut batch, start, Some(nodes));
            task.run(&mut batch)?;
            let memory_policy = Some((mode, nodes_of(batch.memory(nodes))));
            let pid = task.inner_pid;
            marks.push(Marks { pid, start, end, memory_policy, sealed: false });
        }
    }
    for (start, end) in sealed {
        match marks.iter_mut().find(|marks| marks.start == start) {
            Some(marks) => marks.sealed = true,
            None => marks.push(Marks {
                pid: task.inner_pid,
                start,
                end,
                memory_policy: None,
                sealed: true,
            }),
        }
    }
    Ok(marks)
}

/// get_mempolicy(2) of the mapping at an address: mode, and nodes where they are asked for.
fn ask(batch: &mut Batch, address: u64, nodes: Option<Arena>) -> (Arena, CallId) {
    const MPOL_F_ADDR: i32 = 2; // linux/mempolicy.h
    let mode = batch.reserve(4);
    let (mask, bits) = match nodes {
        Some(nodes) => (nodes.into(), NODES),
        None => (0.into(), 0),
    };
    let arguments = [mode.into(), mask, bits.into(), address.into(), MPOL_F_ADDR.into()];
    (mode, batch.call(libc::SYS_get_mempolicy, &arguments))
}

/// Gives the mappings of a task that is built their policies. `inherited` are the marks of the task that
/// it was cloned from. What this host does not have is a warning.
pub(crate) fn place<'a>(
    stub: &Stub,
    marks: impl Iterator<Item = &'a Marks>,
    inherited: impl Iterator<Item = &'a Marks>,
    events: &mut dyn Events,
) -> Result<(), RestoreError> {
    const MPOL_DEFAULT: i32 = 0;
    const MPOL_MF_MOVE: i32 = 2; // linux/mempolicy.h
    let mut batch = Batch::new();
    for marks in inherited.filter(|marks| marks.memory_policy.is_some()) {
        // Of a range that it has no more, too: that is an error which tells nothing.
        let length = marks.end.saturating_sub(marks.start);
        let arguments =
            [marks.start.into(), length.into(), MPOL_DEFAULT.into(), 0.into(), 0.into(), 0.into()];
        batch.call(libc::SYS_mbind, &arguments);
        run_if_full(stub, &mut batch)?;
    }
    stub.run(&mut batch)?;
    for marks in marks {
        let Some((mode, nodes)) = &marks.memory_policy else { continue };
        let mut batch = Batch::new();
        let mask = batch.bytes(&mask_of(nodes));
        let length = marks.end.saturating_sub(marks.start);
        let arguments = [
            marks.start.into(),
            length.into(),
            (*mode).into(),
            mask.into(),
            NODES.into(),
            MPOL_MF_MOVE.into(),
        ];
        let call = batch.call(libc::SYS_mbind, &arguments);
        stub.run(&mut batch)?;
        warn(&batch, call, marks, "give it its NUMA policy", events);
    }
    Ok(())
}

/// Seals the mappings of a task that is complete. A kernel that cannot is a warning.
pub(crate) fn seal<'a>(
    stub: &Stub,
    marks: impl Iterator<Item = &'a Marks>,
    events: &mut dyn Events,
) -> Result<(), RestoreError> {
    const SYS_MSEAL: i64 = 462; // asm/unistd_64.h, kernel 6.10
    let sealed: Vec<&Marks> = marks.filter(|marks| marks.sealed).collect();
    for some in sealed.chunks(AT_ONCE) {
        let mut batch = Batch::new();
        let call = |marks: &&Marks| {
            let length = marks.end.saturating_sub(marks.start);
            batch.call(SYS_MSEAL, &[marks.start.into(), length.into(), 0.into()])
        };
        let calls: Vec<CallId> = some.iter().map(call).collect();
        stub.run(&mut batch)?;
        for (marks, call) in some.iter().zip(calls) {
            warn(&batch, call, marks, "seal it", events);
        }
    }
    Ok(())
}

fn run_if_full(stub: &Stub, batch: &mut Batch) -> Result<(), RestoreError> {
    if batch.len() >= AT_ONCE {
        stub.run(batch)?;
        *batch = Batch::new();
    }
    Ok(())
}

fn warn(batch: &Batch, call: CallId, marks: &Marks, what: &str, events: &mut dyn Events) {
    if let Err(e) = batch.result(call) {
        let Marks { pid, start, end, .. } = marks;
        let text = format!("process {pid}, mapping {start:x}-{end:x}: cannot {what}: {e}");
        events.event(Event::Warning(text));
    }
}
