//! Putting it into a task under construction.

use arctern_image::messages::{
    CoreEntry, CredsEntry, SeccompMode, SignalQueueEntry, TaskCoreEntry, TaskRlimitsEntry,
    ThreadCoreEntry,
};
use arctern_sys::ptrace::{self, WaitStatus};
use arctern_sys::{PAGE_SIZE, Pid};
use arctern_tracee::stub::{BATCH_ROOM, Stub};
use arctern_tracee::{Batch, CallId, TraceeError};

use super::settings::{ThreadSettings, restore_dispatch};
use super::{catchable_signals, task_state};
use crate::error::RestoreError;
use crate::options::{Event, Events};
use crate::restore_context::{failed, subject};
use crate::state::memory::rebuild::Calls;
use crate::state::restart::{Restarts, Resumption, resumption};
use crate::state::xstate;

const SIGSET_SIZE: i32 = 8;

/// Checks the lengths in a core image before anything is made of it.
pub fn check(tid: i32, core: &CoreEntry) -> Result<(), RestoreError> {
    let bad = |what: &str| Err(RestoreError::Inconsistent(format!("core-{tid}.img: {what}")));
    let Some(thread) = &core.thread_core else {
        return if core.tc.as_ref().is_some_and(is_zombie) {
            Ok(())
        } else {
            bad("no thread state")
        };
    };
    if core.thread_info.is_none() {
        return bad("no registers of an x86-64 thread");
    }
    let queues = [thread.signals_p.as_ref(), core.tc.as_ref().and_then(|tc| tc.signals_s.as_ref())];
    for signal in queues.into_iter().flatten().flat_map(|q| &q.signals) {
        if signal.siginfo.len() != 128 {
            return bad("a queued signal of a wrong size");
        }
    }
    // Without them it would keep the controller's.
    let Some(creds) = &thread.creds else { return bad("no credentials") };
    let halves = [&creds.cap_inh, &creds.cap_prm, &creds.cap_eff, &creds.cap_bnd, &creds.cap_amb];
    if halves.iter().any(|c| c.len() > 2) || creds.groups.len() > 65536 {
        return bad("credentials of a wrong size");
    }
    if let Some(tc) = &core.tc
        && tc.sigactions.len() > 62
    {
        return bad("too many signal handlers");
    }
    Ok(())
}

/// Whether the task is a zombie.
pub fn is_zombie(tc: &TaskCoreEntry) -> bool {
    matches!(tc.task_state, task_state::DEAD | task_state::ZOMBIE)
}

/// Default dispositions for everything: what the controller ignores must not reach the tasks.
pub fn reset_signals(stub: &Stub) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    let default = batch.bytes(&[0; 32]);
    for signal in catchable_signals() {
        batch.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), default.into(), 0.into(), SIGSET_SIZE.into()],
        );
    }
    Ok(stub.run_all(&mut batch, "reset signal handlers")?)
}

/// Makes the task a zombie with its name and wait status, and takes its SIGCHLD from the parent.
pub fn exit_as(stub: &Stub, tc: &TaskCoreEntry, parent: &Stub) -> Result<(), RestoreError> {
    let status = tc.exit_code;
    let signal = (status & 0x7f) as i32;
    let mut batch = Batch::new();
    let name = batch.c_string(tc.comm.replace('\0', "").as_bytes());
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
    if signal == 0 {
        batch.call(libc::SYS_exit_group, &[(status >> 8 & 0xff).into()]);
        stub.run_last(&mut batch)?;
    } else {
        // No core dump of a stub.
        let none = batch.bytes(&[0; 16]);
        batch.call(
            libc::SYS_prlimit64,
            &[0.into(), (libc::RLIMIT_CORE as i32).into(), none.into(), 0.into()],
        );
        stub.run_all(&mut batch, "forbid a core dump")?;
        ptrace::set_signal_mask(stub.tid(), 0)
            .map_err(TraceeError::request(stub.tid(), "unblock signals"))?;
        let mut batch = Batch::new();
        let me = batch.call(libc::SYS_getpid, &[]);
        batch.call(libc::SYS_kill, &[me.into(), signal.into()]);
        stub.run_into_death(&mut batch, signal)?;
    }
    forget_child_signal(parent)
}

