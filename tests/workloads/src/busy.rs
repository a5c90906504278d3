//! A program that does everything at once, for as long as it is let, and counts its own errors:
//! threads with patterns in their registers, futex and pipe ping-pong, timers and signals with
//! handlers, children, mappings, and a blocked call of every kind, over and over. It can be captured
//! and resumed thousands of times and restored from any of the captures.
//!
//! The file `progress` in its directory is a shared mapping: one 64-bit counter a worker, the first
//! of them the number of errors. SIGUSR1 asks every worker for fresh progress and ends the program.

use crate::must;
use crate::stage::{Checks, Stage, clock, gettid, sigset};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Whether a call with a time limit may return EINTR.
static INTERRUPTIBLE: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static ALARMS: AtomicU64 = AtomicU64::new(0);
static LAST_QUEUED: AtomicU64 = AtomicU64::new(0);
static OUT_OF_ORDER: AtomicU64 = AtomicU64::new(0);

/// Where workers count.
struct Progress {
    words: &'static [AtomicU64],
    names: Vec<&'static str>,
}

impl Progress {
    fn error(&self, worker: &str, what: &str) {
        self.words[0].fetch_add(1, Ordering::Relaxed);
        eprintln!("busy: {worker}: {what}");
    }
}

/// What one worker works with.
struct Worker {
    progress: Arc<Mutex<Progress>>,
    counter: &'static AtomicU64,
    name: &'static str,
}

impl Worker {
    /// Repeats the step until the program ends.
    fn repeat(&self, mut step: impl FnMut() -> Result<(), String>) {
        while !STOP.load(Ordering::Relaxed) {
            if let Err(what) = step() {
                self.progress.lock().expect("no worker panics").error(self.name, &what);
            }
            self.counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

type Step = Box<dyn FnMut() -> Result<(), String> + Send>;

fn wrong(what: &str, got: i64) -> Result<(), String> {
    Err(format!("{what} returned {got} ({})", io::Error::last_os_error()))
}

/// The call must return `want` and take at least the time.
fn timed(what: &str, want: i64, least: Duration, call: impl FnOnce() -> i64) -> Result<(), String> {
    let start = clock(libc::CLOCK_MONOTONIC);
    let got = call();
    let interrupted = got == -i64::from(libc::EINTR) || (got == -1 && errno() == libc::EINTR);
    if interrupted && INTERRUPTIBLE.load(Ordering::Relaxed) {
        return Ok(());
    }
    if got != want {
        return wrong(what, got);
    }
    let took = clock(libc::CLOCK_MONOTONIC) - start;
    if took + Duration::from_micros(100) < least {
        return Err(format!("{what} took {took:?} instead of {least:?}"));
    }
    Ok(())
}

fn span(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

extern "C" fn on_alarm(_: i32) {
    ALARMS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_queued(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure; the signal was queued with a value.
    let value = unsafe { (*info).si_value() }.sival_ptr as u64;
    if LAST_QUEUED.swap(value, Ordering::SeqCst) + 1 != value {
        OUT_OF_ORDER.fetch_add(1, Ordering::SeqCst);
    }
}

/// As [`busy`], for engines that let calls with a time limit return EINTR, as a signal would.
pub fn busy_interruptible(stage: &Stage, checks: &mut Checks) {
    INTERRUPTIBLE.store(true, Ordering::Relaxed);
    busy(stage, checks);
}

/// Runs until SIGUSR1.
pub fn busy(stage: &Stage, checks: &mut Checks) {
    let path = stage.dir().join("progress");
    std::fs::write(&path, [0u8; 4096]).expect("file");
    let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).expect("no NUL");
    let fd = must!(libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC));
    let memory =
        crate::memory::map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0);
    must!(libc::close(fd));
    // SAFETY: the mapping is as long as the program runs, and is used as atomics only.
    let words: &'static [AtomicU64] = unsafe { std::slice::from_raw_parts(memory.cast(), 512) };
    let progress = Arc::new(Mutex::new(Progress { words, names: vec!["errors"] }));

    // Handlers: the alarm may go to the main thread only, all others block it.
    let alarm = libc::SIGALRM;
    let queued = libc::SIGRTMIN() + 1;
    let polled = libc::SIGRTMIN() + 2;
    crate::stage::block(&[alarm, queued, polled]);
    // SAFETY: the handlers only touch atomics.
    unsafe { libc::signal(alarm, on_alarm as extern "C" fn(i32) as usize) };
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_queued;
    let action = libc::sigaction {
        sa_sigaction: handler as usize,
        sa_mask: sigset(&[]),
        sa_flags: libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK,
        sa_restorer: None,
    };
    must!(libc::sigaction(queued, &action, std::ptr::null_mut()));

    let mut workers: Vec<(&'static str, Step)> = Vec::new();
    workers.push(("registers", registers()));
    workers.extend(ping_pong());
    workers.extend(pipe_ping_pong());
    workers.extend(queued_signals(queued));
    workers.extend(waits(polled));
    workers.push(("children", Box::new(children)));
    workers.push(("mappings", Box::new(mappings)));
    workers.extend(accepts());
    workers.push(("clock", clock_forward()));

    // These two may block for ever once their partners have ended.
    const NOT_JOINED: [&str; 2] = ["accept", "pipe ping"];
    let count = workers.len();
    let mut threads = Vec::new();
    for (index, (name, mut step)) in workers.into_iter().enumerate() {
        progress.lock().expect("no worker panics").names.push(name);
        let worker = Worker { progress: progress.clone(), counter: &words[index + 1], name };
        let thread = std::thread::Builder::new().name(name.into()).stack_size(128 * 1024);
        let thread = thread.spawn(move || worker.repeat(&mut *step)).expect("a thread can be made");
        if !NOT_JOINED.contains(&name) {
            threads.push(thread);
        }
    }
    until_all(&words[1..=count], 3);

    // From here on the main thread is interrupted by a handler all the time.
    let timer = libc::itimerval {
        it_value: libc::timeval { tv_sec: 0, tv_usec: 5000 },
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 5000 },
    };
    must!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()));
    must!(libc::sigprocmask(libc::SIG_UNBLOCK, &sigset(&[alarm]), std::ptr::null_mut()));
    stage.ready();
    stage.wait_for_verify();

