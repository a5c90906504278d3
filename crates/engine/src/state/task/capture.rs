//! Reading it from a stopped process.
//!
//! From outside: registers, extended state, masks, queued signals, rseq and seccomp filters by
//! ptrace; limits, ids, capabilities, personality, loginuid and oom_score_adj from /proc. From
//! inside, in one batch a thread: handlers, interval timers, alternate stack, clear_child_tid,
//! robust list, securebits and the prctl settings.
//! What CRIU's images have no field for is in [`super::settings`].

use std::collections::HashMap;

use arctern_image::messages::{
    CoreEntry, CoreEntryMarch, CredsEntry, ItimerEntry, PosixTimerEntry, RlimitEntry, RseqEntry,
    SaEntry, SeccompEntry, SeccompFilter, SeccompMode, SiginfoEntry, SignalQueueEntry,
    TaskCoreEntry, TaskRlimitsEntry, TaskTimersEntry, ThreadCoreEntry, ThreadInfoX86,
    ThreadSasEntry, UserX86RegsEntry, UserX86RegsMode,
};
use arctern_sys::proc::{self, limits, status::Status, timers};
use arctern_sys::ptrace::{self, Registers};
use arctern_sys::{Pid, sched};
use arctern_tracee::thread::StoppedThread;
use arctern_tracee::{Arena, Batch, CallId};

use super::{catchable_signals, settings, task_state};
use crate::error::{CaptureError, Refusal};
use crate::state::restart::{self, Restarts};
use crate::state::xstate;
use crate::tree::FrozenTask;

/// Settings of the address space that only the task itself can read.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemorySettings {
    /// End of the heap.
    pub brk: u64,
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// PR_GET_THP_DISABLE.
    pub thp_disabled: bool,
}

/// Seccomp filters of the whole tree, each stored once with its predecessor.
#[derive(Debug, Default)]
pub struct SeccompFilters {
    entries: Vec<SeccompFilter>,
    index: HashMap<(Option<u32>, Vec<u8>), u32>,
}

impl SeccompFilters {
    /// The image; it exists even when it is empty.
    pub fn into_entry(self) -> SeccompEntry {
        SeccompEntry { seccomp_filters: self.entries }
    }

    fn chain(&mut self, thread: &StoppedThread) -> std::io::Result<Option<u32>> {
        // The kernel counts from the oldest; the image names the oldest and goes on by `prev`.
        let mut programs = Vec::new();
        while let Some(program) = ptrace::seccomp_filter(thread.tid, programs.len() as u64)? {
            programs.push(program);
        }
        let mut prev = None;
        for program in programs.into_iter().rev() {
            let entries = &mut self.entries;
            let id = *self.index.entry((prev, program)).or_insert_with_key(|(prev, program)| {
                entries.push(SeccompFilter { filter: program.clone(), prev: *prev, flags: None });
                entries.len() as u32 - 1
            });
            prev = Some(id);
        }
        Ok(prev)
    }
}

/// A captured process.
#[derive(Debug)]
pub struct CapturedTask {
    /// One entry a thread, leader first: inner tid and core.
    pub cores: Vec<(i32, CoreEntry)>,
    /// For the memory room.
    pub memory: MemorySettings,
}

/// The core of a zombie: nothing but its exit code.
pub fn capture_zombie(task: &FrozenTask) -> CoreEntry {
    CoreEntry {
        mtype: CoreEntryMarch::X8664.into(),
        thread_info: None,
        tc: Some(TaskCoreEntry {
            task_state: task_state::DEAD,
            exit_code: task.stat.exit_code as u32,
            comm: task.stat.comm.clone(),
            ..TaskCoreEntry::default()
        }),
        ids: None,
        thread_core: None,
    }
}