/// Takes a pending SIGCHLD away.
pub fn forget_child_signal(parent: &Stub) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    let set = batch.bytes(&(1u64 << (libc::SIGCHLD - 1)).to_ne_bytes());
    let now = batch.bytes(&[0; 16]);
    batch.call(libc::SYS_rt_sigtimedwait, &[set.into(), 0.into(), now.into(), SIGSET_SIZE.into()]);
    Ok(parent.run(&mut batch)?)
}

/// The action of SIGTRAP (struct sigaction of the kernel) if it is ignored: what sets it must be the
/// last, see [`Stub::remove_gadget_and_set_trap`].
pub fn ignored_trap(core: &CoreEntry) -> Option<[u8; 32]> {
    let mut actions = catchable_signals().zip(&core.tc.as_ref()?.sigactions);
    let (_, action) = actions.find(|(signal, _)| *signal == libc::SIGTRAP)?;
    let words = [action.sigaction, action.flags, action.restorer, action.mask];
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    (action.sigaction == libc::SIG_IGN as u64).then_some(bytes)
}

/// Personality, handlers, subreaper, membarrier: what the process has once.
pub fn process(stub: &Stub, tc: &TaskCoreEntry) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_personality, &[tc.personality.into()]);
    for (signal, action) in catchable_signals().zip(&tc.sigactions) {
        let mut bytes = Vec::with_capacity(32);
        for word in [action.sigaction, action.flags, action.restorer, action.mask] {
            bytes.extend(word.to_ne_bytes());
        }
        let action = batch.bytes(&bytes);
        batch.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), action.into(), 0.into(), SIGSET_SIZE.into()],
        );
    }
    if tc.child_subreaper == Some(true) {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), 1.into()]);
    }
    let membarrier = tc.membarrier_registration_mask.unwrap_or(0);
    for bit in (0..31).filter(|bit| membarrier & (1 << bit) != 0) {
        batch.call(libc::SYS_membarrier, &[(1u32 << bit).into(), 0.into()]);
    }
    Ok(stub.run_all(&mut batch, "restore handlers and process settings")?)
}

/// What each thread has: tid address, robust list, alternate stack, name, scheduling, rseq, queued
/// signals.
pub fn thread(stub: &Stub, inner: (i32, i32), core: &CoreEntry) -> Result<(), RestoreError> {
    let (Some(info), Some(thread)) = (&core.thread_info, &core.thread_core) else {
        return Ok(());
    };
    let (tgid, tid) = inner;
    let mut batch = Batch::new();
    batch.call(libc::SYS_set_tid_address, &[info.clear_tid_addr.into()]);
    if thread.futex_rla_len != 0 {
        batch.call(
            libc::SYS_set_robust_list,
            &[thread.futex_rla.into(), thread.futex_rla_len.into()],
        );
    }
    // A thread without one must not keep the controller's.
    let sas = thread.sas.clone().unwrap_or_default();
    let unused = sas.ss_size == 0 || sas.ss_flags & libc::SS_DISABLE as u32 != 0;
    let flags = if unused { libc::SS_DISABLE as u32 } else { sas.ss_flags };
    let mut stack = sas.ss_sp.to_ne_bytes().to_vec();
    stack.extend(u64::from(flags & !(libc::SS_ONSTACK as u32)).to_ne_bytes());
    stack.extend(sas.ss_size.to_ne_bytes());
    let stack = batch.bytes(&stack);
    batch.call(libc::SYS_sigaltstack, &[stack.into(), 0.into()]);
    let comm = thread.comm.as_ref().or(core.tc.as_ref().map(|tc| &tc.comm));
    if let Some(comm) = comm {
        let name = batch.c_string(comm.replace('\0', "").as_bytes());
        batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
    }
    schedule(&mut batch, thread);
    if let Some(rseq) = thread.rseq_entry.as_ref().filter(|r| r.rseq_abi_pointer != 0) {
        batch.call(
            libc::SYS_rseq,
            &[
                rseq.rseq_abi_pointer.into(),
                rseq.rseq_abi_size.into(),
                0.into(),
                rseq.signature.into(),
            ],
        );
    }
    for info in signals(thread.signals_p.as_ref()) {
        run_if_full(stub, &mut batch)?;
        let piece = batch.bytes(info);
        batch.call(
            libc::SYS_rt_tgsigqueueinfo,
            &[tgid.into(), tid.into(), signo(info).into(), piece.into()],
        );
    }
    for info in signals(core.tc.as_ref().and_then(|tc| tc.signals_s.as_ref())) {
        run_if_full(stub, &mut batch)?;
        let piece = batch.bytes(info);
        batch.call(libc::SYS_rt_sigqueueinfo, &[tgid.into(), signo(info).into(), piece.into()]);
    }
    Ok(stub.run_all(&mut batch, "restore a thread's settings")?)
}

