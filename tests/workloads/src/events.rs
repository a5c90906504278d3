//! Event descriptors: epoll, eventfd, signalfd, inotify.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, block, sigset};
use std::fs;

fn targets(epoll: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("tfd"))
        .map(|line| line.split("pos:").next().unwrap_or_default().trim().to_owned())
        .collect();
    lines.sort();
    lines
}

fn add(epoll: i32, fd: i32, events: i32, data: u64) {
    let mut event = libc::epoll_event { events: events as u32, u64: data };
    must!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event));
}

fn ready(epoll: i32) -> Vec<(u64, u32)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    let count = must!(libc::epoll_wait(epoll, events.as_mut_ptr(), 16, 0)) as usize;
    let mut all: Vec<(u64, u32)> =
        events[..count].iter().map(|event| (event.u64, event.events)).collect();
    all.sort_unstable();
    all
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    must!(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK));
    (ends[0], ends[1])
}

/// epoll sets: data, flags, nested sets, one file under two numbers, sets shared by a dup.
pub fn epoll(stage: &Stage, checks: &mut Checks) {
    let outer = must!(libc::epoll_create1(libc::EPOLL_CLOEXEC));
    let inner = must!(libc::epoll_create1(0));
    let (full, full_write) = pipe();
    let (empty, empty_write) = pipe();
    must!(libc::write(full_write, b"x".as_ptr().cast(), 1));
    let second = must!(libc::dup(full));
    add(outer, full, libc::EPOLLIN, 0xdead_beef_0000_0001);
    add(outer, second, libc::EPOLLIN | libc::EPOLLPRI, 2);
    add(outer, empty, libc::EPOLLIN | libc::EPOLLET, 3);
    add(outer, empty_write, libc::EPOLLOUT | libc::EPOLLONESHOT, 4);
    add(inner, full, libc::EPOLLIN, 5);
    add(outer, inner, libc::EPOLLIN, 6);
    let event = must!(libc::eventfd(3, libc::EFD_NONBLOCK));
    add(outer, event, libc::EPOLLIN, 7);
    let alias = must!(libc::dup(outer));
    let before = (targets(outer), targets(inner));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("targets", before, (targets(outer), targets(inner)));
    let read = libc::EPOLLIN as u32;
    let write = libc::EPOLLOUT as u32;
    let want = vec![(2, read), (4, write), (6, read), (7, read), (0xdead_beef_0000_0001, read)];
    checks.eq("ready", want.clone(), ready(outer));
    let want: Vec<_> = want.into_iter().filter(|(data, _)| *data != 4).collect();
    checks.eq("ready through the dup, the one-shot is used up", want, ready(alias));
    checks.eq("inner", vec![(5, read)], ready(inner));
    for (fd, events, data) in [(full, libc::EPOLLIN, 11), (empty_write, libc::EPOLLOUT, 14)] {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        must!(libc::epoll_ctl(outer, libc::EPOLL_CTL_MOD, fd, &mut event));
    }
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    must!(libc::epoll_ctl(outer, libc::EPOLL_CTL_DEL, second, &mut event));
    checks.eq("after changes", vec![(6, read), (7, read), (11, read), (14, write)], ready(outer));
}

/// An epoll item whose descriptor was closed while a dup of it lives on under another number.
pub fn epoll_closed_number(stage: &Stage, checks: &mut Checks) {
    let epoll = must!(libc::epoll_create1(0));
    let (read, write) = pipe();
    must!(libc::write(write, b"x".as_ptr().cast(), 1));
    add(epoll, read, libc::EPOLLIN, 77);
    let kept = must!(libc::dup(read));
    must!(libc::close(read));
    let before = targets(epoll);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("targets", before, targets(epoll));
    checks.eq("ready", vec![(77, libc::EPOLLIN as u32)], ready(epoll));
    checks.eq("data", Ok(b"x".to_vec()), take(kept, 5));
    checks.eq("not ready any more", Vec::new(), ready(epoll));
}

