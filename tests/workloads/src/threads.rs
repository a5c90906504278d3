//! Threads: names, masks, thread-local storage, robust lists, rseq, alternate stacks, waits in
//! futexes, and vector registers that are compared all the time.

use crate::must;
use crate::stage::{Checks, Stage, block, gettid, sigset, wait_until_blocked};
use std::arch::asm;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

/// What a thread knows of itself through the kernel.
#[derive(Debug, PartialEq)]
struct Own {
    tid: i32,
    name: Vec<u8>,
    mask: String,
    robust_list: (usize, usize),
    tid_address: usize,
    altstack: (usize, usize, i32),
    rseq_registered: bool,
    tls: u64,
    fs_base: usize,
}

fn own() -> Own {
    let mut name = vec![0u8; 16];
    must!(libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()));
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("own status");
    let mask =
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap_or_default().to_owned();
    let (mut head, mut length) = (0usize, 0usize);
    must!(libc::syscall(libc::SYS_get_robust_list, 0, &mut head, &mut length));
    let mut tid_address = 0usize;
    const PR_GET_TID_ADDRESS: i32 = 40; // linux/prctl.h
    must!(libc::prctl(PR_GET_TID_ADDRESS, &mut tid_address));
    // SAFETY: stack_t is plain data.
    let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
    must!(libc::sigaltstack(std::ptr::null(), &mut stack));
    let fs_base: usize;
    // SAFETY: fs:0 holds the thread pointer in the x86_64 ABI.
    unsafe { asm!("mov {}, fs:0", out(reg) fs_base, options(nostack, readonly)) };
    Own {
        tid: gettid(),
        name,
        mask,
        robust_list: (head, length),
        tid_address,
        altstack: (stack.ss_sp as usize, stack.ss_size, stack.ss_flags),
        rseq_registered: rseq_follows_the_cpu(fs_base),
        tls: MINE.get(),
        fs_base,
    }
}

/// True if the kernel keeps the CPU number in the thread's rseq area up to date. The C library
/// registers it and says where it is.
fn rseq_follows_the_cpu(thread_pointer: usize) -> bool {
    // SAFETY: a NUL-terminated name.
    let offset =
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) } as *const isize;
    if offset.is_null() {
        return false;
    }
    // SAFETY: the C library exports a ptrdiff_t under this name.
    let area = thread_pointer.wrapping_add_signed(unsafe { *offset });
    for _ in 0..1000 {
        let (mut before, mut after) = (0u32, 0u32);
        must!(libc::syscall(libc::SYS_getcpu, &mut before, 0, 0));
        // SAFETY: struct rseq { cpu_id_start, cpu_id, … } lies in the thread's static TLS.
        let seen = unsafe { std::ptr::read_volatile((area + 4) as *const u32) };
        must!(libc::syscall(libc::SYS_getcpu, &mut after, 0, 0));
        if before == after {
            return seen == before;
        }
    }
    false
}

/// Every thread compares what it knew of itself with what it finds.
pub fn threads(stage: &Stage, checks: &mut Checks) {
    const THREADS: usize = 6;
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let go = Arc::new(AtomicU32::new(0));
    let tids: Arc<Vec<AtomicI32>> = Arc::new((0..THREADS).map(|_| AtomicI32::new(0)).collect());
    let (send, failures) = mpsc::channel::<String>();
    let mut handles = Vec::new();
    for index in 0..THREADS {
        let (barrier, go, tids, send) = (barrier.clone(), go.clone(), tids.clone(), send.clone());
        let handle = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                block(&[libc::SIGRTMIN() + index as i32]);
                MINE.set(0x1000 + index as u64);
                tids[index].store(gettid(), Ordering::SeqCst);
                let before = own();
                barrier.wait();
                while go.load(Ordering::SeqCst) == 0 {
                    futex(&go, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0);
                }
                let after = own();
                if before != after {
                    let _ = send.send(format!("thread {index}: was {before:?}, is {after:?}"));
                }
                if !after.rseq_registered {
                    let _ = send.send(format!("thread {index}: rseq does not follow the CPU"));
                }
            })
            .expect("a thread can be made");
        handles.push(handle);
    }
    drop(send);
    let before = own();
    barrier.wait();
    for tid in tids.iter() {
        wait_until_blocked(tid.load(Ordering::SeqCst), libc::SYS_futex);
    }
    stage.ready();
    stage.wait_for_verify();
    checks.eq("main thread", before, own());
    go.store(1, Ordering::SeqCst);
    futex(&go, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX as u32);
    for handle in handles {
        checks.that("a thread panicked", handle.join().is_ok());
    }
    for failure in failures {
        checks.fail(failure);
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word outlives the call; no timeout.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, 0usize) };
}

