//! Descriptors and what belongs to them that few programs use: tables that processes share, owners of
//! signals, pidfds, netlink sockets, memory with a name.

use crate::memory::{bytes, map};
use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, block, child, sigset, wait_status};
use std::fs;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Makes a process that shares more than fork(2) lets it; it never returns from here.
fn sharing(flags: i32, body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: without a stack of its own the child runs on a copy of this one, as after fork.
    let pid = must!(libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0)) as i32;
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child alone.
        unsafe { libc::_exit(code) }
    }
    pid
}

fn say(fd: i32) {
    must!(libc::write(fd, b"x".as_ptr().cast(), 1));
}

/// Two processes with one table of descriptors: what one opens the other has.
pub fn shared_table(stage: &Stage, checks: &mut Checks) {
    let mut to = [0; 2];
    let mut from = [0; 2];
    must!(libc::pipe(to.as_mut_ptr()));
    must!(libc::pipe(from.as_mut_ptr()));
    let pid = sharing(libc::CLONE_FILES, || {
        say(from[1]);
        let _ = take(to[0], 1);
        let opened = must!(libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY));
        let moved = must!(libc::dup2(opened, 555));
        say(from[1]);
        let _ = take(to[0], 1);
        i32::from(moved != 555 || take(600, 2) != Ok(Vec::new()))
    });
    let _ = take(from[0], 1);
    stage.ready();
    stage.wait_for_verify();
    say(to[1]);
    let _ = take(from[0], 1);
    checks.eq("what the child opened", Ok(vec![0; 4]), take(555, 4));
    let null = must!(libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY));
    must!(libc::dup2(null, 600));
    say(to[1]);
    checks.eq("the child", Some(0), wait_status(pid).ok());
}

/// Two processes with one working directory and one umask.
pub fn shared_directory(stage: &Stage, checks: &mut Checks) {
    fs::create_dir_all("here/below").expect("directory");
    let mut to = [0; 2];
    let mut from = [0; 2];
    must!(libc::pipe(to.as_mut_ptr()));
    must!(libc::pipe(from.as_mut_ptr()));
    must!(libc::chdir(c"here".as_ptr()));
    let pid = sharing(libc::CLONE_FS, || {
        say(from[1]);
        let _ = take(to[0], 1);
        must!(libc::chdir(c"below".as_ptr()));
        must!(libc::umask(0o057));
        0
    });
    let _ = take(from[0], 1);
    stage.ready();
    stage.wait_for_verify();
    say(to[1]);
    checks.eq("the child", Some(0), wait_status(pid).ok());
    let here = std::env::current_dir().map(|dir| dir.ends_with("here/below"));
    checks.that("the directory that the child changed to", here.unwrap_or(false));
    checks.eq("umask that the child set", 0o057, must!(libc::umask(0)));
}

/// Who gets the signals of a descriptor, and which: a thread, a process, a group; and they come.
pub fn owners(stage: &Stage, checks: &mut Checks) {
    const F_SETOWN_EX: i32 = 15;
    const F_GETOWN_EX: i32 = 16;
    const F_SETSIG: i32 = 10;
    let signal = libc::SIGRTMIN() + 6;
    block(&[signal, libc::SIGIO]);
    let other = child("other", |stage, checks| {
        must!(libc::setpgid(0, 0));
        stage.ready();
        stage.wait_for_verify();
        checks.that("nothing for the other", !pending(libc::SIGIO));
    });
    let pair = || {
        let mut ends = [0; 2];
        must!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()));
        ends
    };
    let (thread, process, group) = (pair(), pair(), pair());
    let own = |fd: i32, kind: i32, id: i32| must!(libc::fcntl(fd, F_SETOWN_EX, &[kind, id]));
    own(thread[0], 0, crate::stage::gettid());
    own(process[0], 1, must!(libc::getpid()));
    own(group[0], 2, other.pid);
    must!(libc::fcntl(thread[0], F_SETSIG, signal));
    for fd in [thread[0], process[0], group[0]] {
        let flags = must!(libc::fcntl(fd, libc::F_GETFL));
        must!(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC));
    }
    let all = [thread[0], process[0], group[0]];
    let shown = || {
        all.map(|fd| {
            let mut owner = [0i32; 2];
            must!(libc::fcntl(fd, F_GETOWN_EX, owner.as_mut_ptr()));
            (owner, must!(libc::fcntl(fd, libc::F_GETFL)))
        })
    };
    let before = shown();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("owners", before, shown());
    say(thread[1]);
    let set = sigset(&[signal, libc::SIGIO]);
    let limit = libc::timespec { tv_sec: 5, tv_nsec: 0 };
    // SAFETY: siginfo_t is plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    checks.eq("signal", signal, must!(libc::sigtimedwait(&set, &mut info, &limit)));
    say(process[1]);
    checks.eq("signal", libc::SIGIO, must!(libc::sigtimedwait(&set, &mut info, &limit)));
    other.verify(checks);
}