/// eventfd counters.
pub fn eventfds(stage: &Stage, checks: &mut Checks) {
    let plain = must!(libc::eventfd(77, libc::EFD_NONBLOCK));
    let empty = must!(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("counter", Ok(77u64.to_ne_bytes().to_vec()), take(plain, 8));
    checks.eq("empty", Err(libc::EAGAIN), take(empty, 8));
}

/// An eventfd in semaphore mode, and a counter that needs more than 32 bits.
pub fn eventfd_semaphore(stage: &Stage, checks: &mut Checks) {
    let plain = must!(libc::eventfd(0, libc::EFD_NONBLOCK));
    must!(libc::write(plain, (1u64 << 40).to_ne_bytes().as_ptr().cast(), 8));
    let semaphore = must!(libc::eventfd(2, libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE));
    stage.ready();
    stage.wait_for_verify();
    checks.eq("counter", Ok((1u64 << 40).to_ne_bytes().to_vec()), take(plain, 8));
    checks.eq("semaphore", Ok(1u64.to_ne_bytes().to_vec()), take(semaphore, 8));
    checks.eq("semaphore", Ok(1u64.to_ne_bytes().to_vec()), take(semaphore, 8));
    checks.eq("semaphore", Err(libc::EAGAIN), take(semaphore, 8));
}

/// signalfd: the mask and a signal that waits to be read.
pub fn signalfds(stage: &Stage, checks: &mut Checks) {
    let signal = libc::SIGRTMIN() + 6;
    block(&[signal, libc::SIGUSR2]);
    let set = sigset(&[signal, libc::SIGUSR2]);
    let fd = must!(libc::signalfd(-1, &set, libc::SFD_NONBLOCK));
    let value = libc::sigval { sival_ptr: 99 as *mut libc::c_void };
    must!(libc::sigqueue(libc::getpid(), signal, value));
    let mask = |fd: i32| {
        fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
            .unwrap_or_default()
            .lines()
            .find(|line| line.starts_with("sigmask"))
            .unwrap_or_default()
            .to_owned()
    };
    let before = mask(fd);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("mask", before, mask(fd));
    let info = take(fd, 128).unwrap_or_default();
    let number =
        |at: usize| info.get(at..at + 4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    checks.eq("signal", Some(signal), number(0));
    checks.eq("code", Some(libc::SI_QUEUE), number(8));
    checks.eq("value", Some(99), number(44));
    must!(libc::raise(libc::SIGUSR2));
    let info = take(fd, 128).unwrap_or_default();
    checks.eq("new signal", Some(libc::SIGUSR2 as u8), info.first().copied());
}

/// inotify: the watches, under their numbers, report what happens afterwards.
pub fn inotify(stage: &Stage, checks: &mut Checks) {
    fs::create_dir("watched").expect("directory");
    fs::write("watched-file", b"").expect("file");
    let fd = must!(libc::inotify_init1(libc::IN_NONBLOCK));
    let first = must!(libc::inotify_add_watch(fd, c"watched-file".as_ptr(), libc::IN_MODIFY));
    must!(libc::inotify_rm_watch(fd, first));
    let directory =
        must!(libc::inotify_add_watch(fd, c"watched".as_ptr(), libc::IN_CREATE | libc::IN_DELETE));
    let file = must!(libc::inotify_add_watch(fd, c"watched-file".as_ptr(), libc::IN_MODIFY));
    while take(fd, 4096).is_ok() {}
    stage.ready();
    stage.wait_for_verify();
    while take(fd, 4096).is_ok() {}
    fs::write("watched/new", b"").expect("file");
    fs::write("watched-file", b"changed").expect("file");
    let events = take(fd, 4096).unwrap_or_default();
    let mut seen = Vec::new();
    let mut at = 0;
    while at + 16 <= events.len() {
        let word =
            |i: usize| u32::from_ne_bytes([events[i], events[i + 1], events[i + 2], events[i + 3]]);
        seen.push((word(at) as i32, word(at + 4)));
        at += 16 + word(at + 12) as usize;
    }
    checks.that(format!("creation seen ({seen:?})"), seen.contains(&(directory, libc::IN_CREATE)));
    checks.that(format!("change seen ({seen:?})"), seen.contains(&(file, libc::IN_MODIFY)));
}
