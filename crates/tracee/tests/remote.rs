//! Remote calls in a live program and in stubs of our own. Needs nothing but ptrace of children.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use arctern_sys::clone::spawn_stub;
use arctern_sys::{Pid, proc, ptrace};
use arctern_tracee::live::{LiveSession, ThreadSignals, Vdso};
use arctern_tracee::stub::Stub;
use arctern_tracee::thread::{StoppedThread, wait_for_stop};
use arctern_tracee::{Batch, TraceeError};

/// A program that answers each line with the sum of all numbers so far, and so shows every damage
/// to its registers or memory.
fn summing_child() -> Child {
    Command::new("sh")
        .args(["-c", "echo ready; s=0; while read n; do s=$((s+n)); echo $s; done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh runs")
}

fn ask(child: &mut Child, out: &mut impl BufRead, line: &str) -> String {
    writeln!(child.stdin.as_mut().unwrap(), "{line}").unwrap();
    let mut answer = String::new();
    out.read_line(&mut answer).unwrap();
    answer.trim().to_owned()
}

fn stop(pid: Pid) -> StoppedThread {
    ptrace::seize(pid, 0).unwrap();
    ptrace::interrupt(pid).unwrap();
    assert!(wait_for_stop(pid).unwrap());
    StoppedThread::take(pid, pid.0).unwrap()
}

fn open_session(pid: Pid, thread: &mut StoppedThread) -> Result<LiveSession, TraceeError> {
    let maps = proc::smaps::read(pid).unwrap();
    let vdso = maps.iter().find(|m| m.name == "[vdso]").expect("a vDSO");
    let status = proc::status::read(pid, pid).unwrap();
    LiveSession::open(
        pid,
        thread,
        Vdso { start: vdso.start, end: vdso.end },
        ThreadSignals { inner_tgid: pid.0, caught: status.caught },
    )
}

#[test]
fn a_live_program_does_not_notice() {
    let mut child = summing_child();
    let pid = Pid(child.id() as i32);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let maps_before = proc::read(pid, "maps").unwrap();
    for round in 1..=20 {
        let mut thread = stop(pid);
        let mut session = open_session(pid, &mut thread).unwrap();
        let mut batch = Batch::new();
        let getpid = batch.call(libc::SYS_getpid, &[]);
        let name = batch.reserve(16);
        batch.call(libc::SYS_prctl, &[libc::PR_GET_NAME.into(), name.into()]);
        let bad = batch.call(libc::SYS_close, &[(-1).into()]);
        session.run(&mut thread, &mut batch).unwrap();
        assert_eq!(batch.result(getpid).unwrap(), pid.0 as u64);
        assert!(batch.memory(name).starts_with(b"sh\0"));
        assert_eq!(batch.result(bad).unwrap_err().raw_os_error(), Some(libc::EBADF));
        session.close(&mut thread).unwrap();
        thread.detach().unwrap();
        assert_eq!(ask(&mut child, &mut out, "2"), (2 * round).to_string());
    }
    assert_eq!(proc::read(pid, "maps").unwrap(), maps_before);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Kills the controller at many moments of a session; the program must go on unharmed.
#[test]
fn a_program_survives_the_death_of_its_controller() {
    let mut child = summing_child();
    let pid = Pid(child.id() as i32);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let mut sum = 0;
    for round in 0..60u64 {
        let mut controller = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "controller_for_the_death_test", "--nocapture"])
            .env("ARCTERN_TEST_VICTIM", pid.0.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = controller.stdout.take().unwrap();
        let mut byte = [0];
        while byte[0] != b'!' {
            pipe.read_exact(&mut byte).unwrap();
        }
        // A spin, not a sleep: the moments are microseconds apart.
        let until = std::time::Instant::now() + std::time::Duration::from_micros(round * 37);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        controller.kill().unwrap();
        controller.wait().unwrap();
        sum += round;
        assert_eq!(ask(&mut child, &mut out, &round.to_string()), sum.to_string(), "round {round}");
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Not a check of its own: the controller that the death test starts and kills.
#[test]
fn controller_for_the_death_test() {
    let Some(victim) = std::env::var("ARCTERN_TEST_VICTIM").ok().and_then(|v| v.parse().ok())
    else {
        return;
    };
    println!("!");
    loop {
        let mut thread = stop(Pid(victim));
        let mut session = open_session(Pid(victim), &mut thread).unwrap();
        for _ in 0..3 {
            let mut batch = Batch::new();
            for _ in 0..50 {
                batch.call(libc::SYS_getppid, &[]);
            }
            session.run(&mut thread, &mut batch).unwrap();
        }
        session.close(&mut thread).unwrap();
        thread.detach().unwrap();
    }
}

#[test]
fn stubs_are_built_up_by_calls_and_make_children() {
    let gadget = 0x1000_0000;
    let root = spawn_stub(0, libc::SIGCHLD, &[], None).unwrap();
    let stub = Stub::adopt(root, gadget).unwrap();
    let mut batch = Batch::new();
    let top = 0x7fff_ffff_f000u64 - (gadget + arctern_tracee::stub::GADGET_SIZE);
    batch.call(libc::SYS_munmap, &[0.into(), gadget.into()]);
    batch
        .call(libc::SYS_munmap, &[(gadget + arctern_tracee::stub::GADGET_SIZE).into(), top.into()]);
    stub.run_all(&mut batch, "unmap everything").unwrap();
    let child = stub.clone_child(0, libc::SIGCHLD, &[]).unwrap();
    let thread = stub
        .clone_child((libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64, 0, &[])
        .unwrap();
    assert_eq!(child.call("getppid", libc::SYS_getppid, &[]).unwrap(), root.0 as u64);
    assert_eq!(thread.call("getpid", libc::SYS_getpid, &[]).unwrap(), root.0 as u64);

    let mut batch = Batch::new();
    let fds = batch.reserve(8);
    batch.call(libc::SYS_pipe2, &[fds.into(), 0.into()]);
    let fd = batch.call(libc::SYS_dup, &[0.into()]);
    let copy = batch.call(libc::SYS_fcntl, &[fd.into(), libc::F_GETFD.into()]);
    child.run_all(&mut batch, "descriptors").unwrap();
    assert_eq!(batch.result(copy).unwrap(), 0);

    let mut last = Batch::new();
    last.call(libc::SYS_exit_group, &[3.into()]);
    assert_eq!(child.run_last(&mut last).unwrap(), ptrace::WaitStatus::Exited(3));
    arctern_sys::pidfd::PidFd::open(root).unwrap().send_signal(libc::SIGKILL).unwrap();
    for tid in [thread.tid(), root] {
        assert_eq!(ptrace::wait(tid).unwrap(), ptrace::WaitStatus::Killed(libc::SIGKILL));
    }
}
