//! Settings of a task that few programs use: personality, priorities of I/O, slack of timers, policy
//! of memory, system calls that it catches itself, a program file that is gone.

use crate::memory::map;
use crate::must;
use crate::stage::{Checks, Stage, child};
use std::arch::global_asm;
use std::ffi::CString;
use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

/// Bits that do not change how code runs: addresses are not made random, short inodes.
pub fn personality(stage: &Stage, checks: &mut Checks) {
    const ASK: libc::c_ulong = 0xffff_ffff;
    let want = libc::ADDR_NO_RANDOMIZE | libc::SHORT_INODE;
    must!(libc::personality(want as libc::c_ulong));
    let other = child("other", |stage, checks| {
        must!(libc::personality(libc::UNAME26 as libc::c_ulong));
        stage.ready();
        stage.wait_for_verify();
        checks.eq("personality of the child", libc::UNAME26, must!(libc::personality(ASK)));
    });
    stage.ready();
    stage.wait_for_verify();
    checks.eq("personality", want, must!(libc::personality(ASK)));
    other.verify(checks);
}

// linux/ioprio.h
const IOPRIO_WHO_PROCESS: i32 = 1;
const CLASS_SHIFT: i32 = 13;

fn io_priority_of(tid: i32) -> i64 {
    must!(libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid))
}

/// Class and level of I/O, of the process and of a thread of it.
pub fn io_priority(stage: &Stage, checks: &mut Checks) {
    let set = |class: i32, level: i32| {
        must!(libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            class << CLASS_SHIFT | level
        ));
    };
    let (told, tell) = std::sync::mpsc::channel();
    let (go, begin) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        set(3, 0); // idle
        let _ = told.send(io_priority_of(0));
        let _ = begin.recv();
        io_priority_of(0)
    });
    set(2, 6); // best effort
    let before = (io_priority_of(0), tell.recv().unwrap_or(-1));
    stage.ready();
    stage.wait_for_verify();
    let _ = go.send(());
    checks.eq("I/O priorities", before, (io_priority_of(0), thread.join().unwrap_or(-1)));
}

/// How late the timers of a task may be, of the process and of a thread.
pub fn timer_slack(stage: &Stage, checks: &mut Checks) {
    let slack = || must!(libc::prctl(libc::PR_GET_TIMERSLACK));
    let (told, tell) = std::sync::mpsc::channel();
    let (go, begin) = std::sync::mpsc::channel::<()>();
    must!(libc::prctl(libc::PR_SET_TIMERSLACK, 123_456));
    let thread = std::thread::spawn(move || {
        must!(libc::prctl(libc::PR_SET_TIMERSLACK, 7_000));
        let _ = told.send(slack());
        let _ = begin.recv();
        slack()
    });
    let before = (slack(), tell.recv().unwrap_or(-1));
    stage.ready();
    stage.wait_for_verify();
    let _ = go.send(());
    checks.eq("slack", before, (slack(), thread.join().unwrap_or(-1)));
}

const PR_SET_MDWE: i32 = 65; // linux/prctl.h, kernel 6.3
const PR_GET_MDWE: i32 = 66;

/// Memory that can be written can never be made executable.
pub fn write_or_execute(stage: &Stage, checks: &mut Checks) {
    // SAFETY: plain call.
    if unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) } != 0 {
        stage.skip("the kernel has no PR_SET_MDWE");
    }
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, private, -1, 0);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("setting", 1, must!(libc::prctl(PR_GET_MDWE, 0, 0, 0, 0)));
    // SAFETY: the page is this program's.
    let made = unsafe { libc::mprotect(page.cast(), 4096, libc::PROT_READ | libc::PROT_EXEC) };
    checks.eq("execution gained", -1, made);
}

/// The NUMA policy of the calling thread: mode and nodes.
fn policy() -> (i32, u64) {
    let (mut mode, mut nodes) = (0i32, [0u64; 16]);
    must!(libc::syscall(libc::SYS_get_mempolicy, &mut mode, nodes.as_mut_ptr(), 1024, 0usize, 0));
    (mode, nodes[0])
}