    let alarms = ALARMS.load(Ordering::Relaxed);
    checks.that("a worker stands still", until_all(&words[1..=count], 3));
    checks.that("the alarm stands still", ALARMS.load(Ordering::Relaxed) > alarms);
    STOP.store(true, Ordering::Relaxed);
    for thread in threads {
        checks.that("a worker panicked", thread.join().is_ok());
    }
    checks.eq("queued signals lost or out of order", 0, OUT_OF_ORDER.load(Ordering::SeqCst));
    checks.eq("errors", 0, words[0].load(Ordering::Relaxed));
    let names = progress.lock().expect("no worker panicked").names.join(" ");
    println!("busy: {names}");
}

/// Waits until every counter moved by `steps`, for at most 30 seconds.
fn until_all(counters: &[AtomicU64], steps: u64) -> bool {
    let before: Vec<u64> = counters.iter().map(|c| c.load(Ordering::Relaxed)).collect();
    for _ in 0..6000 {
        if counters
            .iter()
            .zip(&before)
            .all(|(now, before)| now.load(Ordering::Relaxed) >= before + steps)
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for (index, (now, before)) in counters.iter().zip(&before).enumerate() {
        if now.load(Ordering::Relaxed) < before + steps {
            eprintln!("busy: worker {index} stands still");
        }
    }
    false
}

fn registers() -> Step {
    let mut seed = 0;
    Box::new(move || {
        seed += 1;
        std::thread::sleep(Duration::from_millis(2));
        match crate::threads::compare_registers(seed) {
            0 => Ok(()),
            count => Err(format!("{count} registers changed")),
        }
    })
}

/// Two threads that hand a number to each other under a mutex: futexes all the time.
fn ping_pong() -> [(&'static str, Step); 2] {
    let shared = Arc::new((Mutex::new(0u64), Condvar::new()));
    let side = |parity: u64| -> Step {
        let shared = shared.clone();
        Box::new(move || {
            let (number, changed) = &*shared;
            let mut number = number.lock().expect("no worker panics");
            while *number % 2 != parity {
                if STOP.load(Ordering::Relaxed) {
                    return Ok(());
                }
                number = changed
                    .wait_timeout(number, Duration::from_millis(200))
                    .expect("no worker panics")
                    .0;
            }
            *number += 1;
            changed.notify_one();
            drop(number);
            std::thread::sleep(Duration::from_micros(300));
            Ok(())
        })
    };
    [("futex ping", side(0)), ("futex pong", side(1))]
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    (ends[0], ends[1])
}

/// Blocked reads: one thread sends numbers, the other compares and sends them back.
fn pipe_ping_pong() -> [(&'static str, Step); 2] {
    let (there, there_write) = pipe();
    let (back, back_write) = pipe();
    let mut sent = 0u64;
    let ping: Step = Box::new(move || {
        sent += 1;
        let mut answer = 0u64;
        // SAFETY: both buffers outlive the calls.
        unsafe {
            let got = libc::syscall(libc::SYS_write, there_write, &sent, 8);
            if got != 8 {
                return wrong("write", got);
            }
            let got = libc::syscall(libc::SYS_read, back, &mut answer, 8);
            if got != 8 {
                return wrong("read", got);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        if answer == sent { Ok(()) } else { Err(format!("{answer} came back for {sent}")) }
    });
    let pong: Step = Box::new(move || {
        let mut number = 0u64;
        let mut fd = libc::pollfd { fd: there, events: libc::POLLIN, revents: 0 };
        // SAFETY: both buffers outlive the calls.
        unsafe {
            if libc::poll(&mut fd, 1, 200) == 0 {
                return Ok(());
            }
            let got = libc::syscall(libc::SYS_read, there, &mut number, 8);
            if got != 8 {
                return wrong("read", got);
            }
            let got = libc::syscall(libc::SYS_write, back_write, &number, 8);
            if got != 8 {
                return wrong("write", got);
            }
        }
        Ok(())
    });
    [("pipe ping", ping), ("pipe pong", pong)]
}

/// One thread queues numbered signals to another, whose handler checks that none is missing.
fn queued_signals(signal: i32) -> [(&'static str, Step); 2] {
    let tid = Arc::new(AtomicI32::new(0));
    let theirs = tid.clone();
    let mut receiving = false;
    let receiver: Step = Box::new(move || {
        if !receiving {
            receiving = true;
            must!(libc::pthread_sigmask(
                libc::SIG_UNBLOCK,
                &sigset(&[signal]),
                std::ptr::null_mut()
            ));
            theirs.store(gettid(), Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    });
    let mut number = 0u64;
    let sender: Step = Box::new(move || {
        let tid = tid.load(Ordering::SeqCst);
        if tid == 0 || LAST_QUEUED.load(Ordering::SeqCst) != number {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(());
        }
        number += 1;
        // siginfo for rt_tgsigqueueinfo: signo, errno, code, pid, uid, value (asm-generic/siginfo.h).
        let mut info = [0u64; 16];
        info[0] = signal as u64;
        info[1] = u64::from(libc::SI_QUEUE as u32);
        info[2] = u64::from(std::process::id());
        info[3] = number;
        // SAFETY: the structure outlives the call.
        let got = unsafe {
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), tid, signal, info.as_ptr())
        };
        if got == 0 { Ok(()) } else { wrong("rt_tgsigqueueinfo", got) }
    });
    [("signal receiver", receiver), ("signal sender", sender)]
}

/// Every call with a time limit, each in its thread.
fn waits(signal: i32) -> Vec<(&'static str, Step)> {
    const LIMIT: Duration = Duration::from_millis(7);
    let (quiet, _) = pipe();
    let epoll = must!(libc::epoll_create1(libc::EPOLL_CLOEXEC));
    let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    // SAFETY (all below): pointers are to memory that outlives the call.
    vec![
        (
            "nanosleep",
            Box::new(|| {
                timed("nanosleep", 0, LIMIT, || unsafe {
                    libc::syscall(libc::SYS_nanosleep, &span(LIMIT), 0usize)
                })
            }),
        ),
        (
            "clock_nanosleep",
            Box::new(|| {
                timed("clock_nanosleep", 0, LIMIT, || unsafe {
                    let until = span(clock(libc::CLOCK_MONOTONIC) + LIMIT);
                    libc::syscall(
                        libc::SYS_clock_nanosleep,
                        libc::CLOCK_MONOTONIC,
                        libc::TIMER_ABSTIME,
                        &until,
                        0usize,
                    )
                })
            }),
        ),
        (
            "poll",
            Box::new(move || {
                timed("poll", 0, LIMIT, || unsafe {
                    let mut fd = libc::pollfd { fd: quiet, events: libc::POLLIN, revents: 0 };
                    libc::syscall(libc::SYS_poll, &mut fd, 1, LIMIT.as_millis() as i32)
                })
            }),
        ),
        (
            "select",
            Box::new(|| {
                timed("select", 0, LIMIT, || unsafe {
                    let mut time = libc::timeval { tv_sec: 0, tv_usec: LIMIT.as_micros() as i64 };
                    libc::syscall(libc::SYS_select, 0, 0usize, 0usize, 0usize, &mut time)
                })
            }),
        ),
        (
            "futex wait",
            Box::new(move || {
                timed("futex", -libc::ETIMEDOUT as i64, LIMIT, || unsafe {
                    let got = libc::syscall(
                        libc::SYS_futex,
                        word.as_ptr(),
                        libc::FUTEX_WAIT,
                        0,
                        &span(LIMIT),
                    );
                    if got == -1 { -i64::from(errno()) } else { got }
                })
            }),
        ),
        (
            "epoll_wait",
            Box::new(move || {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // EINTR is the kernel's answer to a stop and is no error (signal(7)).
                match unsafe { libc::syscall(libc::SYS_epoll_wait, epoll, &mut event, 1, 7) } {
                    0 => Ok(()),
                    -1 if errno() == libc::EINTR => Ok(()),
                    got => wrong("epoll_wait", got),
                }
            }),
        ),
        (
            "sigtimedwait",
            Box::new(move || {
                let set = sigset(&[signal]);
                match unsafe {
                    libc::syscall(libc::SYS_rt_sigtimedwait, &set, 0usize, &span(LIMIT), 8)
                } {
                    -1 if [libc::EINTR, libc::EAGAIN].contains(&errno()) => Ok(()),
                    got => wrong("sigtimedwait", got),
                }
            }),
        ),
    ]
}

/// Short-lived children whose exit codes are compared.
fn children() -> Result<(), String> {
    static CODE: AtomicI32 = AtomicI32::new(0);
    let code = CODE.fetch_add(1, Ordering::Relaxed) & 0x7f;
    // SAFETY: the child makes two system calls and ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::syscall(
                libc::SYS_nanosleep,
                &libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 },
                0usize,
            );
            libc::_exit(code);
        }
        let mut status = 0i32;
        let got = libc::syscall(libc::SYS_wait4, pid, &mut status, 0, 0usize);
        if got != i64::from(pid) {
            return wrong("wait4", got);
        }
        if status != code << 8 {
            return Err(format!("child ended with {status:#x} instead of exit code {code}"));
        }
    }
    std::thread::sleep(Duration::from_millis(3));
    Ok(())
}

/// Maps, fills, compares, unmaps.
fn mappings() -> Result<(), String> {
    const LENGTH: usize = 16 * 4096;
    let memory = crate::memory::map(
        LENGTH,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0,
    );
    let pattern = (memory as usize >> 12) as u8;
    crate::memory::bytes(memory, LENGTH).fill(pattern);
    std::thread::sleep(Duration::from_millis(1));
    let same = crate::memory::bytes(memory, LENGTH).iter().all(|&byte| byte == pattern);
    must!(libc::munmap(memory.cast(), LENGTH));
    if same { Ok(()) } else { Err("memory changed".into()) }
}

/// A blocked accept, and a thread that connects every few milliseconds.
fn accepts() -> [(&'static str, Step); 2] {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let name = format!("arctern-busy-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("name");
    // Listens until the program's end: the connector may be the last to stop.
    let listener: &UnixListener =
        Box::leak(Box::new(UnixListener::bind_addr(&address).expect("bind")));
    let accept: Step = Box::new(move || match listener.accept() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("accept: {error}")),
    });
    let connect: Step = Box::new(move || {
        std::thread::sleep(Duration::from_millis(5));
        match UnixStream::connect_addr(&address) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("connect: {error}")),
        }
    });
    [("accept", accept), ("connect", connect)]
}

/// The monotonic clock never goes back.
fn clock_forward() -> Step {
    let mut last = Duration::ZERO;
    Box::new(move || {
        std::thread::sleep(Duration::from_millis(1));
        let now = clock(libc::CLOCK_MONOTONIC);
        let before = std::mem::replace(&mut last, now);
        if now >= before {
            Ok(())
        } else {
            Err(format!("the clock went from {before:?} to {now:?}"))
        }
    })
}
