//! Process trees: sessions, process groups, terminals, zombies, stopped tasks, orphans.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Child, Stage, child, wait_status};
use std::fs;

/// Parent, process group, session, terminal and its foreground group, by pid.
fn place(pid: i32) -> (i32, i32, i32, i32, i32) {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse().ok()).unwrap_or(-1);
    (number(1), number(2), number(3), number(4), number(5))
}

/// The state letter of a task.
fn state(pid: i32) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('?')
}

/// Sessions and process groups below each other, one group without its leader.
pub fn sessions(stage: &Stage, checks: &mut Checks) {
    let verify_place = |checks: &mut Checks, before: (i32, i32, i32, i32, i32)| {
        checks.eq("place", before, place(must!(libc::getpid())));
    };
    let leader = child("session leader", |stage, checks| {
        must!(libc::setsid());
        let member = child("member of the session", |stage, checks| {
            let before = place(must!(libc::getpid()));
            stage.ready();
            stage.wait_for_verify();
            verify_place(checks, before);
        });
        let grouped = child("own group", |stage, checks| {
            must!(libc::setpgid(0, 0));
            let before = place(must!(libc::getpid()));
            stage.ready();
            stage.wait_for_verify();
            verify_place(checks, before);
        });
        let before = place(must!(libc::getpid()));
        stage.ready();
        stage.wait_for_verify();
        verify_place(checks, before);
        member.verify(checks);
        grouped.verify(checks);
    });
    // The leader of the group ends; the member stays in the group of a pid that is gone.
    let group = child("group leader", |stage, _| {
        must!(libc::setpgid(0, 0));
        stage.ready();
        stage.wait_for_verify();
    });
    let member = child("member of a group without a leader", |stage, checks| {
        must!(libc::setpgid(0, group.pid));
        stage.ready();
        stage.wait_for_verify();
        checks.eq("group", group.pid, must!(libc::getpgid(0)));
    });
    group.verify(checks);
    let before = place(must!(libc::getpid()));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("own place", before, place(must!(libc::getpid())));
    leader.verify(checks);
    member.verify(checks);
}

/// A session whose leader ended: its member was adopted by the root of the tree.
pub fn orphaned_session(stage: &Stage, checks: &mut Checks) {
    must!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1));
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    let dead = must!(libc::fork());
    if dead == 0 {
        must!(libc::setsid());
        let orphan = child("orphan", |stage, checks| {
            must!(libc::close(ends[0]));
            must!(libc::close(ends[1]));
            let session = must!(libc::getsid(0));
            stage.ready();
            stage.wait_for_verify();
            checks.eq("session of a dead leader", session, must!(libc::getsid(0)));
            checks.eq("group of a dead leader", session, must!(libc::getpgid(0)));
        });
        must!(libc::write(ends[1], orphan.pid.to_ne_bytes().as_ptr().cast(), 4));
        // SAFETY: ends this child only.
        unsafe { libc::_exit(0) };
    }
    let mut orphan = [0u8; 4];
    must!(libc::read(ends[0], orphan.as_mut_ptr().cast(), 4));
    let orphan = i32::from_ne_bytes(orphan);
    must!(libc::close(ends[0]));
    must!(libc::close(ends[1]));
    checks.eq("end of the session leader", Ok(0), wait_status(dead).map_err(|e| e.to_string()));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("the orphan's parent", must!(libc::getpid()), place(orphan).0);
    must!(libc::kill(orphan, libc::SIGUSR1));
    checks.eq("the orphan's outcome", Ok(0), wait_status(orphan).map_err(|e| e.to_string()));
}

/// Children that ended and were not waited for keep how they ended.
pub fn zombies(stage: &Stage, checks: &mut Checks) {
    let exited = must!(libc::fork());
    if exited == 0 {
        // SAFETY: ends this child only.
        unsafe { libc::_exit(7) };
    }
    let killed = must!(libc::fork());
    if killed == 0 {
        must!(libc::pause());
    }
    must!(libc::kill(killed, libc::SIGKILL));
    for pid in [exited, killed] {
        // SAFETY: siginfo_t is plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        must!(libc::waitid(libc::P_PID, pid as u32, &mut info, libc::WEXITED | libc::WNOWAIT));
    }
    let before = [exited, killed].map(|pid| (state(pid), place(pid)));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("states and places", before, [exited, killed].map(|pid| (state(pid), place(pid))));
    checks.eq("exit code", Some(7 << 8), wait_status(exited).ok());
    checks.eq("signal", Some(libc::SIGKILL), wait_status(killed).ok().map(|status| status & 0x7f));
}

