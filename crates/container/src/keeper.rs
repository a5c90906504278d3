//! The keeper of a lock: a process that looks after the lock of one checkpoint.
//!
//! While the command works it waits at a pipe from it. A command that is killed leaves a container
//! that goes on, and a lock that cuts it off: the pipe ends without a word, and the keeper opens the
//! lock. When the container was stopped, the keeper waits for the lock's limit and ends it then;
//! whoever ends the lock earlier dismisses the keeper. A keeper that was killed is missed by nobody:
//! every command looks for locks whose time is over.
//!
//! On a segment it also keeps what arrives for the container, and sends it after it when it appears
//! somewhere else ([`arctern_net::Forwarder`]). Then this host is the container no longer: the lock
//! ends, but for the reservation of the address.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use arctern_net::{Ended, Forwarder, Network, NetworkError};

use crate::config::NetworkMode;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::paths::Paths;
use crate::process::ProcessId;

/// How long packets are sent on after the container was seen on another host: longer than switches
/// take to learn where it is, and than what is under way needs.
const FOLLOWING: Duration = Duration::from_secs(2);

/// The command's end of a keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pipe: Option<ChildStdin>,
    /// Speaks or ends when it listens.
    ready: Option<ChildStdout>,
    process: Option<ProcessId>,
}

impl Keeper {
    /// Starts the keeper of a container's lock.
    pub fn start(paths: &Paths, id: &str) -> Result<Keeper> {
        let fail = "start the keeper of the network lock";
        let mut child = Command::new("/proc/self/exe")
            .arg0("arctern-keeper")
            .arg("--root")
            .arg(&paths.root)
            .arg("--runroot")
            .arg(&paths.runroot)
            .args(["internal", "keeper", id])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::system(fail))?;
        let process = i32::try_from(child.id()).ok().and_then(ProcessId::of);
        Ok(Keeper { pipe: child.stdin.take(), ready: child.stdout.take(), process })
    }

    /// Waits until it keeps all that arrives, or will not: a lock that is made before leaves a gap.
    pub fn listens(&mut self) {
        if let Some(mut ready) = self.ready.take() {
            let _ = ready.read(&mut [0]);
        }
    }

    /// A way to tell it that the container is about to be locked.
    pub fn bell(&self) -> Option<Bell> {
        let pipe = self.pipe.as_ref()?.as_fd().try_clone_to_owned().ok()?;
        Some(Bell(pipe))
    }

    /// What identifies it.
    pub fn process(&self) -> Option<(i32, u64)> {
        self.process.map(|p| (p.pid, p.start))
    }

    /// The container is stopped; the lock is to end after `limit`.
    pub fn keep(mut self, limit: Option<Duration>) {
        self.tell(limit.map_or(0, |limit| limit.as_secs().max(1)));
    }

    fn tell(&mut self, seconds: u64) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(&seconds.to_le_bytes());
        }
    }
}

impl Drop for Keeper {
    /// The lock is open again: there is nothing to keep.
    fn drop(&mut self) {
        self.tell(0);
    }
}

/// Tells a keeper when the lock was made: from then on packets are kept.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

/// Set in what a [`Bell`] says, in place of a number of seconds.
const INSTANT: u64 = 1 << 63;

impl Bell {
    /// Tells it that it is now.
    pub fn ring(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let nanoseconds =
            u64::try_from(now.tv_sec).unwrap_or(0) * NANO + u64::try_from(now.tv_nsec).unwrap_or(0);
        // A keeper that is gone keeps nothing.
        let _ = rustix::io::write(&self.0, &(nanoseconds | INSTANT).to_le_bytes());
    }
}

const NANO: u64 = 1_000_000_000;

/// The instant that a bell has told.
fn instant(told: u64) -> Option<Timespec> {
    let nanoseconds = told.checked_sub(INSTANT)?;
    Some(Timespec {
        tv_sec: i64::try_from(nanoseconds / NANO).ok()?,
        tv_nsec: i64::try_from(nanoseconds % NANO).ok()?,
    })
}