/// Binds a thread to its processors. A host that lacks them is a warning.
pub fn affinity(stub: &Stub, cpus: &[usize], events: &mut dyn Events) -> Result<(), RestoreError> {
    const CPUS: usize = 1024;
    let mut mask = [0u8; CPUS / 8];
    for cpu in cpus.iter().filter(|cpu| **cpu < CPUS) {
        mask[cpu / 8] |= 1 << (cpu % 8);
    }
    let mut batch = Batch::new();
    let piece = batch.bytes(&mask);
    let call =
        batch.call(libc::SYS_sched_setaffinity, &[0.into(), mask.len().into(), piece.into()]);
    stub.run(&mut batch)?;
    if let Err(e) = batch.result(call) {
        events.event(Event::Warning(format!(
            "thread {}: cannot bind it to the processors {cpus:?}: {e}",
            stub.tid()
        )));
    }
    Ok(())
}

/// A queue of signals may be longer than one batch.
fn run_if_full(stub: &Stub, batch: &mut Batch) -> Result<(), RestoreError> {
    if batch.size() > BATCH_ROOM / 2 {
        stub.run_all(batch, "restore queued signals")?;
        *batch = Batch::new();
    }
    Ok(())
}

/// Whether a signal to the process or to its leader is queued.
pub fn is_queued(core: &CoreEntry, signal: i32) -> bool {
    let of_process = core.tc.as_ref().and_then(|tc| tc.signals_s.as_ref());
    let of_leader = core.thread_core.as_ref().and_then(|thread| thread.signals_p.as_ref());
    [of_process, of_leader].into_iter().flat_map(signals).any(|info| signo(info) == signal)
}

fn signals(queue: Option<&SignalQueueEntry>) -> impl Iterator<Item = &[u8]> {
    queue.into_iter().flat_map(|q| &q.signals).map(|s| s.siginfo.as_slice())
}

fn signo(info: &[u8]) -> i32 {
    i32::from_ne_bytes(info[..4].try_into().expect("checked: 128 bytes"))
}

fn schedule(batch: &mut Batch, thread: &ThreadCoreEntry) {
    let policy = thread.sched_policy.unwrap_or(0) as i32;
    if policy != libc::SCHED_OTHER {
        let param = batch.bytes(&(thread.sched_prio.unwrap_or(0) as i32).to_ne_bytes());
        batch.call(libc::SYS_sched_setscheduler, &[0.into(), policy.into(), param.into()]);
    }
    if matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        let nice = thread.sched_nice.unwrap_or(0);
        batch.call(
            libc::SYS_setpriority,
            &[(libc::PRIO_PROCESS as i32).into(), 0.into(), nice.into()],
        );
    }
}

