//! System calls that were interrupted by the capture: each goes on, none fails, none returns early,
//! and one with a time limit takes its time. Every call blocks in a thread of its own.
//!
//! Two calls may return EINTR to a program that was only stopped and continued, by the kernel's own
//! rules (signal(7)): epoll_wait and sigtimedwait. Those are called again with the rest of the time.

use crate::must;
use crate::stage::{Checks, Stage, block, clock, gettid, sigset, wait_until_blocked};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A call that blocks in its thread.
struct Blocked {
    name: &'static str,
    tid: i32,
    thread: JoinHandle<Result<Duration, String>>,
}

/// Starts a thread that makes the call and waits until it blocks there.
fn blocked(
    name: &'static str,
    number: i64,
    call: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Blocked {
    let tid = Arc::new(AtomicI32::new(0));
    let theirs = tid.clone();
    let thread = std::thread::spawn(move || {
        theirs.store(gettid(), Ordering::SeqCst);
        let start = clock(libc::CLOCK_MONOTONIC);
        call().map(|()| clock(libc::CLOCK_MONOTONIC) - start)
    });
    while tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let tid = tid.load(Ordering::SeqCst);
    wait_until_blocked(tid, number);
    Blocked { name, tid, thread }
}

impl Blocked {
    fn finish(self, checks: &mut Checks) -> Option<Duration> {
        match self.thread.join() {
            Ok(Ok(time)) => return Some(time),
            Ok(Err(error)) => checks.fail(format!("{}: {error}", self.name)),
            Err(_) => checks.fail(format!("{}: the thread panicked", self.name)),
        }
        None
    }
}

/// The outcome of a raw call that must return `want`.
fn expect(want: i64, got: i64) -> Result<(), String> {
    if want == got {
        Ok(())
    } else {
        Err(format!("returned {got} ({}) instead of {want}", io::Error::last_os_error()))
    }
}

/// The outcome of a raw call that must fail with `want`.
fn expect_error(want: i32, got: i64) -> Result<(), String> {
    let error = io::Error::last_os_error();
    if got == -1 && error.raw_os_error() == Some(want) {
        Ok(())
    } else {
        Err(format!("returned {got} ({error}) instead of error {want}"))
    }
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    (ends[0], ends[1])
}

extern "C" fn nothing(_: i32) {}

/// Calls without a time limit: they end when what they wait for happens, after the capture.
pub fn blocked_calls(stage: &Stage, checks: &mut Checks) {
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGRTMIN() + 7, nothing as extern "C" fn(i32) as usize) };
    let (read_end, read_writer) = pipe();
    let (full_reader, full_end) = pipe();
    must!(libc::fcntl(full_end, libc::F_SETPIPE_SZ, 4096));
    must!(libc::write(full_end, [1u8; 4096].as_ptr().cast(), 4096));
    let word = Arc::new(AtomicU32::new(0));
    let theirs = word.clone();
    let listener = std::os::unix::net::UnixListener::bind("accept").expect("bind");
    let listener_fd = {
        use std::os::fd::AsRawFd;
        listener.as_raw_fd()
    };
    let mut pair = [0; 2];
    must!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()));
    let (poll_end, poll_writer) = pipe();
    let epoll = must!(libc::epoll_create1(0));
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 9 };
    must!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, poll_end, &mut event));
    let waited = must!(libc::fork());
    if waited == 0 {
        let set = sigset(&[libc::SIGUSR1]);
        let mut signal = 0;
        // SAFETY: blocks until the parent's signal; then ends this child.
        unsafe {
            libc::sigwait(&set, &mut signal);
            libc::_exit(9)
        }
    }
    std::fs::write("locked", b"").expect("file");
    let held = must!(libc::open(c"locked".as_ptr(), libc::O_RDWR));
    must!(libc::flock(held, libc::LOCK_EX));
    let signal = libc::SIGRTMIN() + 8;
    block(&[signal]);

    // SAFETY (all below): pointers are to memory that outlives the call.
    let calls = vec![
        blocked("read of a pipe", libc::SYS_read, move || {
            let mut buffer = [0u8; 16];
            expect(5, unsafe { libc::syscall(libc::SYS_read, read_end, buffer.as_mut_ptr(), 16) })
        }),
        blocked("write to a full pipe", libc::SYS_write, move || {
            expect(10, unsafe {
                libc::syscall(libc::SYS_write, full_end, b"0123456789".as_ptr(), 10)
            })
        }),
        blocked("futex", libc::SYS_futex, move || {
            expect(0, unsafe {
                libc::syscall(libc::SYS_futex, theirs.as_ptr(), libc::FUTEX_WAIT, 0, 0usize)
            })
        }),
        blocked("accept", libc::SYS_accept, move || {
            let got = unsafe { libc::syscall(libc::SYS_accept, listener_fd, 0usize, 0usize) };
            expect(1, i64::from(got >= 0))
        }),
        blocked("recvfrom", libc::SYS_recvfrom, move || {
            let mut buffer = [0u8; 16];
            expect(4, unsafe {
                libc::syscall(
                    libc::SYS_recvfrom,
                    pair[0],
                    buffer.as_mut_ptr(),
                    16,
                    0,
                    0usize,
                    0usize,
                )
            })
        }),
        blocked("waitid", libc::SYS_wait4, move || {
            let mut status = 0i32;
            expect(waited.into(), unsafe {
                libc::syscall(libc::SYS_wait4, waited, &mut status, 0, 0usize)
            })?;
            expect(9 << 8, status.into())
        }),
        blocked("select", libc::SYS_select, move || {
            let mut set = unsafe { std::mem::zeroed::<libc::fd_set>() };
            unsafe { libc::FD_SET(poll_end, &mut set) };
            expect(1, unsafe {
                libc::syscall(libc::SYS_select, poll_end + 1, &mut set, 0usize, 0usize, 0usize)
            })
        }),
        blocked("epoll_wait", libc::SYS_epoll_wait, move || {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            loop {
                let got = unsafe { libc::syscall(libc::SYS_epoll_wait, epoll, &mut event, 1, -1) };
                if got != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                    return expect(1, got);
                }
            }
        }),
        blocked("flock", libc::SYS_flock, move || {
            let other = must!(libc::open(c"locked".as_ptr(), libc::O_RDWR));
            expect(0, unsafe { libc::syscall(libc::SYS_flock, other, libc::LOCK_EX) })
        }),
        blocked("sigtimedwait", libc::SYS_rt_sigtimedwait, move || {
            let set = sigset(&[signal]);
            loop {
                let got =
                    unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, 0usize, 0usize, 8) };
                if got != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                    return expect(signal.into(), got);
                }
            }
        }),
        blocked("pause", libc::SYS_pause, || {
            expect_error(libc::EINTR, unsafe { libc::syscall(libc::SYS_pause) })
        }),
        blocked("sigsuspend", libc::SYS_rt_sigsuspend, || {
            let set = sigset(&[libc::SIGUSR1]);
            expect_error(libc::EINTR, unsafe { libc::syscall(libc::SYS_rt_sigsuspend, &set, 8) })
        }),
    ];
    stage.ready();
    stage.wait_for_verify();
    for call in &calls {
        checks.that(format!("{} returned before its time", call.name), !call.thread.is_finished());
    }
    must!(libc::write(read_writer, b"hello".as_ptr().cast(), 5));
    let mut buffer = vec![0u8; 4096];
    must!(libc::read(full_reader, buffer.as_mut_ptr().cast(), 4096));
    word.store(1, Ordering::SeqCst);
    must!(libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1));
    let client = std::os::unix::net::UnixStream::connect("accept");
    checks.that("connect", client.is_ok());
    must!(libc::write(pair[1], b"data".as_ptr().cast(), 4));
    must!(libc::kill(waited, libc::SIGUSR1));
    must!(libc::write(poll_writer, b"x".as_ptr().cast(), 1));
    must!(libc::flock(held, libc::LOCK_UN));
    must!(libc::kill(libc::getpid(), signal));
    for call in calls {
        if matches!(call.name, "pause" | "sigsuspend") {
            must!(libc::syscall(libc::SYS_tgkill, libc::getpid(), call.tid, libc::SIGRTMIN() + 7));
        }
        call.finish(checks);
    }
}

