//! What a task is allowed: credentials, capabilities, seccomp, limits, scheduling, attributes.

use crate::must;
use crate::stage::{Checks, Stage, child, wait_until_blocked};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// The lines of /proc/…/status that describe identity.
fn identity(task: &str) -> Vec<String> {
    fs::read_to_string(format!("/proc/{task}/status"))
        .unwrap_or_default()
        .lines()
        .filter(|line| {
            ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .map(str::to_owned)
        .collect()
}

fn securebits() -> i32 {
    must!(libc::prctl(libc::PR_GET_SECUREBITS))
}

/// Root with fewer rights: groups, gids, capabilities of all five sets, securebits, no_new_privs.
pub fn capabilities(stage: &Stage, checks: &mut Checks) {
    let groups: [libc::gid_t; 4] = [5, 20, 33, 70_000];
    must!(libc::setgroups(groups.len(), groups.as_ptr()));
    must!(libc::setresgid(33, 34, 35));
    for capability in [16, 25, 36] {
        // CAP_SYS_MODULE, CAP_SYS_TIME, CAP_BLOCK_SUSPEND
        must!(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0));
    }
    must!(libc::prctl(libc::PR_SET_SECUREBITS, 1 << 4 /* SECBIT_KEEP_CAPS */));
    // Header version 3 and two words of effective, permitted, inheritable (linux/capability.h).
    let header = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6];
    must!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()));
    sets[0] &= !(1 << 22); // effective: no CAP_SYS_BOOT
    sets[1] &= !(1 << 26); // permitted: no CAP_SYS_TTY_CONFIG
    sets[0] &= !(1 << 26);
    sets[2] = 1 << 10; // inheritable: CAP_NET_BIND_SERVICE
    must!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()));
    must!(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 10, 0, 0));
    must!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    let before = (identity("self"), securebits());
    stage.ready();
    stage.wait_for_verify();
    checks.eq("identity", before, (identity("self"), securebits()));
}

/// A server's arrangement: a root parent and workers under another user.
pub fn other_user(stage: &Stage, checks: &mut Checks) {
    let body = |stage: &mut crate::stage::ChildStage, checks: &mut Checks| {
        must!(libc::setgroups(1, [33].as_ptr()));
        must!(libc::setresgid(33, 33, 33));
        must!(libc::setresuid(33, 33, 33));
        let before = identity("self");
        stage.ready();
        stage.wait_for_verify();
        checks.eq("identity of the worker", before, identity("self"));
        // SAFETY: plain call.
        checks.eq("the worker cannot become root", -1, unsafe { libc::setuid(0) });
    };
    let workers = [child("worker", body), child("worker", body)];
    let before = identity("self");
    stage.ready();
    stage.wait_for_verify();
    checks.eq("identity", before, identity("self"));
    for worker in workers {
        worker.verify(checks);
    }
}

/// A filter that answers one system call with an error and allows the rest.
fn refuse(call: i64, error: i32) {
    let statement =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    must!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program));
}

fn error_of(call: i64) -> i32 {
    // SAFETY: both calls that are asked for take no pointer with these arguments.
    let result = unsafe { libc::syscall(call, 0, 0, 0) };
    if result >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// Seccomp filters: inherited ones, one that only a thread has, one that only a child has.
pub fn seccomp(stage: &Stage, checks: &mut Checks) {
    must!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    refuse(libc::SYS_getpriority, libc::EDOM);
    let stricter = child("stricter", |stage, checks| {
        refuse(libc::SYS_getrandom, libc::ELOOP);
        stage.ready();
        stage.wait_for_verify();
        checks.eq("inherited filter", libc::EDOM, error_of(libc::SYS_getpriority));
        checks.eq("own filter", libc::ELOOP, error_of(libc::SYS_getrandom));
    });
    let tid = Arc::new(AtomicI32::new(0));
    let go = Arc::new(AtomicU32::new(0));
    let thread = {
        let (tid, go) = (tid.clone(), go.clone());
        std::thread::spawn(move || {
            refuse(libc::SYS_getpgid, libc::ESRCH);
            refuse(libc::SYS_getpgid, libc::EXFULL);
            tid.store(crate::stage::gettid(), Ordering::SeqCst);
            while go.load(Ordering::SeqCst) == 0 {
                // SAFETY: the word outlives the call.
                unsafe { libc::syscall(libc::SYS_futex, go.as_ptr(), libc::FUTEX_WAIT, 0, 0usize) };
            }
            (error_of(libc::SYS_getpriority), error_of(libc::SYS_getpgid))
        })
    };
    while tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    wait_until_blocked(tid.load(Ordering::SeqCst), libc::SYS_futex);
    let before = identity("self");
    stage.ready();
    stage.wait_for_verify();
    checks.eq("state", before, identity("self"));
    checks.eq("filter", libc::EDOM, error_of(libc::SYS_getpriority));
    checks.eq("not filtered here", 0, error_of(libc::SYS_getpgid));
    stricter.verify(checks);
    go.store(1, Ordering::SeqCst);
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, go.as_ptr(), libc::FUTEX_WAKE, 1) };
    checks.eq("the thread's filters", Some((libc::EDOM, libc::EXFULL)), thread.join().ok());
}