/// Whether a blocked signal waits.
fn pending(signal: i32) -> bool {
    // SAFETY: the set is plain data that the call fills.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    must!(libc::sigpending(&mut set));
    // SAFETY: the set is initialised.
    unsafe { libc::sigismember(&set, signal) == 1 }
}

/// Handles on a child and on the process itself.
pub fn pidfds(stage: &Stage, checks: &mut Checks) {
    let open = |pid: i32| must!(libc::syscall(libc::SYS_pidfd_open, pid, 0)) as i32;
    let target = child("target", |stage, _| {
        stage.ready();
        stage.wait_for_verify();
    });
    let (of_child, of_self) = (open(target.pid), open(must!(libc::getpid())));
    let shown = || {
        [of_child, of_self].map(|fd| {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
            text.lines().find(|line| line.starts_with("Pid:")).map(str::to_owned)
        })
    };
    let before = shown();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("processes", before, shown());
    let mut poll = libc::pollfd { fd: of_child, events: libc::POLLIN, revents: 0 };
    checks.eq("the child lives", 0, must!(libc::poll(&mut poll, 1, 0)));
    must!(libc::syscall(libc::SYS_pidfd_send_signal, of_child, libc::SIGUSR1, 0usize, 0));
    checks.eq("the child's end is seen", 1, must!(libc::poll(&mut poll, 1, 10_000)));
    target.wait(checks);
}

/// A netlink socket with a port and groups, which is asked afterwards.
pub fn netlink(stage: &Stage, checks: &mut Checks) {
    let socket = must!(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0));
    // struct sockaddr_nl: family, padding, port, groups.
    let mut address = [0u32; 3];
    address[0] = libc::AF_NETLINK as u32;
    address[2] = 1 << 16; // RTNLGRP_IPV6_ROUTE's bit and none that is busy
    must!(libc::bind(socket, address.as_ptr().cast(), 12));
    let name = || {
        let (mut name, mut length) = ([0u32; 3], 12u32);
        must!(libc::getsockname(socket, name.as_mut_ptr().cast(), &mut length));
        name
    };
    let before = name();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("name", before, name());
    // RTM_GETLINK with NLM_F_REQUEST | NLM_F_DUMP: header of 16 bytes, then struct rtgenmsg.
    let request = [20u32, 18 | 0x301 << 16, 1, 0, 0];
    must!(libc::send(socket, request.as_ptr().cast(), 20, 0));
    let answer = take(socket, 16384).unwrap_or_default();
    checks.that("links are listed", answer.len() > 32 && answer[4] == 16);
}