/// The policy by which a thread is given memory.
pub fn numa_policy(stage: &Stage, checks: &mut Checks) {
    const MPOL_BIND: i32 = 2;
    const MPOL_INTERLEAVE: i32 = 3;
    let set = |mode: i32| must!(libc::syscall(libc::SYS_set_mempolicy, mode, &1u64, 64));
    let (told, tell) = std::sync::mpsc::channel();
    let (go, begin) = std::sync::mpsc::channel::<()>();
    set(MPOL_INTERLEAVE);
    let thread = std::thread::spawn(move || {
        set(MPOL_BIND);
        let _ = told.send(policy());
        let _ = begin.recv();
        policy()
    });
    let before = (policy(), tell.recv().unwrap_or_default());
    stage.ready();
    stage.wait_for_verify();
    let _ = go.send(());
    checks.eq("policies", before, (policy(), thread.join().unwrap_or_default()));
}

/// The policy of mappings: numa_maps says what each has.
pub fn numa_mappings(stage: &Stage, checks: &mut Checks) {
    const MPOL_PREFERRED: i32 = 1;
    const MPOL_BIND: i32 = 2;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let area = map(16 * 4096, libc::PROT_READ | libc::PROT_WRITE, private, -1, 0);
    let bind = |at: usize, mode: i32| {
        let start = area.wrapping_add(at * 4096);
        must!(libc::syscall(libc::SYS_mbind, start, 4096, mode, &1u64, 64, 0));
    };
    bind(3, MPOL_BIND);
    bind(7, MPOL_PREFERRED);
    crate::memory::bytes(area, 16 * 4096).fill(9);
    let shown = || {
        let text = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
        [3usize, 7].map(|at| {
            let start = format!("{:x} ", area as usize + at * 4096);
            let line = text.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            line.split(' ').nth(1).unwrap_or_default().to_owned()
        })
    };
    let before = shown();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("policies", before, shown());
    checks.that("contents", crate::memory::bytes(area, 16 * 4096).iter().all(|&byte| byte == 9));
}

/// A sealed mapping keeps its contents and its seal, in a child that has inherited it too.
pub fn sealed_mapping(stage: &Stage, checks: &mut Checks) {
    const SYS_MSEAL: i64 = 462; // asm/unistd_64.h, kernel 6.10
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let area = map(3 * 4096, libc::PROT_READ | libc::PROT_WRITE, private, -1, 0);
    crate::memory::bytes(area, 3 * 4096).fill(5);
    let middle = area.wrapping_add(4096);
    must!(libc::mprotect(middle.cast(), 4096, libc::PROT_READ));
    // SAFETY: plain call on a range of this program's.
    if unsafe { libc::syscall(SYS_MSEAL, middle, 4096, 0) } != 0 {
        stage.skip("the kernel has no mseal");
    }
    let intact = move |checks: &mut Checks| {
        checks.that("contents", crate::memory::bytes(area, 3 * 4096).iter().all(|&byte| byte == 5));
        let write = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: refused, or a change that the checks report.
        checks.eq("mprotect", -1, unsafe { libc::mprotect(middle.cast(), 4096, write) });
        // SAFETY: as above.
        checks.eq("munmap", -1, unsafe { libc::munmap(middle.cast(), 4096) });
        // SAFETY: the page beside it is not sealed.
        checks.eq("its neighbour", 0, unsafe { libc::munmap(area.cast(), 4096) });
    };
    let heir = child("heir", move |stage, checks| {
        stage.ready();
        stage.wait_for_verify();
        intact(checks);
    });
    stage.ready();
    stage.wait_for_verify();
    intact(checks);
    heir.verify(checks);
}

static SELECTOR: AtomicU8 = AtomicU8::new(0);
static CAUGHT: AtomicI32 = AtomicI32::new(0);

// SIGSYS is handled while calls are caught, so the handler must return without one of the C
// library's: its restorer lies in the range whose calls are let through.
global_asm!(
    ".globl workload_dispatch_restorer",
    "workload_dispatch_restorer:",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    ".globl workload_dispatch_end",
    "workload_dispatch_end:",
    "nop",
);

unsafe extern "C" {
    fn workload_dispatch_restorer();
    fn workload_dispatch_end();
}