/// Captures a live process. `stopped` are the inner pids of its children in group stop.
pub fn capture(
    task: &mut FrozenTask,
    filters: &mut SeccompFilters,
    restarts: &mut Restarts,
    waited: &HashMap<Pid, u64>,
    stopped: &[i32],
    refusals: &mut Vec<Refusal>,
) -> Result<CapturedTask, CaptureError> {
    // The leader answers for the process and for itself in one stop.
    let mut first = Batch::new();
    let of_process = ask_process(task, &mut first)?;
    let of_leader = ask_thread(&mut first);
    let of_children = ask_stops(&mut first, stopped);
    task.run(&mut first)?;
    let (tc, memory) = process(task, &first, &of_process)?;
    if let Ok(bits @ 1..) = first.result(of_process.no_new_code) {
        restarts.no_new_code.push((task.inner_pid, bits));
    }
    restarts.told.extend(told(&first, stopped, &of_children));
    if first.result(of_process.keyring).is_ok() {
        refusals.push(task.refuse("", KEYRING.0, KEYRING.1));
    }
    let mut tc = Some(tc);
    let mut cores = Vec::with_capacity(task.threads.len());
    let mut batches = vec![Batch::new(); task.threads.len() - 1];
    let questions: Vec<ThreadQuestions> = batches.iter_mut().map(ask_thread).collect();
    task.run_others(&mut batches)?;
    let answers = std::iter::once((&first, &of_leader)).chain(batches.iter().zip(&questions));
    for (index, answer) in answers.enumerate() {
        let core = thread(task, index, answer, filters, restarts, waited, refusals)?;
        let inner = task.threads[index].inner_tid;
        cores.push((inner, CoreEntry { tc: tc.take(), ..core }));
    }
    Ok(CapturedTask { cores, memory })
}

/// Asks a parent which of its children's stops it would be told, and leaves them to be told.
fn ask_stops(batch: &mut Batch, stopped: &[i32]) -> Vec<(Arena, CallId)> {
    let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    let ask = |pid: &i32| {
        let info = batch.reserve(128);
        let args =
            [(libc::P_PID as i32).into(), (*pid).into(), info.into(), options.into(), 0.into()];
        (info, batch.call(libc::SYS_waitid, &args))
    };
    stopped.iter().map(ask).collect()
}

/// Those that it has been told: waitid(2) finds nothing, and says so by no pid.
fn told(batch: &Batch, stopped: &[i32], asked: &[(Arena, CallId)]) -> Vec<i32> {
    const SI_PID: usize = 16;
    let none = |(info, call): &(Arena, CallId)| {
        batch.result(*call).is_ok() && i32_at(batch.memory(*info), SI_PID) == 0
    };
    stopped.iter().zip(asked).filter(|(_, asked)| none(asked)).map(|(pid, _)| *pid).collect()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Cause and remedy where a task has a keyring of its own.
const KEYRING: (&str, &str) =
    ("it has a keyring of its own, whose keys cannot be carried", "run it without keyctl(2)");

/// What any thread can tell for all of its process, and where the answers are.
struct ProcessQuestions {
    handlers: Vec<Arena>,
    intervals: [Arena; 3],
    posix: Vec<timers::PosixTimer>,
    posix_values: Vec<(Arena, CallId)>,
    brk: CallId,
    dumpable: CallId,
    thp: CallId,
    subreaper: Arena,
    membarrier: CallId,
    no_new_code: CallId,
    keyring: CallId,
}

fn ask_process(task: &FrozenTask, batch: &mut Batch) -> Result<ProcessQuestions, CaptureError> {
    const SIGSET_SIZE: u64 = 8;
    let handlers: Vec<Arena> = catchable_signals()
        .map(|signal| {
            let old = batch.reserve(32);
            let args = [signal.into(), 0.into(), old.into(), SIGSET_SIZE.into()];
            batch.call(libc::SYS_rt_sigaction, &args);
            old
        })
        .collect();
    let intervals = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|which| {
        let value = batch.reserve(32);
        batch.call(libc::SYS_getitimer, &[which.into(), value.into()]);
        value
    });
    let posix = timers::read(task.pid).map_err(task.failed("", "read its timers"))?;
    let posix_values = posix
        .iter()
        .map(|timer| {
            let value = batch.reserve(32);
            batch.call(libc::SYS_timer_gettime, &[timer.id.into(), value.into()]);
            (value, batch.call(libc::SYS_timer_getoverrun, &[timer.id.into()]))
        })
        .collect();
    let brk = batch.call(libc::SYS_brk, &[0.into()]);
    let dumpable = batch.call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()]);
    let thp = batch.call(libc::SYS_prctl, &[libc::PR_GET_THP_DISABLE.into()]);
    let subreaper = batch.reserve(8);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()]);
    const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 1 << 9; // linux/membarrier.h, kernel 6.3
    let membarrier =
        batch.call(libc::SYS_membarrier, &[MEMBARRIER_CMD_GET_REGISTRATIONS.into(), 0.into()]);
    const PR_GET_MDWE: i32 = 66; // linux/prctl.h, kernel 6.3
    let zero = || 0.into();
    let no_new_code =
        batch.call(libc::SYS_prctl, &[PR_GET_MDWE.into(), zero(), zero(), zero(), zero()]);
    let keyring = settings::ask_keyring(batch, settings::PROCESS_KEYRING);
    Ok(ProcessQuestions {
        handlers,
        intervals,
        posix,
        posix_values,
        brk,
        dumpable,
        thp,
        subreaper,
        membarrier,
        no_new_code,
        keyring,
    })
}

