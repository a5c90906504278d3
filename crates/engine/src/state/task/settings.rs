//! Settings of a thread for which CRIU's images have no field: priority of I/O, slack of timers, NUMA
//! policy, syscall user dispatch. They are kept beside the interrupted calls
//! ([`crate::state::restart`]).
//!
//! Read: the priority by ioprio_get(2) and the dispatch by ptrace from outside, the others by the
//! thread itself. Restored before its ids change (some classes of I/O need a right), the dispatch last
//! of all, by ptrace. Refused: keyrings of a thread or process, which nobody can take over. The session
//! keyring is not looked at: a restored task has the restorer's.

use arctern_sys::ptrace::UserDispatch;
use arctern_sys::{Pid, ptrace, sched};
use arctern_tracee::stub::Stub;
use arctern_tracee::thread::StoppedThread;
use arctern_tracee::{Arena, Batch, CallId, TraceeError};
use serde::{Deserialize, Serialize};

use crate::error::RestoreError;
use crate::options::{Event, Events};

/// Slack that threads have unless somebody changes it, in nanoseconds (linux/init_task.h).
const USUAL_SLACK: u64 = 50_000;

/// Nodes that a policy can name: as many as any kernel is built for.
pub(crate) const NODES: usize = 1024;

/// What a thread has that is not as usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSettings {
    /// Inner id.
    pub tid: i32,
    /// Class and level of I/O (ioprio_set(2)).
    #[serde(default)]
    pub io_priority: i32,
    /// Slack of timers in nanoseconds.
    #[serde(default)]
    pub timer_slack: Option<u64>,
    /// NUMA policy (set_mempolicy(2)): mode with its flags, and nodes.
    #[serde(default)]
    pub memory_policy: Option<(i32, Vec<usize>)>,
    /// Syscall user dispatch: selector, start and length of what is let through.
    #[serde(default)]
    pub dispatch: Option<[u64; 3]>,
}

/// Questions to a thread, and where its answers are.
pub(super) struct Questions {
    slack: CallId,
    policy: CallId,
    mode: Arena,
    nodes: Arena,
    keyring: CallId,
}

/// The numbers of the nodes in a mask.
pub(crate) fn nodes_of(mask: &[u8]) -> Vec<usize> {
    (0..NODES).filter(|node| mask[node / 8] & 1 << (node % 8) != 0).collect()
}

/// The mask of these nodes.
pub(crate) fn mask_of(nodes: &[usize]) -> [u8; NODES / 8] {
    let mut mask = [0; NODES / 8];
    for node in nodes.iter().filter(|node| **node < NODES) {
        mask[node / 8] |= 1 << (node % 8);
    }
    mask
}

/// Whether a keyring of this kind is there: the call fails where it would have to be made.
pub(super) fn ask_keyring(batch: &mut Batch, kind: i32) -> CallId {
    const KEYCTL_GET_KEYRING_ID: i32 = 0; // linux/keyctl.h
    batch.call(libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID.into(), kind.into(), 0.into()])
}

/// `KEY_SPEC_THREAD_KEYRING` and `KEY_SPEC_PROCESS_KEYRING` (linux/keyctl.h).
pub(super) const THREAD_KEYRING: i32 = -1;
pub(super) const PROCESS_KEYRING: i32 = -2;

pub(super) fn ask(batch: &mut Batch) -> Questions {
    let slack = batch.call(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK.into()]);
    let (mode, nodes) = (batch.reserve(8), batch.reserve(NODES / 8));
    let arguments = [mode.into(), nodes.into(), NODES.into(), 0.into(), 0.into()];
    let policy = batch.call(libc::SYS_get_mempolicy, &arguments);
    Questions { slack, policy, mode, nodes, keyring: ask_keyring(batch, THREAD_KEYRING) }
}

/// The answers: None if all is as usual, and whether the thread has a keyring.
pub(super) fn capture(
    thread: &StoppedThread,
    batch: &Batch,
    asked: &Questions,
) -> (Option<ThreadSettings>, bool) {
    let usual = ThreadSettings { tid: thread.inner_tid, ..ThreadSettings::default() };
    let mut settings = usual.clone();
    settings.io_priority = sched::io_priority(thread.tid).unwrap_or(0);
    settings.timer_slack = batch.result(asked.slack).ok().filter(|slack| *slack != USUAL_SLACK);
    if batch.result(asked.policy).is_ok() {
        let mode: [u8; 4] = batch.memory(asked.mode)[..4].try_into().expect("four bytes");
        let mode = i32::from_ne_bytes(mode);
        let nodes = nodes_of(batch.memory(asked.nodes));
        settings.memory_policy = (mode != 0).then_some((mode, nodes));
    }
    if let Ok(dispatch) = ptrace::user_dispatch(thread.tid)
        && dispatch.mode != 0
    {
        settings.dispatch = Some([dispatch.selector, dispatch.offset, dispatch.length]);
    }
    ((settings != usual).then_some(settings), batch.result(asked.keyring).is_ok())
}

/// Restores all but the dispatch. What this host does not have is a warning.
pub fn restore(
    stub: &Stub,
    settings: &ThreadSettings,
    events: &mut dyn Events,
) -> Result<(), RestoreError> {
    const IOPRIO_WHO_PROCESS: i32 = 1; // linux/ioprio.h
    let mut batch = Batch::new();
    let mut calls: Vec<(&str, CallId)> = Vec::new();
    if settings.io_priority != 0 {
        let arguments = [IOPRIO_WHO_PROCESS.into(), 0.into(), settings.io_priority.into()];
        calls.push(("priority of I/O", batch.call(libc::SYS_ioprio_set, &arguments)));
    }
    if let Some(slack) = settings.timer_slack {
        let call = batch.call(libc::SYS_prctl, &[libc::PR_SET_TIMERSLACK.into(), slack.into()]);
        calls.push(("slack of timers", call));
    }
    if let Some((mode, nodes)) = &settings.memory_policy {
        let mask = batch.bytes(&mask_of(nodes));
        let arguments = [(*mode).into(), mask.into(), NODES.into()];
        calls.push(("NUMA policy", batch.call(libc::SYS_set_mempolicy, &arguments)));
    }
    stub.run(&mut batch)?;
    for (what, call) in calls {
        if let Err(e) = batch.result(call) {
            let text = format!("thread {}: cannot set its {what}: {e}", stub.tid());
            events.event(Event::Warning(text));
        }
    }
    Ok(())
}

/// Lets a finished thread catch its calls again: the last thing that is done to it.
pub fn restore_dispatch(tid: Pid, settings: &ThreadSettings) -> Result<(), RestoreError> {
    let Some([selector, offset, length]) = settings.dispatch else { return Ok(()) };
    let config = UserDispatch { mode: 1, selector, offset, length };
    Ok(ptrace::set_user_dispatch(tid, &config)
        .map_err(TraceeError::request(tid, "set its syscall user dispatch"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_older_images_are_the_usual_ones() {
        let read: ThreadSettings = serde_json::from_str("{\"tid\": 7}").unwrap();
        assert_eq!(read, ThreadSettings { tid: 7, ..ThreadSettings::default() });
    }
}