/// Seccomp, then ids and capabilities of one thread. `filters` are the programs in the order of their installation.
/// Filters are suspended while the thread is traced.
pub fn credentials(
    stub: &Stub,
    thread: &ThreadCoreEntry,
    filters: &[&[u8]],
    last_capability: u32,
) -> Result<(), RestoreError> {
    let Some(creds) = &thread.creds else { return Ok(()) };
    let mut batch = Batch::new();
    if creds.no_new_privs == Some(1) {
        let args = [libc::PR_SET_NO_NEW_PRIVS.into(), 1.into(), 0.into(), 0.into(), 0.into()];
        batch.call(libc::SYS_prctl, &args);
    }
    // Filters while the capabilities are full: without no_new_privs they need CAP_SYS_ADMIN.
    for filter in filters {
        let program = batch.bytes(filter);
        let mut fprog = (filter.len() as u64 / 8).to_ne_bytes().to_vec();
        fprog.extend([0; 8]);
        let fprog = batch.bytes(&fprog);
        batch.pointer(fprog.at(8), program);
        const SECCOMP_SET_MODE_FILTER: i32 = 1;
        batch.call(libc::SYS_seccomp, &[SECCOMP_SET_MODE_FILTER.into(), 0.into(), fprog.into()]);
    }
    stub.run_all(&mut batch, "restore seccomp filters")?;
    let mut batch = Batch::new();
    set_ids(&mut batch, creds, last_capability);
    if let Some(signal) = thread.pdeath_sig.filter(|s| *s != 0) {
        // After the ids: changing them clears it.
        batch.call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), signal.into()]);
    }
    if thread.seccomp_mode == Some(SeccompMode::Strict.into()) {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_SECCOMP.into(), 1.into()]);
    }
    Ok(stub.run_all(&mut batch, "restore credentials")?)
}

fn set_ids(batch: &mut Batch, creds: &CredsEntry, last_capability: u32) {
    const SECBIT_NO_SETUID_FIXUP: i32 = 1 << 2;
    let caps = |halves: &[u32]| {
        let half = |i: usize| u64::from(halves.get(i).copied().unwrap_or(0));
        half(0) | half(1) << 32
    };
    let known = if last_capability >= 63 { u64::MAX } else { (1 << (last_capability + 1)) - 1 };
    let (inh, prm, eff, bnd, amb) = (
        caps(&creds.cap_inh) & known,
        caps(&creds.cap_prm) & known,
        caps(&creds.cap_eff) & known,
        caps(&creds.cap_bnd) & known,
        caps(&creds.cap_amb) & known,
    );
    let prctl = |batch: &mut Batch, option: i32, a: u64, b: u64| {
        let zero = 0.into();
        batch.call(libc::SYS_prctl, &[option.into(), a.into(), b.into(), zero, zero]);
    };
    // Keep the capabilities across the change of ids; they are set exactly afterwards.
    prctl(batch, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP as u64, 0);
    for cap in (0..=last_capability).filter(|cap| bnd & (1 << cap) == 0) {
        prctl(batch, libc::PR_CAPBSET_DROP, cap.into(), 0);
    }
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
    let groups = batch.bytes(&groups);
    batch.call(libc::SYS_setgroups, &[creds.groups.len().into(), groups.into()]);
    let id = |id: u32| id.into();
    batch.call(libc::SYS_setresgid, &[id(creds.gid), id(creds.egid), id(creds.sgid)]);
    batch.call(libc::SYS_setfsgid, &[id(creds.fsgid)]);
    batch.call(libc::SYS_setresuid, &[id(creds.uid), id(creds.euid), id(creds.suid)]);
    batch.call(libc::SYS_setfsuid, &[id(creds.fsuid)]);
    prctl(batch, libc::PR_SET_SECUREBITS, creds.secbits.into(), 0);
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let mut header = LINUX_CAPABILITY_VERSION_3.to_ne_bytes().to_vec();
    header.extend([0; 4]);
    let header = batch.bytes(&header);
    let mut data = Vec::with_capacity(24);
    for shift in [0, 32] {
        for set in [eff, prm, inh] {
            data.extend(((set >> shift) as u32).to_ne_bytes());
        }
    }
    let data = batch.bytes(&data);
    batch.call(libc::SYS_capset, &[header.into(), data.into()]);
    const PR_CAP_AMBIENT_RAISE: u64 = 2;
    for cap in (0..=last_capability).filter(|cap| amb & (1 << cap) != 0) {
        prctl(batch, libc::PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap.into());
    }
}