extern "C" fn on_dispatch(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SELECTOR.store(0, Ordering::SeqCst);
    // SAFETY: the kernel gives a ucontext to a handler with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    CAUGHT.store(context.uc_mcontext.gregs[libc::REG_RAX as usize] as i32, Ordering::SeqCst);
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = 4711;
}

/// Calls that the thread catches itself while a byte of its memory says so.
pub fn user_dispatch(stage: &Stage, checks: &mut Checks) {
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59; // linux/prctl.h
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_dispatch;
    // struct sigaction of the kernel: handler, flags, restorer, mask.
    const SA_RESTORER: u64 = 0x0400_0000;
    let restorer: unsafe extern "C" fn() = workload_dispatch_restorer;
    let action = [
        handler as usize as u64,
        libc::SA_SIGINFO as u64 | SA_RESTORER,
        restorer as usize as u64,
        0,
    ];
    must!(libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, action.as_ptr(), 0usize, 8));
    let start = restorer as usize;
    let end: unsafe extern "C" fn() = workload_dispatch_end;
    let selector = SELECTOR.as_ptr();
    // SAFETY: plain call with integers and the address of a byte that stays.
    let on = unsafe {
        libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, start, end as usize - start + 1, selector)
    };
    if on != 0 {
        stage.skip("the kernel has no syscall user dispatch");
    }
    let caught = || {
        SELECTOR.store(1, Ordering::SeqCst);
        // SAFETY: a call without arguments, which the handler answers.
        let answer = unsafe { libc::syscall(libc::SYS_getppid) };
        (answer, CAUGHT.swap(0, Ordering::SeqCst))
    };
    let want = (4711, libc::SYS_getppid as i32);
    checks.eq("a call before", want, caught());
    stage.ready();
    stage.wait_for_verify();
    checks.eq("a call", want, caught());
    // SAFETY: plain call.
    checks.that("calls that are let through", unsafe { libc::getppid() } != 4711);
}

/// A program whose file was deleted while it runs.
pub fn deleted_program(stage: &Stage, checks: &mut Checks) {
    let exe = || fs::read_link("/proc/self/exe").map(|p| p.display().to_string());
    let copy = stage.dir().join("program");
    let started = copy.display().to_string();
    if !exe().is_ok_and(|path| path.starts_with(&started)) {
        fs::copy("/proc/self/exe", &copy).expect("the program can be copied");
        let words =
            [copy.as_os_str(), "run".as_ref(), "deleted-program".as_ref(), stage.dir().as_os_str()];
        let words = words.map(|w| CString::new(w.as_encoded_bytes()).expect("no NUL"));
        let mut arguments: Vec<*const libc::c_char> = words.iter().map(|w| w.as_ptr()).collect();
        arguments.push(std::ptr::null());
        must!(libc::execv(arguments[0], arguments.as_ptr()));
    }
    fs::remove_file(&copy).expect("the program can be deleted");
    let before = fs::read("/proc/self/exe").map(|bytes| bytes.len()).unwrap_or_default();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("name", Some(format!("{started} (deleted)")), exe().ok());
    let after = fs::read("/proc/self/exe").map(|bytes| bytes.len()).unwrap_or_default();
    checks.that(format!("the file: was {before} bytes, is {after}"), before == after && after > 0);
    checks.that("the name is not there", fs::metadata(&copy).is_err());
}

