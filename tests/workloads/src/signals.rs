//! Signals: handlers, masks, queued signals with what came along, alternate stacks.

use crate::must;
use crate::stage::{Checks, Stage, block, child, sigset};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);
static STACK_SEEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(signal: i32, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let here = 0u8;
    STACK_SEEN.store(&raw const here as usize, Ordering::SeqCst);
    CAUGHT.store(signal, Ordering::SeqCst);
}

fn action(signal: i32, flags: i32, masked: &[i32]) {
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handler;
    let action = libc::sigaction {
        sa_sigaction: handler as usize,
        sa_mask: sigset(masked),
        sa_flags: flags | libc::SA_SIGINFO,
        sa_restorer: None,
    };
    must!(libc::sigaction(signal, &action, std::ptr::null_mut()));
}

/// Handler, flags and mask of every signal.
fn actions() -> Vec<(usize, i32, Vec<i32>)> {
    (1..=64)
        .map(|signal| {
            // SAFETY: sigaction is plain data; signals 32 and 33 are refused by the C library.
            let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
            unsafe { libc::sigaction(signal, std::ptr::null(), &mut old) };
            // SAFETY: the set is initialised.
            let masked =
                (1..=64).filter(|&s| unsafe { libc::sigismember(&old.sa_mask, s) } == 1).collect();
            (old.sa_sigaction, old.sa_flags, masked)
        })
        .collect()
}

/// An ignored trap, which debuggers and restorers work with, and a call that goes on.
pub fn ignored_trap(stage: &Stage, checks: &mut Checks) {
    // SAFETY: plain call.
    unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) };
    let sleeper = child("sleeper", |stage, checks| {
        stage.ready();
        stage.wait_for_verify();
        // SAFETY: plain call.
        checks
            .eq("inherited", libc::SIG_IGN, unsafe { libc::signal(libc::SIGTRAP, libc::SIG_DFL) });
    });
    stage.ready();
    stage.wait_for_verify();
    // SAFETY: plain call.
    checks.eq("disposition", libc::SIG_IGN, unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) });
    must!(libc::kill(libc::getpid(), libc::SIGTRAP));
    sleeper.verify(checks);
}