/// A robust mutex held by a thread that dies after the capture: the owner's death must be noticed,
/// which needs the thread's robust list.
pub fn robust_mutex(stage: &Stage, checks: &mut Checks) {
    let shared = must!(libc::mmap(
        std::ptr::null_mut(),
        4096,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0
    ));
    let mutex = shared.cast::<libc::pthread_mutex_t>();
    // SAFETY: the mutex lies in memory of our own and is initialised before use.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attributes);
        libc::pthread_mutexattr_setrobust(&mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutex_init(mutex, &attributes);
    }
    let address = shared as usize;
    let go = Arc::new(AtomicU32::new(0));
    let held = Arc::new(Barrier::new(2));
    let owner = {
        let (go, held) = (go.clone(), held.clone());
        std::thread::spawn(move || {
            // SAFETY: initialised above.
            unsafe { libc::pthread_mutex_lock(address as *mut libc::pthread_mutex_t) };
            held.wait();
            while go.load(Ordering::SeqCst) == 0 {
                futex(&go, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0);
            }
            // Ends without unlocking.
        })
    };
    held.wait();
    let waiter_tid = Arc::new(AtomicI32::new(0));
    let waiter = {
        let tid = waiter_tid.clone();
        std::thread::spawn(move || {
            tid.store(gettid(), Ordering::SeqCst);
            // SAFETY: initialised above; blocks until the owner died.
            unsafe { libc::pthread_mutex_lock(address as *mut libc::pthread_mutex_t) }
        })
    };
    while waiter_tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    wait_until_blocked(waiter_tid.load(Ordering::SeqCst), libc::SYS_futex);
    stage.ready();
    stage.wait_for_verify();
    go.store(1, Ordering::SeqCst);
    futex(&go, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    checks.that("the owner panicked", owner.join().is_ok());
    match waiter.join() {
        Ok(result) => checks.eq("lock of a mutex whose owner died", libc::EOWNERDEAD, result),
        Err(_) => checks.fail("the waiter panicked"),
    }
}

/// Threads that keep patterns in the general, x87, SSE, AVX and (where there are) AVX-512 registers
/// and compare them in a loop. Whatever an engine does to a register shows.
pub fn registers(stage: &Stage, checks: &mut Checks) {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let wrong = Arc::new(AtomicU64::new(0));
    let mut handles = Vec::new();
    for seed in 0..3u64 {
        let (stop, rounds, wrong) = (stop.clone(), rounds.clone(), wrong.clone());
        handles.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                wrong.fetch_add(compare_registers(seed), Ordering::Relaxed);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    while rounds.load(Ordering::Relaxed) < 10 {
        std::thread::yield_now();
    }
    stage.ready();
    stage.wait_for_verify();
    let seen = rounds.load(Ordering::Relaxed);
    while rounds.load(Ordering::Relaxed) < seen + 10 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    for handle in handles {
        checks.that("a thread panicked", handle.join().is_ok());
    }
    checks.eq("registers that changed", 0, wrong.load(Ordering::Relaxed));
}

/// Loads patterns, counts for about a millisecond without touching them, stores them; the number of
/// registers that differ.
pub fn compare_registers(seed: u64) -> u64 {
    let mut wrong = compare_general(seed) + compare_x87(seed);
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there.
        wrong += unsafe { compare_zmm(seed) };
    }
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: the feature is there.
        wrong += unsafe { compare_ymm(seed) };
    }
    wrong
}