/// Commands of membarrier(2) that must be registered for first.
pub fn membarrier(stage: &Stage, checks: &mut Checks) {
    const PRIVATE_EXPEDITED: i32 = 1 << 3; // linux/membarrier.h
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    const REGISTER_GLOBAL_EXPEDITED: i32 = 1 << 2;
    const GET_REGISTRATIONS: i32 = 1 << 9;
    let barrier = |command: i32| {
        // SAFETY: plain call.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    };
    if barrier(REGISTER_PRIVATE_EXPEDITED) != 0 || barrier(REGISTER_GLOBAL_EXPEDITED) != 0 {
        stage.skip("the kernel has no expedited barriers");
    }
    let before = barrier(GET_REGISTRATIONS);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("registrations", before, barrier(GET_REGISTRATIONS));
    checks.eq("a barrier", 0, barrier(PRIVATE_EXPEDITED));
}

/// Ids and capabilities of one thread that the others do not have: each call is the thread's own.
pub fn thread_credentials(stage: &Stage, checks: &mut Checks) {
    let identity = || {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let wanted =
            |line: &&str| ["Uid", "Gid", "Groups", "Cap"].iter().any(|k| line.starts_with(k));
        text.lines().filter(wanted).map(str::to_owned).collect::<Vec<_>>()
    };
    let (told, tell) = std::sync::mpsc::channel();
    let (go, begin) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // Not through the C library, which would change every thread.
        must!(libc::syscall(libc::SYS_setgroups, 2, [7u32, 8].as_ptr()));
        must!(libc::syscall(libc::SYS_setresgid, 33, 33, 33));
        must!(libc::syscall(libc::SYS_setresuid, 33, 33, 0));
        let _ = told.send(identity());
        let _ = begin.recv();
        identity()
    });
    let before = (identity(), tell.recv().unwrap_or_default());
    stage.ready();
    stage.wait_for_verify();
    let _ = go.send(());
    checks.eq("identities", before, (identity(), thread.join().unwrap_or_default()));
}

/// A child that may only read, write and exit.
pub fn seccomp_strict(stage: &Stage, checks: &mut Checks) {
    let mut to = [0; 2];
    let mut from = [0; 2];
    must!(libc::pipe(to.as_mut_ptr()));
    must!(libc::pipe(from.as_mut_ptr()));
    let pid = must!(libc::fork());
    if pid == 0 {
        must!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT));
        let mut byte = [0u8];
        // SAFETY: only calls that strict mode allows; exit_group is not among them.
        unsafe {
            while libc::read(to[0], byte.as_mut_ptr().cast(), 1) == 1 && byte[0] != 0 {
                libc::write(from[1], byte.as_ptr().cast(), 1);
            }
            libc::getppid(); // Not allowed: the kernel kills the child.
            loop {
                libc::syscall(libc::SYS_exit, 0);
            }
        }
    }
    let answer = |byte: u8| {
        must!(libc::write(to[1], [byte].as_ptr().cast(), 1));
        crate::pipes::take(from[0], 1)
    };
    checks.eq("before", Ok(vec![b'a']), answer(b'a'));
    stage.ready();
    stage.wait_for_verify();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    checks.that("strict mode", status.lines().any(|line| line == "Seccomp:\t1"));
    checks.eq("afterwards", Ok(vec![b'b']), answer(b'b'));
    must!(libc::write(to[1], [0u8].as_ptr().cast(), 1));
    let end = crate::stage::wait_status(pid).map(|status| status & 0x7f);
    checks.eq("end of the child", Some(libc::SIGKILL), end.ok());
}

/// Labels of a security module other than those that everybody has.
pub fn labels(stage: &Stage, checks: &mut Checks) {
    let own = || fs::read_to_string("/proc/self/attr/current").map_err(|e| e.raw_os_error());
    let Ok(before) = own() else { stage.skip("no security module gives labels") };
    stage.ready();
    stage.wait_for_verify();
    checks.eq("label", Ok(before), own());
}

/// A Landlock domain: no directories may be made any more.
pub fn landlock(stage: &Stage, checks: &mut Checks) {
    // linux/landlock.h: the attributes of a rule set are one word of rights that it handles.
    const ACCESS_FS_MAKE_DIR: u64 = 1 << 7;
    const SYS_LANDLOCK_CREATE_RULESET: i64 = 444;
    const SYS_LANDLOCK_RESTRICT_SELF: i64 = 446;
    // SAFETY: the attributes outlive the call.
    let rules =
        unsafe { libc::syscall(SYS_LANDLOCK_CREATE_RULESET, &ACCESS_FS_MAKE_DIR, 8usize, 0) };
    if rules < 0 {
        stage.skip("Landlock is not switched on");
    }
    must!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    must!(libc::syscall(SYS_LANDLOCK_RESTRICT_SELF, rules, 0));
    must!(libc::close(rules as i32));
    stage.ready();
    stage.wait_for_verify();
    let refused = fs::create_dir("new").is_err_and(|e| e.raw_os_error() == Some(libc::EACCES));
    checks.that("no directory can be made", refused);
}
