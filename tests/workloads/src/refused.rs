//! State that is not carried: the program sets it up, must be refused with a reason, and afterwards
//! finds it as it was.

use crate::list::Body;
use crate::memory::{bytes, map};
use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, child, wait_status};
use std::fs;

/// A refusal: name, namespaces of the root, program, kinds of state, and what is said about it (parts
/// of the text, of which `PID` stands for the root's). `frozen`: only a stopped task tells, so that a
/// check beforehand does not see it.
pub struct Refused {
    /// Name.
    pub name: &'static str,
    /// Flags of clone(2).
    pub namespaces: i32,
    /// Program.
    pub body: Body,
    /// Kinds of state.
    pub kinds: &'static [&'static str],
    /// Parts of the text.
    pub says: &'static [&'static str],
    /// Whether a check that stops nobody cannot see it.
    pub frozen: bool,
}

const fn refused(
    name: &'static str,
    namespaces: i32,
    body: Body,
    kinds: &'static [&'static str],
    says: &'static [&'static str],
) -> Refused {
    Refused { name, namespaces, body, kinds, says, frozen: false }
}

/// Every one.
pub const REFUSED: &[Refused] = &[
    refused("traced", 0, traced, &["ptraced"], &["is traced by process", "detach the debugger"]),
    refused("vfork", 0, vfork, &["vfork"], &["vfork"]),
    refused("io-uring", 0, io_uring, &["io-uring"], &["an io_uring instance cannot be carried"]),
    refused("bpf-map", 0, bpf_map, &["bpf"], &["a BPF object cannot be carried", "close it"]),
    refused("perf-event", 0, perf_event, &["perf"], &["a performance counter cannot be carried"]),
    refused("userfaultfd", 0, userfaultfd, &["userfaultfd"], &["a userfaultfd"]),
    refused("fanotify", 0, fanotify, &["fanotify"], &["a fanotify group cannot be carried"]),
    refused("lease", 0, lease, &["leases"], &["a lease (F_SETLEASE)", "give the lease up"]),
    refused("raw-socket", 0, raw_socket, &["raw"], &["socket"]),
    refused("packet-socket", 0, packet_socket, &["packet"], &["socket"]),
    refused("netlink-unread", 0, netlink_unread, &["netlink-data"], &["netlink messages wait"]),
    refused("namespace-file", 0, namespace_file, &["namespace-files"], &["a namespace file"]),
    refused("dead-pidfd", 0, dead_pidfd, &["pidfd-gone"], &["a process that is gone"]),
    refused(
        "terminal-data",
        0,
        terminal_data,
        &["pty-data"],
        &["bytes wait to be read from the terminal"],
    ),
    refused(
        "terminal-output",
        0,
        terminal_output,
        &["pty-data"],
        &["1 thing(s)", "bytes wait to be read from the terminal"],
    ),
    refused("tun-device", 0, tun_device, &["devices-other"], &["the device 10:200 has state"]),
    refused("aio-ring", 0, aio_ring, &["aio"], &["a ring of asynchronous I/O", "destroy it"]),
    refused("user-namespace", libc::CLONE_NEWUSER, nothing, &["user-ns"], &["user namespace"]),
    refused("nested-namespace", 0, nested_namespace, &["ns-nested"], &["uts namespace"]),
    refused("posix-queue", libc::CLONE_NEWIPC, posix_queue, &["mqueues"], &["queue"]),
    refused("protection-key", 0, protection_key, &["protection-keys"], &["has a protection key"]),
    Refused { frozen: true, ..refused("process-keyring", 0, keyring, &["keyrings"], &["keyring"]) },
];

/// Waits for the refusal.
fn waits(stage: &Stage) {
    stage.ready();
    stage.wait_for_verify();
}

fn nothing(stage: &Stage, _: &mut Checks) {
    waits(stage);
}

/// A child that is traced by another.
fn traced(stage: &Stage, checks: &mut Checks) {
    let target = child("target", |stage, _| {
        stage.ready();
        stage.wait_for_verify();
    });
    let tracer = child("tracer", |stage, _| {
        must!(libc::ptrace(libc::PTRACE_SEIZE, target.pid, 0usize, 0usize));
        stage.ready();
        stage.wait_for_verify();
        must!(libc::ptrace(libc::PTRACE_INTERRUPT, target.pid, 0usize, 0usize));
        must!(libc::waitpid(target.pid, std::ptr::null_mut(), libc::__WALL));
        must!(libc::ptrace(libc::PTRACE_DETACH, target.pid, 0usize, 0usize));
    });
    waits(stage);
    tracer.verify(checks);
    target.verify(checks);
}