const LIMIT: Duration = Duration::from_secs(3);

/// poll(2) without a limit, for which the kernel has a way of its own: it goes on, and ends with what it
/// waits for; another ends with EINTR when a handler has run.
pub fn endless_poll(stage: &Stage, checks: &mut Checks) {
    let signal = libc::SIGRTMIN() + 9;
    // SAFETY: the handler does nothing. No SA_RESTART: the call ends.
    unsafe { libc::signal(signal, nothing as extern "C" fn(i32) as usize) };
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    let [reader, writer] = ends;
    let start = move || {
        let mut poll = libc::pollfd { fd: reader, events: libc::POLLIN, revents: 0 };
        // SAFETY: the structure outlives the call.
        unsafe { libc::syscall(libc::SYS_poll, &mut poll, 1, -1) }
    };
    let calls = [
        blocked("poll", libc::SYS_poll, move || expect(1, start())),
        blocked("poll that a signal ends", libc::SYS_poll, move || {
            expect_error(libc::EINTR, start())
        }),
    ];
    stage.ready();
    stage.wait_for_verify();
    must!(libc::syscall(libc::SYS_tgkill, libc::getpid(), calls[1].tid, signal));
    let [first, second] = calls;
    second.finish(checks);
    must!(libc::write(writer, b"x".as_ptr().cast(), 1));
    first.finish(checks);
}

