//! What a workload says to whoever runs it, and what it is told.
//!
//! A workload sets its state up, calls [`Stage::ready`] and waits in [`Stage::wait_for_verify`] for
//! SIGUSR1, which is blocked from the start so that it cannot come too early. Then it compares. It
//! cannot tell whether it was captured in between, nor by whom.

use std::fmt::Debug;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs a system call that must work for the state to be set up; ends the program if it does not.
#[macro_export]
macro_rules! must {
    ($call:expr) => {{
        let result = unsafe { $call };
        if result as i64 == -1 {
            $crate::stage::setup_failed(stringify!($call));
        }
        result
    }};
}

/// Ends the program: the state could not be set up (exit code 3).
pub fn setup_failed(what: &str) -> ! {
    let error = io::Error::last_os_error();
    eprintln!("setup failed: {what}: {error}");
    std::process::exit(3)
}

/// The workload's directory and its conversation with the runner.
pub struct Stage {
    dir: PathBuf,
}

impl Stage {
    /// `dir` is the workload's own directory and becomes its working directory.
    pub fn new(dir: PathBuf) -> Self {
        std::env::set_current_dir(&dir).expect("the workload's directory can be entered");
        block(&[libc::SIGUSR1]);
        Self { dir }
    }

    /// The workload's own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says that the state is set up. The FIFO is closed before this returns.
    pub fn ready(&self) {
        self.say("ready\n");
    }

    /// Says that this machine cannot hold the state, and ends.
    pub fn skip(&self, reason: &str) -> ! {
        self.say(&format!("skip {reason}\n"));
        std::process::exit(77)
    }

    fn say(&self, text: &str) {
        let mut fifo = fs::OpenOptions::new()
            .write(true)
            .open(self.dir.join("ready"))
            .expect("the FIFO `ready` is there");
        fifo.write_all(text.as_bytes()).expect("the runner listens");
    }

    /// Waits for the runner's SIGUSR1.
    pub fn wait_for_verify(&self) {
        wait_usr1();
    }
}

/// Blocks the signals in the calling thread (and in threads and children that it makes).
pub fn block(signals: &[i32]) {
    let set = sigset(signals);
    must!(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()));
}

/// A signal set.
pub fn sigset(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data and is initialised by sigemptyset.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

fn wait_usr1() {
    let set = sigset(&[libc::SIGUSR1]);
    loop {
        // SAFETY: set is initialised; no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(&set, std::ptr::null_mut()) };
        if signal == libc::SIGUSR1 {
            return;
        }
    }
}

/// The differences that were found.
#[derive(Default)]
pub struct Checks {
    failures: Vec<String>,
}

impl Checks {
    /// Two values that must be equal.
    pub fn eq<T: PartialEq + Debug>(&mut self, what: impl AsRef<str>, want: T, got: T) {
        if want != got {
            self.failures.push(format!("{}: was {want:?}, is {got:?}", what.as_ref()));
        }
    }

    /// Something that must hold.
    pub fn that(&mut self, what: impl Into<String>, holds: bool) {
        if !holds {
            self.failures.push(what.into());
        }
    }

    /// A time that must lie between two others.
    pub fn between(&mut self, what: &str, got: Duration, low: Duration, high: Duration) {
        if got < low || got > high {
            self.failures.push(format!("{what}: {got:?} is not within {low:?} and {high:?}"));
        }
    }

    /// A failed operation.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    /// Prints the outcome; the exit code of the program.
    pub fn finish(self, name: &str) -> i32 {
        for failure in &self.failures {
            eprintln!("{name} (pid {}): {failure}", std::process::id());
        }
        if self.failures.is_empty() {
            println!("{name}: ok");
            0
        } else {
            1
        }
    }
}

/// A forked child that takes part in the verification.
pub struct Child {
    /// Its pid in this pid namespace.
    pub pid: i32,
    name: &'static str,
}

/// The child's side of the conversation with its parent.
pub struct ChildStage {
    ready: Option<i32>,
}

impl ChildStage {
    /// Says to the parent that the child's state is set up.
    pub fn ready(&mut self) {
        if let Some(fd) = self.ready.take() {
            must!(libc::write(fd, b"r".as_ptr().cast(), 1));
            must!(libc::close(fd));
        }
    }

    /// Waits for the parent's word.
    pub fn wait_for_verify(&self) {
        wait_usr1();
    }
}

/// Forks a child that runs `body`, and returns when the child said that it is ready. The program
/// must have one thread.
pub fn child(name: &'static str, body: impl FnOnce(&mut ChildStage, &mut Checks)) -> Child {
    let mut ends = [0; 2];
    must!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC));
    let pid = must!(libc::fork());
    if pid == 0 {
        must!(libc::close(ends[0]));
        let mut stage = ChildStage { ready: Some(ends[1]) };
        let mut checks = Checks::default();
        body(&mut stage, &mut checks);
        let code = checks.finish(name);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    must!(libc::close(ends[1]));
    let mut byte = [0u8; 1];
    if must!(libc::read(ends[0], byte.as_mut_ptr().cast(), 1)) != 1 {
        setup_failed(name);
    }
    must!(libc::close(ends[0]));
    Child { pid, name }
}

impl Child {
    /// Tells the child to verify and takes its outcome.
    pub fn verify(self, checks: &mut Checks) {
        must!(libc::kill(self.pid, libc::SIGUSR1));
        self.wait(checks);
    }

    /// Takes the outcome of a child that ends by itself.
    pub fn wait(self, checks: &mut Checks) {
        match wait_status(self.pid) {
            Ok(0) => {}
            Ok(status) => {
                checks.fail(format!("child {} ended with wait status {status:#x}", self.name))
            }
            Err(error) => checks.fail(format!("child {} cannot be waited for: {error}", self.name)),
        }
    }
}

/// Waits for a child's end.
pub fn wait_status(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: status outlives the call.
        if unsafe { libc::waitpid(pid, &mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits until the task sleeps in the system call with this number (its last argument is the tid of
/// any thread on this machine).
pub fn wait_until_blocked(tid: i32, call: i64) {
    let path = format!("/proc/{tid}/syscall");
    let want = format!("{call} ");
    for _ in 0..10_000 {
        if fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&want)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("setup failed: task {tid} did not enter system call {call}");
    std::process::exit(3)
}

/// Seconds and nanoseconds of a clock as a duration.
pub fn clock(id: libc::clockid_t) -> Duration {
    // SAFETY: timespec is plain data.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    must!(libc::clock_gettime(id, &mut now));
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The kernel's id of the calling thread.
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}
