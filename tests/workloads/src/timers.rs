//! Timers: interval timers, POSIX timers, timer descriptors.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, block, clock, sigset};
use std::time::Duration;

fn span(seconds: i64, nanoseconds: i64) -> libc::timespec {
    libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

fn duration(time: libc::timespec) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A timer that had `left` at `then` (monotonic) still has what the passed time left it. A capture
/// may stop the timer's clock, so it may have more, never more than it had.
fn goes_on(checks: &mut Checks, what: &str, left: Duration, then: Duration, now: Duration) {
    let passed = clock(libc::CLOCK_MONOTONIC).saturating_sub(then);
    let low = left.saturating_sub(passed + Duration::from_millis(50));
    checks.between(what, now, low, left + Duration::from_millis(5));
}

const INTERVAL_TIMERS: [i32; 3] = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];

fn itimer(which: i32) -> (Duration, Duration) {
    // SAFETY: itimerval is plain data.
    let mut value: libc::itimerval = unsafe { std::mem::zeroed() };
    must!(libc::getitimer(which, &mut value));
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    (time(value.it_value), time(value.it_interval))
}

/// The three interval timers: time left and interval.
pub fn interval_timers(stage: &Stage, checks: &mut Checks) {
    let time = |seconds| libc::timeval { tv_sec: seconds, tv_usec: 250_000 };
    for (index, which) in INTERVAL_TIMERS.into_iter().enumerate() {
        let index = index as i64;
        let value = libc::itimerval { it_value: time(3600 + index), it_interval: time(7 + index) };
        must!(libc::setitimer(which, &value, std::ptr::null_mut()));
    }
    let then = clock(libc::CLOCK_MONOTONIC);
    let before = INTERVAL_TIMERS.map(itimer);
    stage.ready();
    stage.wait_for_verify();
    for (which, before) in INTERVAL_TIMERS.into_iter().zip(before) {
        let after = itimer(which);
        goes_on(checks, &format!("interval timer {which}"), before.0, then, after.0);
        checks.eq("interval", before.1, after.1);
    }
    block(&[libc::SIGALRM]);
    let soon = libc::itimerval {
        it_value: libc::timeval { tv_sec: 0, tv_usec: 1000 },
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    must!(libc::setitimer(libc::ITIMER_REAL, &soon, std::ptr::null_mut()));
    checks.eq(
        "the timer fires",
        libc::SIGALRM,
        wait_for(libc::SIGALRM, 2).map_or(-1, |info| info.si_signo),
    );
}

fn wait_for(signal: i32, seconds: i64) -> Option<libc::siginfo_t> {
    let set = sigset(&[signal]);
    // SAFETY: siginfo_t is plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: all three outlive the call.
        if unsafe { libc::sigtimedwait(&set, &mut info, &span(seconds, 0)) } == signal {
            return Some(info);
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

/// POSIX timers through the kernel's own calls, so that the kernel's ids show.
#[derive(Clone, Copy)]
struct Posix(i32);

impl Posix {
    fn new(clock: i32, notify: i32, signal: i32, value: usize, tid: i32) -> Self {
        // SAFETY: sigevent is plain data.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = notify;
        event.sigev_signo = signal;
        event.sigev_value.sival_ptr = value as *mut libc::c_void;
        event.sigev_notify_thread_id = tid;
        let mut id = 0i32;
        must!(libc::syscall(libc::SYS_timer_create, clock, &mut event, &mut id));
        Self(id)
    }

    fn set(self, flags: i32, first: libc::timespec, interval: libc::timespec) {
        let value = libc::itimerspec { it_value: first, it_interval: interval };
        must!(libc::syscall(libc::SYS_timer_settime, self.0, flags, &value, 0usize));
    }

    fn get(self) -> (Duration, Duration) {
        // SAFETY: itimerspec is plain data.
        let mut value: libc::itimerspec = unsafe { std::mem::zeroed() };
        must!(libc::syscall(libc::SYS_timer_gettime, self.0, &mut value));
        (duration(value.it_value), duration(value.it_interval))
    }
}

/// POSIX timers: ids with gaps, clocks, ways of notification, time left, values, overruns.
pub fn posix_timers(stage: &Stage, checks: &mut Checks) {
    let first = libc::SIGRTMIN() + 1;
    block(&[first, first + 1]);
    let monotonic = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, first, 0x1111, 0);
    let gap = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0, 0);
    let realtime = Posix::new(libc::CLOCK_REALTIME, libc::SIGEV_SIGNAL, first, 0x2222, 0);
    let gap2 = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0, 0);
    let none = Posix::new(libc::CLOCK_BOOTTIME, libc::SIGEV_NONE, 0, 0, 0);
    let thread = Posix::new(
        libc::CLOCK_MONOTONIC,
        libc::SIGEV_THREAD_ID,
        first + 1,
        0x3333,
        crate::stage::gettid(),
    );
    let unarmed = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, first, 0x4444, 0);
    for gap in [gap, gap2] {
        must!(libc::syscall(libc::SYS_timer_delete, gap.0));
    }
    monotonic.set(0, span(3600, 0), span(3, 500));
    realtime.set(0, span(7200, 0), span(0, 0));
    none.set(0, span(1800, 5), span(4, 0));
    thread.set(0, span(900, 0), span(5, 0));
    let all = [monotonic, realtime, none, thread, unarmed];
    let then = clock(libc::CLOCK_MONOTONIC);
    let before = all.map(Posix::get);
    // One entry a timer, in any order, without the line that names this process.
    let list = || {
        let text = std::fs::read_to_string("/proc/self/timers").unwrap_or_default();
        let mut entries: Vec<String> = text
            .split("ID: ")
            .map(|entry| {
                let lines =
                    entry.lines().filter(|l| !l.starts_with("notify") || !l.contains("pid."));
                lines.collect::<Vec<_>>().join(" ")
            })
            .collect();
        entries.sort();
        entries
    };
    let listed = list();
    stage.ready();
    stage.wait_for_verify();
    for (timer, before) in all.into_iter().zip(before) {
        let after = timer.get();
        goes_on(checks, &format!("timer {}", timer.0), before.0, then, after.0);
        checks.eq("interval", before.1, after.1);
    }
    checks.eq("/proc/self/timers", listed, list());
    thread.set(0, span(0, 1000), span(0, 0));
    let value = wait_for(first + 1, 2).map_or(0, |info| {
        // SAFETY: the signal came from a timer, which fills si_value.
        unsafe { info.si_value() }.sival_ptr as usize
    });
    checks.eq("value of the thread's timer", 0x3333, value);
    unarmed.set(0, span(0, 1000), span(0, 0));
    checks.that("an unarmed timer can be armed", wait_for(first, 2).is_some());
}