/// Calls with a time limit: none returns early or with an error, none takes its time again from the
/// start, and the time spent captured may or may not count.
pub fn sleeping_calls(stage: &Stage, checks: &mut Checks) {
    let limit = || libc::timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    let (quiet, _writer) = pipe();
    let signal = libc::SIGRTMIN() + 8;
    block(&[signal]);
    // SAFETY (all below): pointers are to memory that outlives the call.
    let calls = vec![
        blocked("nanosleep", libc::SYS_nanosleep, move || {
            expect(0, unsafe { libc::syscall(libc::SYS_nanosleep, &limit(), 0usize) })
        }),
        blocked("nanosleep with the rest", libc::SYS_nanosleep, move || {
            let mut rest = limit();
            expect(0, unsafe { libc::syscall(libc::SYS_nanosleep, &limit(), &mut rest) })
        }),
        blocked("clock_nanosleep", libc::SYS_clock_nanosleep, move || {
            expect(0, unsafe {
                libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_BOOTTIME, 0, &limit(), 0usize)
            })
        }),
        blocked("clock_nanosleep until", libc::SYS_clock_nanosleep, move || {
            let until = clock(libc::CLOCK_MONOTONIC) + LIMIT;
            let until = libc::timespec {
                tv_sec: until.as_secs() as i64,
                tv_nsec: until.subsec_nanos().into(),
            };
            expect(0, unsafe {
                libc::syscall(
                    libc::SYS_clock_nanosleep,
                    libc::CLOCK_MONOTONIC,
                    libc::TIMER_ABSTIME,
                    &until,
                    0usize,
                )
            })
        }),
        blocked("poll", libc::SYS_poll, move || {
            let mut fd = libc::pollfd { fd: quiet, events: libc::POLLIN, revents: 0 };
            expect(0, unsafe {
                libc::syscall(libc::SYS_poll, &mut fd, 1, LIMIT.as_millis() as i32)
            })
        }),
        blocked("ppoll", libc::SYS_ppoll, move || {
            let mut fd = libc::pollfd { fd: quiet, events: libc::POLLIN, revents: 0 };
            expect(0, unsafe {
                libc::syscall(libc::SYS_ppoll, &mut fd, 1, &mut limit(), 0usize, 8)
            })
        }),
        blocked("select", libc::SYS_select, move || {
            let mut time = libc::timeval { tv_sec: LIMIT.as_secs() as i64, tv_usec: 0 };
            expect(0, unsafe {
                libc::syscall(libc::SYS_select, 0, 0usize, 0usize, 0usize, &mut time)
            })
        }),
        blocked("futex", libc::SYS_futex, move || {
            let word = AtomicU32::new(0);
            expect_error(libc::ETIMEDOUT, unsafe {
                libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, &limit())
            })
        }),
        blocked("epoll_wait", libc::SYS_epoll_wait, move || {
            let epoll = must!(libc::epoll_create1(0));
            again(|left| {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                unsafe {
                    libc::syscall(
                        libc::SYS_epoll_wait,
                        epoll,
                        &mut event,
                        1,
                        left.as_millis() as i32 + 1,
                    )
                }
            })
            .and_then(|got| expect(0, got))
        }),
        blocked("sigtimedwait", libc::SYS_rt_sigtimedwait, move || {
            let set = sigset(&[signal]);
            let got = again(|left| {
                let time = libc::timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: left.subsec_nanos().into(),
                };
                unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, 0usize, &time, 8) }
            })?;
            expect_error(libc::EAGAIN, got)
        }),
    ];
    stage.ready();
    stage.wait_for_verify();
    for call in calls {
        let name = call.name;
        if let Some(time) = call.finish(checks) {
            let slack = Duration::from_millis(20);
            checks.between(name, time, LIMIT - slack, LIMIT + LIMIT * 9 / 10);
        }
    }
}

/// Calls again with the rest of the time while the call says EINTR.
fn again(mut call: impl FnMut(Duration) -> i64) -> Result<i64, String> {
    let end = clock(libc::CLOCK_MONOTONIC) + LIMIT;
    loop {
        let left = end.saturating_sub(clock(libc::CLOCK_MONOTONIC));
        let got = call(left);
        if got != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Ok(got);
        }
    }
}