/// A parent that waits in vfork for its child.
fn vfork(stage: &Stage, checks: &mut Checks) {
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    let parent = must!(libc::fork());
    if parent == 0 {
        // CLONE_VFORK with a memory of its own, so that the child may do as it likes.
        let pid =
            must!(libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0));
        if pid == 0 {
            let _ = take(ends[0], 1);
            // SAFETY: ends the child alone.
            unsafe { libc::_exit(0) }
        }
        // SAFETY: ends the parent alone.
        unsafe { libc::_exit(wait_status(pid as i32).map_or(9, |status| status >> 8)) }
    }
    // The child exists as soon as it reads; its parent cannot be looked at before.
    let children = format!("/proc/{parent}/task/{parent}/children");
    loop {
        let text = fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = text.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            crate::stage::wait_until_blocked(pid, libc::SYS_read);
            break;
        }
        std::thread::yield_now();
    }
    waits(stage);
    must!(libc::write(ends[1], b"x".as_ptr().cast(), 1));
    checks.eq("the parent in vfork", Some(0), wait_status(parent).ok());
}

fn io_uring(stage: &Stage, _: &mut Checks) {
    let parameters = [0u32; 30];
    // SAFETY: struct io_uring_params has 120 bytes, which outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_ptr()) };
    if fd < 0 {
        stage.skip("the kernel lets nobody use io_uring");
    }
    waits(stage);
}

fn bpf_map(stage: &Stage, checks: &mut Checks) {
    // BPF_MAP_CREATE of an array: type, size of keys, size of values, entries.
    let mut attributes = [0u32; 18];
    attributes[..4].copy_from_slice(&[2, 4, 8, 1]);
    // SAFETY: union bpf_attr of 72 bytes outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), 72) };
    if fd < 0 {
        stage.skip("the kernel lets nobody make BPF maps");
    }
    waits(stage);
    checks.eq("the map", 0, must!(libc::fcntl(fd as i32, libc::F_GETFD)) & !libc::FD_CLOEXEC);
}

fn perf_event(stage: &Stage, _: &mut Checks) {
    // struct perf_event_attr: type PERF_TYPE_SOFTWARE, size, config PERF_COUNT_SW_TASK_CLOCK.
    let mut attributes = [0u64; 16];
    attributes[0] = 1 | 64 << 32;
    attributes[1] = 1;
    // SAFETY: the structure outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) };
    if fd < 0 {
        stage.skip("the kernel lets nobody count events");
    }
    waits(stage);
}

fn userfaultfd(stage: &Stage, checks: &mut Checks) {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    let fd = must!(libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK)) as i32;
    let api = [0xaau64, 0, 0];
    must!(libc::ioctl(fd, UFFDIO_API, api.as_ptr()));
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let area = map(4 * 4096, libc::PROT_READ | libc::PROT_WRITE, private, -1, 0);
    bytes(area, 4 * 4096).fill(3);
    // struct uffdio_register: start, length, mode, ioctls.
    let range = [area as u64, 4 * 4096, 1, 0];
    must!(libc::ioctl(fd, UFFDIO_REGISTER, range.as_ptr()));
    waits(stage);
    checks.that("contents", bytes(area, 4 * 4096).iter().all(|&byte| byte == 3));
}

fn fanotify(stage: &Stage, _: &mut Checks) {
    // FAN_CLASS_NOTIF, FAN_NONBLOCK
    let fd = must!(libc::fanotify_init(2, libc::O_RDONLY as u32));
    let dir = std::ffi::CString::new(stage.dir().as_os_str().as_encoded_bytes()).expect("no NUL");
    // SAFETY: the path outlives the call.
    let marked = unsafe {
        libc::fanotify_mark(fd, libc::FAN_MARK_ADD, libc::FAN_OPEN, libc::AT_FDCWD, dir.as_ptr())
    };
    if marked != 0 {
        stage.skip("this file system takes no fanotify marks");
    }
    waits(stage);
}

fn lease(stage: &Stage, checks: &mut Checks) {
    fs::write("leased", b"").expect("file");
    let fd = must!(libc::open(c"leased".as_ptr(), libc::O_RDONLY));
    must!(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK));
    waits(stage);
    checks.eq("lease", libc::F_RDLCK, must!(libc::fcntl(fd, libc::F_GETLEASE)));
}

fn raw_socket(stage: &Stage, _: &mut Checks) {
    must!(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP));
    waits(stage);
}

fn packet_socket(stage: &Stage, _: &mut Checks) {
    // SAFETY: plain call.
    if unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) } < 0 {
        stage.skip("the kernel has no packet sockets");
    }
    waits(stage);
}