/// A task that was stopped stays stopped, and goes on when it is told to.
pub fn stopped_task(stage: &Stage, checks: &mut Checks) {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    let sleeper = child("sleeper", |stage, checks| {
        stage.ready();
        checks.eq("word", Ok(b"go".to_vec()), take(ends[0], 10));
        stage.wait_for_verify();
    });
    crate::stage::wait_until_blocked(sleeper.pid, libc::SYS_read);
    must!(libc::kill(sleeper.pid, libc::SIGSTOP));
    let mut status = 0;
    must!(libc::waitpid(sleeper.pid, &mut status, libc::WUNTRACED));
    checks.that("the child stopped", libc::WIFSTOPPED(status));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("state", 'T', state(sleeper.pid));
    must!(libc::write(ends[1], b"go".as_ptr().cast(), 2));
    must!(libc::kill(sleeper.pid, libc::SIGCONT));
    sleeper.verify(checks);
}

/// What a parent has been told of its children's stops it is not told again, and what it has not been
/// told it is.
pub fn stop_told_once(stage: &Stage, checks: &mut Checks) {
    crate::stage::block(&[libc::SIGCHLD]);
    let signals = crate::stage::sigset(&[libc::SIGCHLD]);
    let signalled = || {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set and the time outlive the call; no information is asked for.
        unsafe { libc::sigtimedwait(&signals, std::ptr::null_mut(), &now) == libc::SIGCHLD }
    };
    let [told, untold] = ["told", "untold"].map(|name| {
        let child = child(name, |stage, _| {
            stage.ready();
            stage.wait_for_verify();
        });
        must!(libc::kill(child.pid, libc::SIGSTOP));
        // SAFETY: siginfo_t is plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WSTOPPED | libc::WNOWAIT;
        must!(libc::waitid(libc::P_PID, child.pid as u32, &mut info, options));
        checks.that("a signal tells of it", signalled());
        child
    });
    let stop = |pid| {
        let mut status = 0;
        // SAFETY: the status outlives the call.
        unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED | libc::WNOHANG) }
    };
    checks.eq("the stop", told.pid, stop(told.pid));
    stage.ready();
    stage.wait_for_verify();
    checks.that("no signal tells of it again", !signalled());
    checks.eq("no stop is told again", 0, stop(told.pid));
    checks.eq("a stop is told", untold.pid, stop(untold.pid));
    for child in [told, untold] {
        checks.eq("state", 'T', state(child.pid));
        must!(libc::kill(child.pid, libc::SIGCONT));
        child.verify(checks);
    }
}

fn settings(fd: i32) -> (Vec<u8>, [u32; 4]) {
    // SAFETY: termios is plain data.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    must!(libc::tcgetattr(fd, &mut termios));
    (termios.c_cc.to_vec(), [termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag])
}

fn window(fd: i32) -> (u16, u16) {
    // SAFETY: winsize is plain data.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    must!(libc::ioctl(fd, libc::TIOCGWINSZ, &mut size));
    (size.ws_row, size.ws_col)
}