/// A timer that fires all the time while its signal is handled: it goes on firing.
pub fn ticking_timer(stage: &Stage, checks: &mut Checks) {
    let signal = libc::SIGRTMIN() + 2;
    block(&[signal]);
    let timer = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, signal, 5, 0);
    timer.set(0, span(0, 5_000_000), span(0, 5_000_000));
    stage.ready();
    stage.wait_for_verify();
    for _ in 0..5 {
        checks.that("the timer ticks", wait_for(signal, 2).is_some());
    }
}

/// Timer descriptors: relative, periodic with unread ticks, absolute in the past and in the future.
pub fn timerfds(stage: &Stage, checks: &mut Checks) {
    let new = |clock: i32, flags: i32, first: libc::timespec, interval: libc::timespec| {
        let fd = must!(libc::timerfd_create(clock, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC));
        let value = libc::itimerspec { it_value: first, it_interval: interval };
        must!(libc::timerfd_settime(fd, flags, &value, std::ptr::null_mut()));
        fd
    };
    let get = |fd: i32| {
        // SAFETY: itimerspec is plain data.
        let mut value: libc::itimerspec = unsafe { std::mem::zeroed() };
        must!(libc::timerfd_gettime(fd, &mut value));
        (duration(value.it_value), duration(value.it_interval))
    };
    let zero = span(0, 0);
    let relative = new(libc::CLOCK_MONOTONIC, 0, span(3600, 0), zero);
    let periodic = new(libc::CLOCK_MONOTONIC, 0, span(0, 2_000_000), span(3600, 0));
    let wall = clock(libc::CLOCK_REALTIME).as_secs() as i64;
    let absolute =
        new(libc::CLOCK_REALTIME, libc::TFD_TIMER_ABSTIME, span(wall + 5000, 0), span(9, 0));
    let boot = new(libc::CLOCK_BOOTTIME, 0, span(100, 0), span(1, 0));
    let unarmed = new(libc::CLOCK_MONOTONIC, 0, zero, zero);
    // The periodic one has expired once, and nobody has read it.
    let mut poll = libc::pollfd { fd: periodic, events: libc::POLLIN, revents: 0 };
    must!(libc::poll(&mut poll, 1, 2000));
    let then = clock(libc::CLOCK_MONOTONIC);
    let all = [relative, periodic, absolute, boot, unarmed];
    let before = all.map(get);
    stage.ready();
    stage.wait_for_verify();
    for (index, (fd, before)) in all.into_iter().zip(before).enumerate() {
        let after = get(fd);
        // Images keep whole seconds of the wall clock's timers.
        let then = if fd == absolute { then.saturating_sub(Duration::from_secs(1)) } else { then };
        goes_on(checks, &format!("timer descriptor {index}"), before.0, then, after.0);
        checks.eq("interval", before.1, after.1);
    }
    checks.eq("unread ticks", Ok(1u64.to_ne_bytes().to_vec()), take(periodic, 8));
    checks.eq("no ticks", Err(libc::EAGAIN), take(relative, 8));
}

/// Clocks do not jump back, and time spent stopped does not show as the program's CPU time.
pub fn clocks(stage: &Stage, checks: &mut Checks) {
    let ids = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_MONOTONIC_RAW];
    let before = ids.map(clock);
    stage.ready();
    stage.wait_for_verify();
    for (id, before) in ids.into_iter().zip(before) {
        let after = clock(id);
        checks.between(&format!("clock {id}"), after, before, before + Duration::from_secs(600));
    }
}

/// A timer whose signal is blocked and pending: how often it expired since is told with the signal.
pub fn timer_overruns(stage: &Stage, checks: &mut Checks) {
    let signal = libc::SIGRTMIN() + 3;
    block(&[signal]);
    let timer = Posix::new(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, signal, 7, 0);
    let began = clock(libc::CLOCK_MONOTONIC);
    timer.set(0, span(0, 1_000_000), span(0, 1_000_000));
    while clock(libc::CLOCK_MONOTONIC) < began + Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(50));
    }
    stage.ready();
    stage.wait_for_verify();
    let Some(info) = wait_for(signal, 2) else { return checks.fail("the signal is not pending") };
    // siginfo_t: signo, errno, code, padding, timer, overrun.
    // SAFETY: siginfo_t is 128 bytes of plain data.
    let words = unsafe { std::mem::transmute::<libc::siginfo_t, [i32; 32]>(info) };
    checks.eq("code", libc::SI_TIMER, words[2]);
    checks.that(format!("{} overruns of at least 290", words[5]), words[5] >= 290);
    checks.that("the timer goes on", wait_for(signal, 2).is_some());
}