/// Limits of the process, from inside. What cannot be raised is a warning, not a failure; no limit
/// becomes higher than those of `highest`, by number.
pub fn limits(
    stub: &Stub,
    tc: &TaskCoreEntry,
    highest: &[u64],
    events: &mut dyn Events,
) -> Result<(), RestoreError> {
    let Some(limits) = &tc.rlimits else { return Ok(()) };
    let mut limits = limits.clone();
    for (limit, highest) in limits.rlimits.iter_mut().zip(highest) {
        (limit.cur, limit.max) = (limit.cur.min(*highest), limit.max.min(*highest));
    }
    let limits = &limits;
    let mut batch = Batch::new();
    let mut calls: Vec<(usize, CallId)> = Vec::new();
    for (resource, limit) in limits.rlimits.iter().enumerate().take(16) {
        let mut bytes = limit.cur.to_ne_bytes().to_vec();
        bytes.extend(limit.max.to_ne_bytes());
        let new = batch.bytes(&bytes);
        calls.push((
            resource,
            batch.call(libc::SYS_prlimit64, &[0.into(), resource.into(), new.into(), 0.into()]),
        ));
    }
    stub.run(&mut batch)?;
    let refused: Vec<&str> = calls
        .iter()
        .filter(|(_, call)| batch.result(*call).is_err())
        .map(|(resource, _)| arctern_sys::proc::limits::NAMES[*resource])
        .collect();
    if !refused.is_empty() {
        within_ceiling(stub, limits, &batch, &calls)?;
        events.event(Event::Warning(format!(
            "process {}: cannot raise limits without CAP_SYS_RESOURCE: {}",
            stub.tid(),
            refused.join(", ")
        )));
    }
    Ok(())
}

/// Limits that were refused because their ceiling cannot be raised: as much of them as the ceiling
/// here allows.
fn within_ceiling(
    stub: &Stub,
    limits: &TaskRlimitsEntry,
    tried: &Batch,
    calls: &[(usize, CallId)],
) -> Result<(), RestoreError> {
    let here = arctern_sys::proc::limits::read(stub.tid())
        .map_err(failed(subject(stub.tid().0, "", ""), "read its limits"))?;
    let mut batch = Batch::new();
    for (resource, _) in calls.iter().filter(|(_, call)| tried.result(*call).is_err()) {
        let (wanted, hard) = (&limits.rlimits[*resource], here[*resource].hard);
        let mut bytes = wanted.cur.min(hard).to_ne_bytes().to_vec();
        bytes.extend(wanted.max.min(hard).to_ne_bytes());
        let new = batch.bytes(&bytes);
        batch.call(libc::SYS_prlimit64, &[0.into(), (*resource).into(), new.into(), 0.into()]);
    }
    Ok(stub.run(&mut batch)?)
}