/// Limits, lowered: every line of /proc/self/limits.
pub fn limits(stage: &Stage, checks: &mut Checks) {
    for (resource, soft, hard) in [
        (libc::RLIMIT_NOFILE, 200, 300),
        (libc::RLIMIT_CORE, 0, 4096),
        (libc::RLIMIT_STACK, 1 << 20, 4 << 20),
        (libc::RLIMIT_CPU, 5000, 6000),
        (libc::RLIMIT_FSIZE, 1 << 30, 1 << 31),
        (libc::RLIMIT_MEMLOCK, 4096, 65536),
    ] {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        must!(libc::setrlimit(resource, &limit));
    }
    let read = || fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let before = read();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("limits", before, read());
}

fn affinity() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    must!(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set));
    // SAFETY: the numbers lie within the set.
    (0..1024).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Scheduling: nice value, policy, name; per thread.
pub fn scheduling(stage: &Stage, checks: &mut Checks) {
    must!(libc::setpriority(libc::PRIO_PROCESS, 0, 7));
    let own = || {
        let mut name = vec![0u8; 16];
        must!(libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()));
        (must!(libc::getpriority(libc::PRIO_PROCESS, 0)), must!(libc::sched_getscheduler(0)), name)
    };
    let zero = libc::sched_param { sched_priority: 0 };
    let idle = child("idle", |stage, checks| {
        must!(libc::sched_setscheduler(0, libc::SCHED_BATCH, &zero));
        must!(libc::prctl(libc::PR_SET_NAME, c"batch (odd) )".as_ptr()));
        let before = own();
        stage.ready();
        stage.wait_for_verify();
        checks.eq("scheduling of the child", before, own());
    });
    let before = own();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("scheduling", before, own());
    idle.verify(checks);
}

/// The CPUs that a task may run on.
pub fn cpu_affinity(stage: &Stage, checks: &mut Checks) {
    // SAFETY: cpu_set_t is plain data.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: 0 lies within the set.
    unsafe { libc::CPU_SET(0, &mut set) };
    must!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set));
    let before = affinity();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("CPUs", before, affinity());
}

/// Attributes set by prctl: dumpable, subreaper, parent-death signal, huge pages off, OOM score.
pub fn attributes(stage: &Stage, checks: &mut Checks) {
    fs::write("/proc/self/oom_score_adj", "321").expect("the OOM score can be raised");
    must!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1));
    must!(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0));
    let score = || fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own = || {
        let mut reaper = 0i32;
        must!(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &mut reaper));
        let mut death = 0i32;
        must!(libc::prctl(libc::PR_GET_PDEATHSIG, &mut death));
        [
            must!(libc::prctl(libc::PR_GET_DUMPABLE)),
            must!(libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0)),
            reaper,
            death,
        ]
    };
    let dependent = child("dependent", |stage, checks| {
        must!(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM));
        let before = own();
        stage.ready();
        stage.wait_for_verify();
        checks.eq("attributes of the child", before, own());
    });
    let before = (own(), score());
    stage.ready();
    stage.wait_for_verify();
    checks.eq("attributes", before, (own(), score()));
    dependent.verify(checks);
}