/// A pseudo terminal with a session on it: settings, window, unread data, foreground group.
pub fn terminal(stage: &Stage, checks: &mut Checks) {
    let master = must!(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY));
    must!(libc::grantpt(master));
    must!(libc::unlockpt(master));
    let mut name = [0u8; 64];
    must!(libc::ptsname_r(master, name.as_mut_ptr().cast(), 64));
    let size = libc::winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    must!(libc::ioctl(master, libc::TIOCSWINSZ, &size));
    let shell = child("session on the terminal", |stage, checks| {
        must!(libc::setsid());
        let slave = must!(libc::open(name.as_ptr().cast(), libc::O_RDWR));
        must!(libc::ioctl(slave, libc::TIOCSCTTY, 0));
        // SAFETY: plain call; background writers are not stopped.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        let foreground = child("foreground job", |stage, checks| {
            must!(libc::setpgid(0, 0));
            must!(libc::tcsetpgrp(slave, libc::getpid()));
            stage.ready();
            stage.wait_for_verify();
            checks.eq("foreground", must!(libc::getpid()), must!(libc::tcgetpgrp(slave)));
            let tty = must!(libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR));
            checks.eq("foreground by /dev/tty", must!(libc::getpid()), must!(libc::tcgetpgrp(tty)));
        });
        let background = child("background job", |stage, checks| {
            must!(libc::setpgid(0, 0));
            let before = place(must!(libc::getpid()));
            stage.ready();
            stage.wait_for_verify();
            checks.eq("place", before, place(must!(libc::getpid())));
        });
        // SAFETY: termios is plain data.
        let mut raw: libc::termios = unsafe { std::mem::zeroed() };
        must!(libc::tcgetattr(slave, &mut raw));
        raw.c_lflag &= !libc::ECHO;
        raw.c_cc[libc::VINTR] = 5;
        must!(libc::tcsetattr(slave, libc::TCSANOW, &raw));
        let before = (settings(slave), window(slave), place(must!(libc::getpid())));
        stage.ready();
        stage.wait_for_verify();
        checks.eq(
            "terminal",
            before,
            (settings(slave), window(slave), place(must!(libc::getpid()))),
        );
        foreground.verify(checks);
        background.verify(checks);
        must!(libc::tcsetpgrp(slave, libc::getpid()));
        checks.eq("a line", Ok(b"typed\n".to_vec()), take(slave, 100));
        must!(libc::write(slave, b"answer\n".as_ptr().cast(), 7));
    });
    let before = window(master);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("window", before, window(master));
    must!(libc::write(master, b"typed\n".as_ptr().cast(), 6));
    shell.verify(checks);
    checks.eq("output", Ok(b"answer\r\n".to_vec()), take(master, 100));
}

/// A tree of processes ten deep, each with a socket pair to the one below it.
pub fn deep_tree(stage: &Stage, checks: &mut Checks) {
    let below = grow(9);
    stage.ready();
    stage.wait_for_verify();
    compare(below, checks);
}

fn grow(depth: u32) -> (Child, i32) {
    let mut pair = [0; 2];
    must!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()));
    let child = child("level", |stage, checks| {
        let pid = must!(libc::getpid());
        must!(libc::write(pair[1], pid.to_ne_bytes().as_ptr().cast(), 4));
        let below = (depth > 0).then(|| grow(depth - 1));
        stage.ready();
        stage.wait_for_verify();
        must!(libc::write(pair[1], b"below".as_ptr().cast(), 5));
        if let Some(below) = below {
            compare(below, checks);
        }
    });
    (child, pair[0])
}

fn compare((child, fd): (Child, i32), checks: &mut Checks) {
    checks.eq("queued before", Ok(child.pid.to_ne_bytes().to_vec()), take(fd, 4));
    child.verify(checks);
    checks.eq("sent after", Ok(b"below".to_vec()), take(fd, 10));
}

/// Runs `round`, which says whether it went well, again and again in a thread of its own, until the
/// program is told to verify and one more round was done.
fn at_work(stage: &Stage, checks: &mut Checks, round: fn() -> bool) {
    let (told, tell) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        loop {
            let last = ended.try_recv().is_ok();
            if !round() || told.send(()).is_err() || last {
                return last;
            }
        }
    });
    checks.that("the first round", tell.recv().is_ok());
    stage.ready();
    stage.wait_for_verify();
    let _ = end.send(());
    checks.eq("all rounds went well", Some(true), worker.join().ok());
}

/// vfork again and again, whose children live longer than a freeze waits for them.
pub fn long_vforks(stage: &Stage, checks: &mut Checks) {
    at_work(stage, checks, || {
        // CLONE_VFORK with a memory of its own, so that the child may do as it likes.
        let pid =
            must!(libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0));
        if pid == 0 {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 120_000_000 };
            // SAFETY: a sleep on plain data, and the end of the child alone.
            unsafe {
                libc::nanosleep(&time, std::ptr::null_mut());
                libc::_exit(0)
            }
        }
        wait_status(pid as i32).is_ok_and(|status| status == 0)
    });
}

/// Programs started with posix_spawn, without a pause.
pub fn spawner(stage: &Stage, checks: &mut Checks) {
    at_work(stage, checks, || {
        std::process::Command::new("/bin/true").status().is_ok_and(|status| status.success())
    });
}