/// Interval timers, POSIX timers, dumpable and PR_SET_MDWE: the last calls in the process.
pub fn timers(
    stub: &Stub,
    tc: &TaskCoreEntry,
    dumpable: Option<i32>,
    no_new_code: Option<u64>,
) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    if let Some(timers) = &tc.timers {
        for timer in &timers.posix {
            create_timer(stub, timer)?;
        }
        for (which, timer) in [
            (libc::ITIMER_REAL, &timers.real),
            (libc::ITIMER_VIRTUAL, &timers.virt),
            (libc::ITIMER_PROF, &timers.prof),
        ] {
            let interval = (timer.isec, timer.iusec);
            // A periodic timer whose signal waits to be taken is not armed, and the kernel arms it
            // when the signal is taken. Of that we can only say: in one interval.
            let value = match (timer.vsec, timer.vusec) {
                (0, 0) if interval == (0, 0) => continue,
                (0, 0) => interval,
                value => value,
            };
            let mut bytes = Vec::with_capacity(32);
            for word in [interval.0, interval.1, value.0, value.1] {
                bytes.extend(word.to_ne_bytes());
            }
            let value = batch.bytes(&bytes);
            batch.call(libc::SYS_setitimer, &[which.into(), value.into(), 0.into()]);
        }
        for timer in &timers.posix {
            let mut bytes = Vec::with_capacity(32);
            for word in [timer.isec, timer.insec, timer.vsec, timer.vnsec] {
                bytes.extend(word.to_ne_bytes());
            }
            let value = batch.bytes(&bytes);
            batch.call(
                libc::SYS_timer_settime,
                &[timer.it_id.into(), 0.into(), value.into(), 0.into()],
            );
        }
    }
    // Only 0 and 1 can be asked for; 2 is what a change of ids has left already.
    if let Some(dumpable @ 0..=1) = dumpable {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), dumpable.into()]);
    }
    if let Some(bits) = no_new_code {
        const PR_SET_MDWE: i32 = 65; // linux/prctl.h, kernel 6.3
        let zero = || 0.into();
        batch.call(libc::SYS_prctl, &[PR_SET_MDWE.into(), bits.into(), zero(), zero(), zero()]);
    }
    Ok(stub.run_all(&mut batch, "restore timers")?)
}

/// Makes a timer with its old id: asked for directly (PR_TIMER_CREATE_RESTORE_IDS, kernel 6.15), or
/// by counting up, since ids are handed out in order.
fn create_timer(
    stub: &Stub,
    timer: &arctern_image::messages::PosixTimerEntry,
) -> Result<(), RestoreError> {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const TRIES: u32 = 100_000;
    let mut event = Vec::with_capacity(64);
    event.extend(timer.sival_ptr.to_ne_bytes());
    event.extend(timer.si_signo.to_ne_bytes());
    event.extend(timer.it_sigev_notify.to_ne_bytes());
    event.extend(timer.notify_thread_id.unwrap_or(0).to_ne_bytes());
    event.resize(64, 0);
    let mut batch = Batch::new();
    let on = batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS.into(), 1.into()]);
    let event_piece = batch.bytes(&event);
    let id = batch.reserve(8);
    batch.set_u64(id, timer.it_id.into());
    let made = batch.call(
        libc::SYS_timer_create,
        &[(timer.clock_id as i32).into(), event_piece.into(), id.into()],
    );
    batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS.into(), 0.into()]);
    stub.run(&mut batch)?;
    let fail = |source| TraceeError::Call {
        tid: stub.tid(),
        name: format!("timer_create of timer {}", timer.it_id),
        source,
    };
    batch.result(made).map_err(fail)?;
    let got = |batch: &Batch, id| {
        u32::from_ne_bytes(batch.memory(id)[..4].try_into().expect("four bytes"))
    };
    if batch.result(on).is_ok() || got(&batch, id) == timer.it_id {
        return Ok(());
    }
    let mut last = got(&batch, id);
    for _ in 0..TRIES {
        let mut batch = Batch::new();
        batch.call(libc::SYS_timer_delete, &[last.into()]);
        let event = batch.bytes(&event);
        let id = batch.reserve(8);
        let made = batch.call(
            libc::SYS_timer_create,
            &[(timer.clock_id as i32).into(), event.into(), id.into()],
        );
        stub.run(&mut batch)?;
        batch.result(made).map_err(fail)?;
        last = got(&batch, id);
        if last == timer.it_id {
            return Ok(());
        }
    }
    Err(RestoreError::Inconsistent(format!("no POSIX timer got the id {}", timer.it_id)))
}

