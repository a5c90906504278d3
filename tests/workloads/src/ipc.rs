//! Namespaces of a bare tree: System V memory, semaphores and messages, host names, pids.

use crate::must;
use crate::pipes::take;
use crate::stage::{Checks, Stage, child};

#[repr(C)]
struct Message {
    kind: i64,
    text: [u8; 16],
}

/// System V shared memory (attached, and kept without anybody attached), semaphores, messages. Runs
/// in an IPC namespace of its own.
pub fn sysv_ipc(stage: &Stage, checks: &mut Checks) {
    let segment = must!(libc::shmget(0x1234, 5 * 4096, libc::IPC_CREAT | 0o640));
    let memory = must!(libc::shmat(segment, std::ptr::null(), 0)).cast::<u8>();
    crate::memory::bytes(memory, 5 * 4096).fill(77);
    let detached = must!(libc::shmget(0x1235, 4096, libc::IPC_CREAT | 0o600));
    let once = must!(libc::shmat(detached, std::ptr::null(), 0)).cast::<u8>();
    crate::memory::bytes(once, 4096).fill(78);
    must!(libc::shmdt(once.cast()));
    let semaphores = must!(libc::semget(0x1236, 3, libc::IPC_CREAT | 0o600));
    for (index, value) in [5, 0, 9].into_iter().enumerate() {
        must!(libc::semctl(semaphores, index as i32, libc::SETVAL, value));
    }
    let queue = must!(libc::msgget(0x1237, libc::IPC_CREAT | 0o600));
    for kind in [3i64, 1, 2] {
        let message = Message { kind, text: [kind as u8; 16] };
        must!(libc::msgsnd(queue, (&raw const message).cast(), 16, 0));
    }
    let sharer = child("sharer", |stage, checks| {
        stage.ready();
        stage.wait_for_verify();
        checks.eq("shared with the child", 80, crate::memory::bytes(memory, 1)[0]);
    });
    stage.ready();
    stage.wait_for_verify();
    checks
        .that("attached contents", crate::memory::bytes(memory, 5 * 4096).iter().all(|&b| b == 77));
    crate::memory::bytes(memory, 1)[0] = 80;
    sharer.verify(checks);
    checks.eq("key of the memory", segment, must!(libc::shmget(0x1234, 0, 0)));
    let again = must!(libc::shmget(0x1235, 0, 0));
    checks.eq("key of the detached memory", detached, again);
    let view = must!(libc::shmat(again, std::ptr::null(), libc::SHM_RDONLY)).cast::<u8>();
    checks.that("detached contents", crate::memory::bytes(view, 4096).iter().all(|&b| b == 78));
    for (index, value) in [5, 0, 9].into_iter().enumerate() {
        checks.eq("semaphore", value, must!(libc::semctl(semaphores, index as i32, libc::GETVAL)));
    }
    for kind in [3i64, 1, 2] {
        let mut message = Message { kind: 0, text: [0; 16] };
        // SAFETY: the message outlives the call and has room for 16 bytes.
        let got =
            unsafe { libc::msgrcv(queue, (&raw mut message).cast(), 16, 0, libc::IPC_NOWAIT) };
        checks.eq("message", (16, kind, [kind as u8; 16]), (got, message.kind, message.text));
    }
}

/// Host and domain name in a UTS namespace of its own.
pub fn uts_names(stage: &Stage, checks: &mut Checks) {
    must!(libc::sethostname(c"workload-host".as_ptr(), 13));
    must!(libc::setdomainname(c"workload-domain".as_ptr(), 15));
    let names = || {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default()
        };
        (read("hostname"), read("domainname"))
    };
    let before = names();
    stage.ready();
    stage.wait_for_verify();
    checks.eq("names", before, names());
}

/// Process 1 of a pid namespace with children: everybody keeps the pid it knows. No /proc of this
/// namespace is mounted, so only system calls are asked.
pub fn pid_namespace(stage: &Stage, checks: &mut Checks) {
    checks.eq("pid", 1, must!(libc::getpid()));
    let mut ends = [0; 2];
    must!(libc::pipe(ends.as_mut_ptr()));
    let report = |stage: &mut crate::stage::ChildStage, checks: &mut Checks| {
        let before = (must!(libc::getpid()), must!(libc::getppid()), must!(libc::getpgid(0)));
        stage.ready();
        stage.wait_for_verify();
        checks.eq(
            "pids",
            before,
            (must!(libc::getpid()), must!(libc::getppid()), must!(libc::getpgid(0))),
        );
    };
    let first = child("first", report);
    let second = child("second", |stage, checks| {
        must!(libc::setsid());
        let below = child("below", report);
        report(stage, checks);
        below.verify(checks);
    });
    let pids = (first.pid, second.pid);
    stage.ready();
    stage.wait_for_verify();
    checks.eq("pid", 1, must!(libc::getpid()));
    checks.eq(
        "signal by pid",
        (0, 0),
        (must!(libc::kill(pids.0, 0)), must!(libc::kill(pids.1, 0))),
    );
    first.verify(checks);
    second.verify(checks);
    must!(libc::write(ends[1], b"x".as_ptr().cast(), 1));
    checks.eq("pipe", Ok(b"x".to_vec()), take(ends[0], 4));
    let orphaned = child("adopted", |stage, _| stage.ready());
    checks.that("new pids", orphaned.pid > 1);
    orphaned.wait(checks);
}