const SPINS: u64 = 400_000;

fn compare_general(seed: u64) -> u64 {
    let want: [u64; 8] =
        std::array::from_fn(|i| seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64) << 7);
    let (mut a, mut b, mut c, mut d) = (want[0], want[1], want[2], want[3]);
    let (mut e, mut f, mut g, mut h) = (want[4], want[5], want[6], want[7]);
    // SAFETY: only the named registers are touched.
    unsafe {
        asm!("2:", "dec rcx", "jnz 2b",
            inout("rcx") SPINS => _,
            inout("r8") a, inout("r9") b, inout("r10") c, inout("r11") d,
            inout("r12") e, inout("r13") f, inout("r14") g, inout("r15") h,
            options(nomem, nostack));
    }
    let got = [a, b, c, d, e, f, g, h];
    want.iter().zip(got).filter(|(want, got)| **want != *got).count() as u64
}

fn compare_x87(seed: u64) -> u64 {
    let want = 1.5 + seed as f64;
    let mut got = 0f64;
    // SAFETY: pushes one value and pops it; the x87 registers are declared clobbered.
    unsafe {
        asm!("fld qword ptr [{want}]", "2:", "dec rcx", "jnz 2b", "fstp qword ptr [{got}]",
            want = in(reg) &want, got = in(reg) &mut got,
            inout("rcx") SPINS => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack));
    }
    u64::from(want.to_bits() != got.to_bits())
}

macro_rules! vector_registers {
    ($function:ident, $feature:literal, $bytes:literal, $move:literal, $class:literal, [$($n:literal)*]) => {
        #[target_feature(enable = $feature)]
        unsafe fn $function(seed: u64) -> u64 {
            const COUNT: usize = [$($n),*].len();
            let want: Vec<u8> = (0..COUNT * $bytes).map(|i| (i as u64 * 31 + seed * 7 + 1) as u8).collect();
            let mut got = vec![0u8; COUNT * $bytes];
            // SAFETY: both buffers hold COUNT registers; the C ABI preserves no vector register.
            unsafe {
                asm!(
                    $(concat!($move, " ", $class, $n, ", [{want} + ", $n, " * ", $bytes, "]"),)*
                    "2:", "dec rcx", "jnz 2b",
                    $(concat!($move, " [{got} + ", $n, " * ", $bytes, "], ", $class, $n),)*
                    want = in(reg) want.as_ptr(), got = in(reg) got.as_mut_ptr(),
                    inout("rcx") SPINS => _,
                    clobber_abi("C"), options(nostack));
            }
            want.chunks($bytes).zip(got.chunks($bytes)).filter(|(want, got)| want != got).count() as u64
        }
    };
}

vector_registers!(compare_ymm, "avx", 32, "vmovdqu", "ymm", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]);
vector_registers!(compare_zmm, "avx512f", 64, "vmovdqu64", "zmm",
    [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31]);

/// A signal mask that differs for every thread, with a signal pending for one thread only.
pub fn thread_pending(stage: &Stage, checks: &mut Checks) {
    let signal = libc::SIGRTMIN() + 3;
    let tid = Arc::new(AtomicI32::new(0));
    let go = Arc::new(AtomicU32::new(0));
    let thread = {
        let (tid, go) = (tid.clone(), go.clone());
        std::thread::spawn(move || {
            block(&[signal]);
            tid.store(gettid(), Ordering::SeqCst);
            while go.load(Ordering::SeqCst) == 0 {
                futex(&go, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0);
            }
            let set = sigset(&[signal]);
            let wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the set and the time are initialised.
            unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &wait) }
        })
    };
    while tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    wait_until_blocked(tid.load(Ordering::SeqCst), libc::SYS_futex);
    must!(libc::syscall(libc::SYS_tgkill, libc::getpid(), tid.load(Ordering::SeqCst), signal));
    stage.ready();
    stage.wait_for_verify();
    go.store(1, Ordering::SeqCst);
    futex(&go, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    checks.eq("signal pending for the thread", Some(signal), thread.join().ok());
}