/// oom_score_adj and loginuid, written from outside; what is not permitted is a warning. A confined
/// task is not spared by the kernel for others' sake, and not taken for another user's by audit.
pub fn outside_settings(pid: Pid, tc: &TaskCoreEntry, confined: bool, events: &mut dyn Events) {
    let settings = [
        ("oom_score_adj", tc.oom_score_adj.map(i64::from)),
        ("loginuid", tc.loginuid.map(i64::from)),
    ];
    for (name, value) in settings {
        let Some(value) = value else { continue };
        let path = arctern_sys::proc::path(pid, name);
        let current = std::fs::read_to_string(&path).ok();
        let current = current.as_deref().map(str::trim);
        if current == Some(value.to_string().as_str()) {
            continue;
        }
        let less = current.and_then(|text| text.parse::<i64>().ok()).is_none_or(|now| value < now);
        if confined && (name == "loginuid" || less) {
            let text = format!("process {pid}: its {name} of {value} is not given to it");
            events.event(Event::Warning(text));
            continue;
        }
        if let Err(e) = std::fs::write(&path, value.to_string()) {
            events
                .event(Event::Warning(format!("process {pid}: cannot set {name} to {value}: {e}")));
        }
    }
}

/// What remains to be done for a thread when its memory can no longer be used.
#[derive(Debug)]
pub struct FinalState {
    registers: ptrace::Registers,
    xstate: Vec<u8>,
    mask: u64,
    settings: ThreadSettings,
}

impl FinalState {
    /// With what CRIU's images have no field for.
    pub fn with_settings(self, settings: Option<&ThreadSettings>) -> Self {
        FinalState { settings: settings.cloned().unwrap_or_default(), ..self }
    }
}

/// Prepares the registers of a thread; runs a sleep that must go on. The gadget is still there.
pub fn prepare_registers(
    stub: &Stub,
    tid: i32,
    core: &CoreEntry,
    restarts: &Restarts,
) -> Result<FinalState, RestoreError> {
    let (Some(info), Some(thread)) = (&core.thread_info, &core.thread_core) else {
        return Err(RestoreError::Inconsistent(format!("core-{tid}.img: no registers")));
    };
    let host = stub.tid();
    let current = ptrace::registers(host).map_err(TraceeError::request(host, "read registers"))?;
    let size =
        ptrace::xstate(host).map_err(TraceeError::request(host, "read extended state"))?.len();
    let xstate = xstate::from_message(&info.fpregs, size)
        .map_err(|what| RestoreError::Inconsistent(format!("core-{tid}.img: {what}")))?;
    let mut registers = super::capture::registers_from_message(&info.gpregs, current);
    match resumption(restarts.find(tid, &info.gpregs).as_ref()) {
        Resumption::AsImage => {}
        Resumption::Code { code, call, rip } => {
            registers.rax = code as u64;
            registers.orig_rax = call as u64;
            registers.rip = rip;
        }
        Resumption::Begin { call, args, left, rip } => {
            registers.rip = rip;
            match begin(stub, call, args, left)? {
                Begun::Waiting { code, number } => {
                    registers.rax = code;
                    registers.orig_rax = number;
                }
                // What it waits for is there: it runs again and sees that.
                Begun::Over(Ok(0)) if call == libc::SYS_poll => registers.rax = 0,
                Begun::Over(Err(e))
                    if call == libc::SYS_futex && e.raw_os_error() == Some(libc::ETIMEDOUT) =>
                {
                    registers.rax = -i64::from(libc::ETIMEDOUT) as u64;
                }
                Begun::Over(_) if call == libc::SYS_poll || call == libc::SYS_futex => {
                    registers.rax = call as u64;
                    registers.rip = rip.wrapping_sub(2);
                }
                Begun::Over(_) => registers.rax = 0,
            }
        }
    }
    // Newer images keep a leader's mask in both places.
    let mask = thread.blk_sigset.or(core.tc.as_ref().map(|tc| tc.blk_sigset)).unwrap_or(0);
    Ok(FinalState { registers, xstate, mask, settings: ThreadSettings::default() })
}