fn netlink_unread(stage: &Stage, checks: &mut Checks) {
    let socket = must!(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0));
    // RTM_GETLINK with NLM_F_REQUEST | NLM_F_DUMP: header of 16 bytes, then struct rtgenmsg.
    let request = [20u32, 18 | 0x301 << 16, 1, 0, 0];
    must!(libc::send(socket, request.as_ptr().cast(), 20, 0));
    waits(stage);
    checks.that("the answer", take(socket, 16384).is_ok_and(|answer| answer.len() > 32));
}

fn namespace_file(stage: &Stage, _: &mut Checks) {
    must!(libc::open(c"/proc/self/ns/net".as_ptr(), libc::O_RDONLY));
    waits(stage);
}

fn dead_pidfd(stage: &Stage, checks: &mut Checks) {
    let ended = must!(libc::fork());
    if ended == 0 {
        // SAFETY: ends the child alone.
        unsafe { libc::_exit(0) }
    }
    let fd = must!(libc::syscall(libc::SYS_pidfd_open, ended, 0)) as i32;
    checks.eq("its end", Some(0), wait_status(ended).ok());
    waits(stage);
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    checks.eq("its end is seen", 1, must!(libc::poll(&mut poll, 1, 0)));
}

/// Both sides of a new pseudo terminal.
fn terminal() -> (i32, i32) {
    let master = must!(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY));
    must!(libc::grantpt(master));
    must!(libc::unlockpt(master));
    let mut name = [0u8; 64];
    must!(libc::ptsname_r(master, name.as_mut_ptr().cast(), 64));
    let slave = must!(libc::open(name.as_ptr().cast(), libc::O_RDWR | libc::O_NOCTTY));
    (master, slave)
}

fn terminal_data(stage: &Stage, checks: &mut Checks) {
    let (master, slave) = terminal();
    must!(libc::write(master, b"typed\n".as_ptr().cast(), 6));
    waits(stage);
    checks.eq("the line", Ok(b"typed\n".to_vec()), take(slave, 100));
}

fn terminal_output(stage: &Stage, checks: &mut Checks) {
    let (master, slave) = terminal();
    must!(libc::write(slave, b"said".as_ptr().cast(), 4));
    waits(stage);
    checks.eq("the output", Ok(b"said".to_vec()), take(master, 100));
}

fn tun_device(stage: &Stage, _: &mut Checks) {
    // SAFETY: the path is NUL-terminated.
    if unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR) } < 0 {
        stage.skip("there is no /dev/net/tun");
    }
    waits(stage);
}

fn aio_ring(stage: &Stage, checks: &mut Checks) {
    let mut context = 0u64;
    // SAFETY: the number outlives the call.
    if unsafe { libc::syscall(libc::SYS_io_setup, 8, &mut context) } != 0 {
        stage.skip("the kernel has no asynchronous I/O");
    }
    waits(stage);
    // SAFETY: plain call.
    checks.eq("the ring", 0, unsafe { libc::syscall(libc::SYS_io_destroy, context) });
}

fn nested_namespace(stage: &Stage, checks: &mut Checks) {
    let inner = child("inner", |stage, _| {
        must!(libc::unshare(libc::CLONE_NEWUTS));
        stage.ready();
        stage.wait_for_verify();
    });
    waits(stage);
    inner.verify(checks);
}

fn posix_queue(stage: &Stage, checks: &mut Checks) {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK;
    let no_attributes = std::ptr::null_mut::<libc::mq_attr>();
    let queue = must!(libc::mq_open(c"/arctern".as_ptr(), flags, 0o600, no_attributes));
    must!(libc::mq_send(queue, b"first".as_ptr().cast(), 5, 3));
    waits(stage);
    let (mut text, mut priority) = ([0u8; 8192], 0u32);
    let got = must!(libc::mq_receive(queue, text.as_mut_ptr().cast(), text.len(), &mut priority));
    checks.eq("the message", (5, 3), (got, priority));
}

fn protection_key(stage: &Stage, _: &mut Checks) {
    // SAFETY: plain call.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
    if key < 0 {
        stage.skip("the processor has no protection keys");
    }
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let area = map(4096, protection, private, -1, 0);
    must!(libc::syscall(libc::SYS_pkey_mprotect, area, 4096, protection, key));
    waits(stage);
}

fn keyring(stage: &Stage, _: &mut Checks) {
    const KEYCTL_GET_KEYRING_ID: i32 = 0; // linux/keyctl.h
    const KEY_SPEC_PROCESS_KEYRING: i32 = -2;
    // SAFETY: plain call.
    let made = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1)
    };
    if made < 0 {
        stage.skip("the kernel has no keyrings");
    }
    waits(stage);
}