/// Handlers with all flags, ignored and default signals, the mask, and delivery afterwards.
pub fn handlers(stage: &Stage, checks: &mut Checks) {
    let size = 64 * 1024;
    let stack = crate::memory::map(
        size,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0,
    );
    let alternate = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: size };
    must!(libc::sigaltstack(&alternate, std::ptr::null_mut()));
    action(libc::SIGHUP, libc::SA_RESTART, &[libc::SIGTERM]);
    action(libc::SIGUSR2, libc::SA_ONSTACK | libc::SA_NODEFER, &[]);
    action(libc::SIGWINCH, libc::SA_RESETHAND, &[libc::SIGINT, libc::SIGQUIT]);
    action(libc::SIGCHLD, libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT, &[]);
    action(libc::SIGRTMIN() + 5, 0, &[libc::SIGRTMAX()]);
    // SAFETY: plain calls.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    block(&[libc::SIGTERM, libc::SIGRTMAX()]);
    let before = actions();
    let mask = || {
        std::fs::read_to_string("/proc/self/status")
            .unwrap_or_default()
            .lines()
            .filter(|line| line.starts_with("Sig") || line.starts_with("Shd"))
            .filter(|line| !line.starts_with("SigQ"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let masks = mask();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("handlers", before, actions());
    checks.eq("masks", masks, mask());
    // SAFETY: stack_t is plain data.
    let mut now: libc::stack_t = unsafe { std::mem::zeroed() };
    must!(libc::sigaltstack(std::ptr::null(), &mut now));
    checks.eq(
        "alternate stack",
        (stack as usize, size, 0),
        (now.ss_sp as usize, now.ss_size, now.ss_flags),
    );
    must!(libc::raise(libc::SIGUSR2));
    checks.eq("caught", libc::SIGUSR2, CAUGHT.load(Ordering::SeqCst));
    let at = STACK_SEEN.load(Ordering::SeqCst);
    checks.that(
        "the handler ran on the alternate stack",
        at >= stack as usize && at < stack as usize + size,
    );
    must!(libc::raise(libc::SIGHUP));
    checks.eq("caught", libc::SIGHUP, CAUGHT.load(Ordering::SeqCst));
    let at = STACK_SEEN.load(Ordering::SeqCst);
    checks.that(
        "the handler ran on the normal stack",
        at < stack as usize || at >= stack as usize + size,
    );
    must!(libc::raise(libc::SIGPIPE));
}

fn queue(signal: i32, value: usize) {
    let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
    must!(libc::sigqueue(libc::getpid(), signal, value));
}

fn next(signals: &[i32]) -> Option<(i32, i32, i32, usize)> {
    let set = sigset(signals);
    // SAFETY: siginfo_t is plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: all three outlive the call.
    if unsafe { libc::sigtimedwait(&set, &mut info, &zero) } < 0 {
        return None;
    }
    // SAFETY: the accessors read plain data of the structure.
    let (pid, value) = unsafe { (info.si_pid(), info.si_value().sival_ptr as usize) };
    let value = if info.si_code == libc::SI_QUEUE { value } else { 0 };
    Some((info.si_signo, info.si_code, pid, value))
}

/// Pending signals: order, sender, code and value of queued ones; for the process and the thread.
pub fn queued_signals(stage: &Stage, checks: &mut Checks) {
    let low = libc::SIGRTMIN() + 1;
    let high = libc::SIGRTMIN() + 9;
    let all = [low, high, libc::SIGUSR2, libc::SIGTERM, libc::SIGINT];
    block(&all);
    let me = must!(libc::getpid());
    // Which code the kernel gives a signal for one thread differs between kernels.
    must!(libc::syscall(libc::SYS_tgkill, me, crate::stage::gettid(), libc::SIGINT));
    let to_thread = next(&[libc::SIGINT]);
    for value in 0..20 {
        queue(low, 0x100 + value);
    }
    queue(high, 0xffff_ffff_ffff);
    queue(high, 2);
    must!(libc::kill(me, libc::SIGTERM));
    must!(libc::syscall(libc::SYS_tgkill, me, crate::stage::gettid(), libc::SIGINT));
    queue(libc::SIGUSR2, 33);
    stage.ready();
    stage.wait_for_verify();
    for value in 0..20 {
        checks.eq("queued", Some((low, libc::SI_QUEUE, me, 0x100 + value)), next(&[low]));
    }
    checks.eq("no more", None, next(&[low]));
    checks.eq("queued", Some((high, libc::SI_QUEUE, me, 0xffff_ffff_ffff)), next(&[high]));
    checks.eq("queued", Some((high, libc::SI_QUEUE, me, 2)), next(&[high]));
    checks.eq("killed", Some((libc::SIGTERM, libc::SI_USER, me, 0)), next(&[libc::SIGTERM]));
    checks.eq("to the thread", to_thread, next(&[libc::SIGINT]));
    checks.eq("queued", Some((libc::SIGUSR2, libc::SI_QUEUE, me, 33)), next(&[libc::SIGUSR2]));
    checks.eq("nothing left", None, next(&all));
}

static GO_ON: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];
static INSIDE: AtomicI32 = AtomicI32::new(0);

extern "C" fn stays_inside(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INSIDE.store(1, Ordering::SeqCst);
    let mut byte = [0u8];
    // SAFETY: read(2) may be called in a handler; the descriptor was stored before the signal.
    let got = unsafe { libc::read(GO_ON[0].load(Ordering::SeqCst), byte.as_mut_ptr().cast(), 1) };
    INSIDE.store(if got == 1 { 2 } else { 3 }, Ordering::SeqCst);
}

/// A thread that stands in a handler, on the alternate stack, and then returns to code whose registers
/// the kernel keeps on that stack.
pub fn inside_handler(stage: &Stage, checks: &mut Checks) {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    GO_ON[0].store(ends[0], Ordering::SeqCst);
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = stays_inside;
    let action = libc::sigaction {
        sa_sigaction: handler as usize,
        sa_mask: sigset(&[libc::SIGHUP]),
        sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
        sa_restorer: None,
    };
    must!(libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let tid = std::sync::Arc::new(AtomicI32::new(0));
    let thread = {
        let (stop, tid) = (stop.clone(), tid.clone());
        std::thread::spawn(move || {
            let size = 64 * 1024;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let stack = crate::memory::map(size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            let alternate = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: size };
            must!(libc::sigaltstack(&alternate, std::ptr::null_mut()));
            tid.store(crate::stage::gettid(), Ordering::SeqCst);
            let mut wrong = 0;
            while !stop.load(Ordering::SeqCst) {
                wrong += crate::threads::compare_registers(3);
            }
            wrong
        })
    };
    while tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let tid = tid.load(Ordering::SeqCst);
    must!(libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG));
    crate::stage::wait_until_blocked(tid, libc::SYS_read);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("inside the handler", 1, INSIDE.load(Ordering::SeqCst));
    must!(libc::write(ends[1], b"x".as_ptr().cast(), 1));
    while INSIDE.load(Ordering::SeqCst) == 1 {
        std::thread::yield_now();
    }
    checks.eq("the read in the handler", 2, INSIDE.load(Ordering::SeqCst));
    stop.store(true, Ordering::SeqCst);
    checks.eq("registers that changed", Some(0), thread.join().ok());
}