/// What all threads of the process share.
fn process(
    task: &FrozenTask,
    batch: &Batch,
    asked: &ProcessQuestions,
) -> Result<(TaskCoreEntry, MemorySettings), CaptureError> {
    let sigactions = asked
        .handlers
        .iter()
        .map(|old| {
            let bytes = batch.memory(*old);
            SaEntry {
                sigaction: u64_at(bytes, 0),
                flags: u64_at(bytes, 8),
                restorer: u64_at(bytes, 16),
                mask: u64_at(bytes, 24),
                compat_sigaction: None,
                mask_extended: None,
            }
        })
        .collect();
    let [real, virt, prof] = asked.intervals.map(|value| {
        let bytes = batch.memory(value);
        ItimerEntry {
            isec: u64_at(bytes, 0),
            iusec: u64_at(bytes, 8),
            vsec: u64_at(bytes, 16),
            vusec: u64_at(bytes, 24),
        }
    });
    let posix = asked
        .posix
        .iter()
        .zip(&asked.posix_values)
        .map(|(timer, (value, overrun))| {
            let bytes = batch.memory(*value);
            let (notify, thread) = match timer.notify {
                timers::Notify::Signal => (libc::SIGEV_SIGNAL, None),
                timers::Notify::None => (libc::SIGEV_NONE, None),
                timers::Notify::Thread => (libc::SIGEV_THREAD, None),
                timers::Notify::SignalTo(tid) => {
                    let inner = task.threads.iter().find(|t| t.tid.0 == tid).map(|t| t.inner_tid);
                    (libc::SIGEV_THREAD_ID, inner)
                }
            };
            PosixTimerEntry {
                it_id: timer.id,
                clock_id: timer.clock as u32,
                si_signo: timer.signal,
                it_sigev_notify: notify as u32,
                sival_ptr: timer.value,
                overrun: batch.result(*overrun).unwrap_or(0) as u32,
                isec: u64_at(bytes, 0),
                insec: u64_at(bytes, 8),
                vsec: u64_at(bytes, 16),
                vnsec: u64_at(bytes, 24),
                notify_thread_id: thread,
            }
        })
        .collect();
    let limits = limits::read(task.pid).map_err(task.failed("", "read its limits"))?;
    let number = |name: &str| proc::read(task.pid, name).ok();
    let personality = number("personality")
        .and_then(|text| u32::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0);
    let stopped = task.stat.state == 'T';
    let memory = MemorySettings {
        brk: batch.result(asked.brk).unwrap_or(0),
        dumpable: batch.result(asked.dumpable).unwrap_or(1) as i32,
        thp_disabled: batch.result(asked.thp).unwrap_or(0) != 0,
    };
    let leader = &task.threads[0];
    let core = TaskCoreEntry {
        task_state: if stopped { task_state::STOPPED } else { task_state::ALIVE },
        exit_code: 0,
        personality,
        flags: task.stat.flags,
        blk_sigset: leader.mask,
        comm: task.stat.comm.clone(),
        timers: Some(TaskTimersEntry { real, virt, prof, posix }),
        rlimits: Some(TaskRlimitsEntry {
            rlimits: limits.iter().map(|l| RlimitEntry { cur: l.soft, max: l.hard }).collect(),
        }),
        cg_set: None,
        signals_s: Some(queue(leader, true).map_err(task.failed("", "read its signals"))?),
        old_seccomp_mode: None,
        old_seccomp_filter: None,
        loginuid: number("loginuid").and_then(|text| text.trim().parse().ok()),
        oom_score_adj: number("oom_score_adj").and_then(|text| text.trim().parse().ok()),
        sigactions,
        child_subreaper: Some(i32_at(batch.memory(asked.subreaper), 0) != 0),
        blk_sigset_extended: None,
        stop_signo: stopped.then_some(libc::SIGSTOP as u32),
        membarrier_registration_mask: batch
            .result(asked.membarrier)
            .ok()
            .map(|mask| mask as u32)
            .filter(|mask| *mask != 0),
    };
    Ok((core, memory))
}