/// Runs a keeper, whose command is at the other end of standard input.
pub fn run(paths: Paths, id: &str) -> Result<()> {
    rustix::process::setsid().map_err(Error::system("begin a session"))?;
    let mut forwarder = forwarder(&paths, id);
    // The command hears that it listens; one that is gone hears nothing.
    let _ = rustix::io::write(std::io::stdout(), &[1]);
    // From the lock on the container sends nothing from here. One that moves announces itself where it is
    // being built, before the command is over; its other host holds what is sent after it.
    let (mut locked, mut sent) = (false, false);
    let told = loop {
        let stdin = std::io::stdin();
        if let Some((forwarder, _)) = &mut forwarder {
            let mut keep = || forwarder.run(stdin.as_fd(), locked);
            while keep().map_err(Error::system("keep packets"))? == Ended::Sent {
                sent = true;
            }
        }
        let mut told = [0; 8];
        // Unbuffered, so that whatever is there can be polled for.
        if rustix::io::read(&stdin, &mut told) != Ok(told.len()) {
            // What is found true of the container is made true of its lock.
            return match Host::open(paths.clone())?.find_locked(id) {
                Ok((record, _lock)) => crate::network::sweep(&paths, &record.config),
                Err(Error::NoSuchContainer(_)) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let told = u64::from_le_bytes(told);
        match (instant(told), &mut forwarder) {
            (Some(instant), Some((forwarder, _))) => {
                forwarder.forget_before(instant);
                locked = true;
            }
            (Some(_), None) => {}
            (None, _) => break told,
        }
    };
    match told {
        0 => Ok(()),
        seconds => {
            let fail = "wait for the end of a lock";
            let timer = timer(seconds).map_err(Error::system(fail))?;
            if let Some((mut forwarder, network)) = forwarder {
                // Without it peers wait for their timers.
                let ended = match sent {
                    true => Ok(Ended::Sent),
                    false => forwarder.run(timer.as_fd(), true),
                };
                if matches!(ended, Ok(Ended::Sent)) {
                    let departed = follow(&mut forwarder, &network, id);
                    departed.map_err(Error::network)?;
                }
                if network.locks_inside() && matches!(ended, Ok(Ended::Sent | Ended::Back)) {
                    return Ok(());
                }
            }
            wait(&timer).map_err(Error::system(fail))?;
            Host::open(paths)?.end_expired_locks()
        }
    }
}

/// Sends on what still comes for a container that is somewhere else, and ends its lock meanwhile: it
/// may come back soon.
fn follow(
    forwarder: &mut Forwarder,
    network: &Network,
    id: &str,
) -> std::result::Result<(), NetworkError> {
    std::thread::scope(|scope| {
        let departed = scope.spawn(|| network.departed(id));
        // Without it peers wait for their timers.
        let _ = forwarder.follow(FOLLOWING);
        match departed.join() {
            Ok(departed) => departed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What is to be kept for a container of a segment until it is somewhere else.
fn forwarder(paths: &Paths, id: &str) -> Option<(Forwarder, Network)> {
    let record = Host::open(paths.clone()).ok()?.store.get(id).ok()??;
    if record.config.network != NetworkMode::Bridge {
        return None;
    }
    let network = crate::network::of(paths, &record.config).ok()?;
    Some((network.forwarder(id).ok()??, network))
}

/// A timer that ends after so many seconds, also if the machine sleeps meanwhile.
fn timer(seconds: u64) -> rustix::io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let end = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    let once = Itimerspec { it_interval: zero, it_value: end };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(timer)
}

fn wait(timer: &OwnedFd) -> rustix::io::Result<()> {
    while let Err(error) = rustix::io::read(timer, &mut [0; 8]) {
        if error != rustix::io::Errno::INTR {
            return Err(error);
        }
    }
    Ok(())
}

/// Ends the keeper of a lock that has ended.
pub(crate) fn dismiss(lock: &arctern_net::Lock) {
    dismiss_process(lock.keeper);
}

/// Ends a keeper, by pid and start time.
pub(crate) fn dismiss_process(keeper: Option<(i32, u64)>) {
    let Some((pid, start)) = keeper else { return };
    let own = i32::try_from(std::process::id()).ok();
    if own == Some(pid) {
        return;
    }
    if let Some(process) = (ProcessId { pid, start }).open()
        && process.signal(Signal::KILL).is_ok()
    {
        let _ = process.wait(Some(Duration::from_secs(1)));
    }
}