/// Named shared memory that two processes without a common mapping opened by its name, one of them a
/// private view, and a deleted file that is mapped only.
pub fn named_memory(stage: &Stage, checks: &mut Checks) {
    const SIZE: usize = 6 * 4096;
    let name = format!("/dev/shm/arctern-{}", std::process::id());
    let path = std::ffi::CString::new(name.clone()).expect("no NUL");
    let open = || must!(libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
    let reader = child("reader", |stage, checks| {
        let fd = open();
        must!(libc::ftruncate(fd, SIZE as i64));
        let view = map(SIZE, RW, libc::MAP_SHARED, fd, 0);
        must!(libc::close(fd));
        stage.ready();
        stage.wait_for_verify();
        checks.eq("what the parent wrote", (5, 6), (bytes(view, SIZE)[4096], bytes(view, SIZE)[0]));
    });
    let fd = open();
    let view = map(SIZE, RW, libc::MAP_SHARED, fd, 0);
    let private = map(SIZE, RW, libc::MAP_PRIVATE, fd, 0);
    must!(libc::close(fd));
    bytes(view, SIZE)[4096] = 5;
    bytes(private, SIZE)[2 * 4096] = 7;
    fs::write("mapped-and-deleted", vec![3u8; SIZE]).expect("file");
    let fd = must!(libc::open(c"mapped-and-deleted".as_ptr(), libc::O_RDWR));
    let deleted = map(SIZE, RW, libc::MAP_SHARED, fd, 0);
    must!(libc::close(fd));
    fs::remove_file("mapped-and-deleted").expect("unlink");
    stage.ready();
    stage.wait_for_verify();
    bytes(view, SIZE)[0] = 6;
    reader.verify(checks);
    let seen = bytes(private, SIZE);
    checks.eq("the private view", (7, 5), (seen[2 * 4096], seen[4096]));
    checks.that("the deleted file", bytes(deleted, SIZE).iter().all(|&byte| byte == 3));
    must!(libc::unlink(path.as_ptr()));
}

/// Thousands of mappings that the kernel does not merge.
pub fn many_mappings(stage: &Stage, checks: &mut Checks) {
    const COUNT: usize = 20_000;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let area = map(COUNT * 4096, libc::PROT_READ, private, -1, 0);
    for page in (0..COUNT).step_by(2) {
        let start = area.wrapping_add(page * 4096);
        must!(libc::mprotect(start.cast(), 4096, RW));
        if page % 200 == 0 {
            bytes(start, 4096)[0] = page as u8 | 1;
        }
    }
    let inside = || {
        let text = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let range = area as usize..area as usize + COUNT * 4096;
        let starts =
            text.lines().filter_map(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
        starts.filter(|start| range.contains(start)).count()
    };
    let before = inside();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("mappings", before, inside());
    for page in (0..COUNT).step_by(200) {
        checks.eq("contents", page as u8 | 1, bytes(area.wrapping_add(page * 4096), 1)[0]);
    }
}

/// The safe devices, each with its flags, and a large sparse file that was deleted.
pub fn devices(stage: &Stage, checks: &mut Checks) {
    let names = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom"];
    let all = names.map(|name| must!(libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK)));
    let sparse = must!(libc::open(c"sparse".as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600));
    must!(libc::pwrite(sparse, b"start".as_ptr().cast(), 5, 0));
    must!(libc::pwrite(sparse, b"end".as_ptr().cast(), 3, 900 << 10));
    fs::remove_file("sparse").expect("unlink");
    stage.ready();
    stage.wait_for_verify();
    for (fd, name) in all.into_iter().zip(names) {
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).map(|p| p.display().to_string());
        checks.eq("device", name.to_str().ok().map(str::to_owned), link.ok());
        let flags = must!(libc::fcntl(fd, libc::F_GETFL)) & (libc::O_ACCMODE | libc::O_NONBLOCK);
        checks.eq("flags", libc::O_RDWR | libc::O_NONBLOCK, flags);
    }
    checks.eq("zero", Ok(vec![0; 3]), take(all[1], 3));
    checks.eq("random", Some(16), take(all[4], 16).ok().map(|bytes| bytes.len()));
    // SAFETY: the data outlives the call.
    let full = unsafe { libc::write(all[2], b"x".as_ptr().cast(), 1) };
    let error = std::io::Error::last_os_error().raw_os_error();
    checks.eq("full", (-1, Some(libc::ENOSPC)), (full, error));
    let mut end = [0u8; 3];
    must!(libc::pread(sparse, end.as_mut_ptr().cast(), 3, 900 << 10));
    checks.eq("the end of a sparse file", *b"end", end);
}

/// A memfd of huge pages that holds none yet: size, and that it is one of huge pages.
pub fn huge_memfd(stage: &Stage, checks: &mut Checks) {
    const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB) };
    if fd < 0 {
        stage.skip("the kernel has no huge pages");
    }
    must!(libc::ftruncate(fd, 4 << 20));
    let kind = || {
        // SAFETY: both structures are plain data that the calls fill.
        let mut system: libc::statfs = unsafe { std::mem::zeroed() };
        let mut file: libc::stat = unsafe { std::mem::zeroed() };
        must!(libc::fstatfs(fd, &mut system));
        must!(libc::fstat(fd, &mut file));
        (system.f_type, system.f_bsize, file.st_size)
    };
    checks.eq("kind before", (HUGETLBFS_MAGIC, 2 << 20, 4 << 20), kind());
    stage.ready();
    stage.wait_for_verify();
    checks.eq("kind", (HUGETLBFS_MAGIC, 2 << 20, 4 << 20), kind());
}

/// Names that a program gives its anonymous memory (PR_SET_VMA_ANON_NAME).
pub fn mapping_names(stage: &Stage, checks: &mut Checks) {
    const PR_SET_VMA: i32 = 0x5356_4d41; // linux/prctl.h
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let area = map(4096, RW, private, -1, 0);
    // SAFETY: the name outlives the call, the range is this program's.
    if unsafe { libc::prctl(PR_SET_VMA, 0, area, 4096, c"arctern name".as_ptr()) } != 0 {
        stage.skip("the kernel is built without CONFIG_ANON_VMA_NAME");
    }
    let named = || {
        let text = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        text.lines().filter(|line| line.contains("[anon:arctern name]")).count()
    };
    checks.eq("name before", 1, named());
    stage.ready();
    stage.wait_for_verify();
    checks.eq("name", 1, named());
}