fn queue(thread: &StoppedThread, shared: bool) -> std::io::Result<SignalQueueEntry> {
    let signals = ptrace::pending_signals(thread.tid, shared)?
        .into_iter()
        .map(|info| SiginfoEntry { siginfo: info.0.to_vec() })
        .collect();
    Ok(SignalQueueEntry { signals })
}

/// What only the thread itself can tell, and where its answers are.
struct ThreadQuestions {
    clear_tid: Arena,
    stack: Arena,
    robust: Arena,
    death: Arena,
    securebits: CallId,
    name: Arena,
    settings: settings::Questions,
}

fn ask_thread(batch: &mut Batch) -> ThreadQuestions {
    let clear_tid = batch.reserve(8);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_TID_ADDRESS.into(), clear_tid.into()]);
    let stack = batch.reserve(24);
    batch.call(libc::SYS_sigaltstack, &[0.into(), stack.into()]);
    let robust = batch.reserve(16);
    batch.call(libc::SYS_get_robust_list, &[0.into(), robust.into(), robust.at(8).into()]);
    let death = batch.reserve(8);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG.into(), death.into()]);
    let securebits = batch.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()]);
    let name = batch.reserve(16);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_NAME.into(), name.into()]);
    let settings = settings::ask(batch);
    ThreadQuestions { clear_tid, stack, robust, death, securebits, name, settings }
}

/// What each thread has of its own.
fn thread(
    task: &FrozenTask,
    index: usize,
    (batch, asked): (&Batch, &ThreadQuestions),
    filters: &mut SeccompFilters,
    restarts: &mut Restarts,
    waited: &HashMap<Pid, u64>,
    refusals: &mut Vec<Refusal>,
) -> Result<CoreEntry, CaptureError> {
    let pid = task.pid;
    let part = |thread: &StoppedThread| {
        if thread.tid == pid { String::new() } else { format!("thread {}", thread.tid) }
    };
    let thread = &task.threads[index];
    let status = &task.thread_status[index];
    let scheduling = sched::read(thread.tid)
        .map_err(task.failed(part(thread), "read its scheduling parameters"))?;
    let name = batch.memory(asked.name);
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let not_carried = xstate::not_carried(&thread.xstate);
    if !not_carried.is_empty() {
        refusals.push(task.refuse(
            part(thread),
            format!("uses register components {not_carried:?}, for which the image has no room"),
            "run it without AMX and shadow stacks",
        ));
    }
    let (mode, filter) = match status.seccomp {
        0 => (SeccompMode::Disabled, None),
        1 => (SeccompMode::Strict, None),
        _ => (
            SeccompMode::Filter,
            filters.chain(thread).map_err(task.failed(part(thread), "read its seccomp filters"))?,
        ),
    };
    let stack = batch.memory(asked.stack);
    let robust = batch.memory(asked.robust);
    let rseq = thread.rseq;
    restarts.note_affinity(thread);
    let (unusual, keyring) = settings::capture(thread, batch, &asked.settings);
    restarts.settings.extend(unusual);
    if keyring {
        refusals.push(task.refuse(part(thread), KEYRING.0, KEYRING.1));
    }
    restarts.note(thread, waited.get(&thread.tid).copied());
    Ok(CoreEntry {
        mtype: CoreEntryMarch::X8664.into(),
        thread_info: Some(ThreadInfoX86 {
            clear_tid_addr: u64_at(batch.memory(asked.clear_tid), 0),
            gpregs: registers_to_message(&restart::portable(&thread.registers)),
            fpregs: xstate::to_message(&thread.xstate),
            tls: Vec::new(),
        }),
        tc: None,
        ids: None,
        thread_core: Some(ThreadCoreEntry {
            futex_rla: u64_at(robust, 0),
            futex_rla_len: u64_at(robust, 8) as u32,
            sched_nice: Some(scheduling.nice),
            sched_policy: Some(scheduling.policy),
            sched_prio: Some(scheduling.priority),
            blk_sigset: Some(thread.mask),
            sas: Some(ThreadSasEntry {
                ss_sp: u64_at(stack, 0),
                ss_flags: i32_at(stack, 8) as u32,
                ss_size: u64_at(stack, 16),
            }),
            pdeath_sig: Some(i32_at(batch.memory(asked.death), 0) as u32),
            signals_p: Some(
                queue(thread, false).map_err(task.failed(part(thread), "read its signals"))?,
            ),
            creds: Some(credentials(status, batch.result(asked.securebits).unwrap_or(0) as u32)),
            seccomp_mode: Some(mode.into()),
            seccomp_filter: filter,
            comm: Some(String::from_utf8_lossy(name).into_owned()),
            blk_sigset_extended: None,
            rseq_entry: (rseq.pointer != 0).then_some(RseqEntry {
                rseq_abi_pointer: rseq.pointer,
                rseq_abi_size: rseq.size,
                signature: rseq.signature,
                // A thread inside a sequence was put to its abort handler at the stop.
                rseq_cs_pointer: None,
            }),
            cg_set: None,
        }),
    })
}