/// What became of a call that was begun.
enum Begun {
    /// It waits: rax and orig_rax to resume with.
    Waiting { code: u64, number: u64 },
    /// It was over at once, with this result.
    Over(std::io::Result<u64>),
}

/// Begins a call with a time limit in the thread and interrupts it, so that the kernel holds a
/// restart block.
fn begin(stub: &Stub, call: i64, args: [u64; 6], left: u64) -> Result<Begun, RestoreError> {
    let mut batch = Batch::new();
    let mut time = (left / 1_000_000_000).to_ne_bytes().to_vec();
    time.extend((left % 1_000_000_000).to_ne_bytes());
    let time = batch.bytes(&time);
    let clock = libc::CLOCK_MONOTONIC.into();
    let begun = match call {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => {
            let remainder = if call == libc::SYS_nanosleep { args[1] } else { args[3] };
            batch.call(libc::SYS_clock_nanosleep, &[clock, 0.into(), time.into(), remainder.into()])
        }
        libc::SYS_poll => {
            let milliseconds = left.div_ceil(1_000_000).min(i32::MAX as u64);
            batch.call(call, &[args[0].into(), args[1].into(), milliseconds.into()])
        }
        _ => batch.call(call, &[args[0].into(), args[1].into(), args[2].into(), time.into()]),
    };
    Ok(match stub.run_and_interrupt(&mut batch)? {
        Some(regs) => Begun::Waiting { code: regs.rax, number: regs.orig_rax },
        None => Begun::Over(batch.result(begun)),
    })
}

/// Sets registers and mask: the thread then has its final state and waits in its stop.
pub fn set_final_state(stub: &Stub, state: &FinalState) -> Result<(), RestoreError> {
    let tid = stub.tid();
    ptrace::set_xstate(tid, &state.xstate)
        .map_err(TraceeError::request(tid, "set extended state"))?;
    ptrace::set_registers(tid, &state.registers)
        .map_err(TraceeError::request(tid, "set registers"))?;
    ptrace::set_signal_mask(tid, state.mask)
        .map_err(TraceeError::request(tid, "set the signal mask"))?;
    restore_dispatch(tid, &state.settings)
}

/// Waits for the exit of a helper and reaps it in its parent.
pub fn reap_helper(helper: &Stub, inner_pid: i32, parent: &Stub) -> Result<(), RestoreError> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_exit_group, &[0.into()]);
    let status = helper.run_last(&mut batch)?;
    debug_assert!(matches!(status, WaitStatus::Exited(0)));
    let mut calls = Calls::new(parent, "reap a helper");
    const WALL: i32 = libc::__WALL;
    calls.call(libc::SYS_wait4, &[inner_pid.into(), 0.into(), WALL.into(), 0.into()])?;
    calls.finish()?;
    forget_child_signal(parent)
}

/// The vDSO's `syscall` instruction in a finished task: needed to unmap the gadget.
pub fn find_syscall(stub: &Stub, start: u64, end: u64) -> Result<u64, RestoreError> {
    let mut code = vec![0u8; (end - start).min(64 * PAGE_SIZE) as usize];
    arctern_sys::memory::read(stub.tid(), arctern_sys::memory::RemoteAddr(start), &mut code)
        .map_err(failed(subject(stub.tid().0, "", "[vdso]"), "read it"))?;
    code.windows(2)
        .position(|pair| pair == [0x0f, 0x05])
        .map(|at| start + at as u64)
        .ok_or_else(|| RestoreError::Inconsistent("the vDSO has no system call".to_owned()))
}
