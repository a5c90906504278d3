//! The health checks of a container, one after the other, each a command of its own: whatever it
//! does, the shim goes on serving.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::paths::Paths;
use crate::policy::HealthCheck;

/// Time between two checks when none was given.
const INTERVAL: Duration = Duration::from_secs(30);

/// Checks that are due from time to time.
#[derive(Debug)]
pub(crate) struct Checks {
    paths: Paths,
    id: String,
    interval: Duration,
    timer: OwnedFd,
    running: Option<(Child, OwnedFd)>,
}

impl Checks {
    /// The first check is due after one interval. None for a container without checks.
    pub(crate) fn new(
        paths: &Paths,
        id: &str,
        check: Option<&HealthCheck>,
    ) -> io::Result<Option<Checks>> {
        let Some(check) = check.filter(|check| check.command().is_some()) else { return Ok(None) };
        let interval = match Duration::from_nanos(check.interval) {
            Duration::ZERO => INTERVAL,
            interval => interval,
        };
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let (paths, id) = (paths.clone(), id.to_owned());
        let checks = Checks { paths, id, interval, timer, running: None };
        checks.set_timer()?;
        Ok(Some(checks))
    }

    /// What becomes readable when something is to be done: the end of the check that runs, or the
    /// time of the next one.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.running.as_ref().map_or(self.timer.as_fd(), |(_, pidfd)| pidfd.as_fd())
    }

    /// Takes in the end of a check, or starts one.
    pub(crate) fn go_on(&mut self) -> io::Result<()> {
        if let Some((mut child, _)) = self.running.take() {
            child.wait()?;
            return self.set_timer();
        }
        let mut expirations = [0u8; 8];
        if rustix::io::read(&self.timer, &mut expirations).is_err() {
            return Ok(());
        }
        match self.start() {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                tracing::error!("cannot check the health of container {}: {error}", self.id);
                self.set_timer()?;
            }
        }
        Ok(())
    }

    fn start(&self) -> io::Result<(Child, OwnedFd)> {
        let child = Command::new("/proc/self/exe")
            .arg0("arctern")
            .arg("--root")
            .arg(&self.paths.root)
            .arg("--runroot")
            .arg(&self.paths.runroot)
            .args(["healthcheck", "run", &self.id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
        Ok((child, pidfd))
    }

    fn set_timer(&self) -> io::Result<()> {
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(self.interval.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: self.interval.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        Ok(())
    }
}

impl Drop for Checks {
    /// The container has ended, and with it the check's process in it: its command sees that.
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.wait();
        }
    }
}