fn credentials(status: &Status, secbits: u32) -> CredsEntry {
    let halves = |caps: u64| vec![caps as u32, (caps >> 32) as u32];
    let [inh, prm, eff, bnd, amb] = status.capabilities;
    let ([uid, euid, suid, fsuid], [gid, egid, sgid, fsgid]) = (status.uids, status.gids);
    CredsEntry {
        uid,
        gid,
        euid,
        egid,
        suid,
        sgid,
        fsuid,
        fsgid,
        cap_inh: halves(inh),
        cap_prm: halves(prm),
        cap_eff: halves(eff),
        cap_bnd: halves(bnd),
        secbits,
        groups: status.groups.clone(),
        lsm_profile: None,
        lsm_sockcreate: None,
        apparmor_data: None,
        no_new_privs: Some(status.no_new_privs.into()),
        cap_amb: halves(amb),
    }
}

fn registers_to_message(regs: &Registers) -> UserX86RegsEntry {
    UserX86RegsEntry {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        bp: regs.rbp,
        bx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        ax: regs.rax,
        cx: regs.rcx,
        dx: regs.rdx,
        si: regs.rsi,
        di: regs.rdi,
        orig_ax: regs.orig_rax,
        ip: regs.rip,
        cs: regs.cs,
        flags: regs.eflags,
        sp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
        mode: Some(UserX86RegsMode::Native.into()),
    }
}

/// The registers of a message. Segments are not taken from the file: a restored thread runs
/// 64-bit user code.
pub fn registers_from_message(entry: &UserX86RegsEntry, mut base: Registers) -> Registers {
    base.r15 = entry.r15;
    base.r14 = entry.r14;
    base.r13 = entry.r13;
    base.r12 = entry.r12;
    base.rbp = entry.bp;
    base.rbx = entry.bx;
    base.r11 = entry.r11;
    base.r10 = entry.r10;
    base.r9 = entry.r9;
    base.r8 = entry.r8;
    base.rax = entry.ax;
    base.rcx = entry.cx;
    base.rdx = entry.dx;
    base.rsi = entry.si;
    base.rdi = entry.di;
    base.orig_rax = u64::MAX;
    base.rip = entry.ip;
    // Condition codes, direction and alignment flags; the kernel keeps the privileged ones.
    base.eflags = entry.flags & 0x0004_4cd5 | 0x202;
    base.rsp = entry.sp;
    base.fs_base = entry.fs_base;
    base.gs_base = entry.gs_base;
    base
}
