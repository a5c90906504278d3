//! A writer that keeps to a rate: `--bandwidth`.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Most bytes that are written between two looks at the clock.
const PIECE: usize = 64 << 10;

/// What may be made up for after a pause.
const BURST: Duration = Duration::from_millis(20);

/// When the next bytes may go.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Bytes in a second.
    rate: u64,
    /// From when on the next ones may.
    free: Instant,
}

impl Bucket {
    /// Takes so many bytes out; how long they have to wait.
    fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.free = self.free.max(earliest);
        let wait = self.free.saturating_duration_since(now);
        self.free += Duration::from_secs_f64(bytes as f64 / self.rate.max(1) as f64);
        wait
    }
}

/// Writes no faster than it may; without a limit as fast as it can.
#[derive(Debug)]
pub struct Throttle<W> {
    to: W,
    limit: Option<(Bucket, OwnedFd)>,
}

impl<W: Write> Throttle<W> {
    /// `rate` is in bytes a second.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(to: W, rate: Option<u64>) -> io::Result<Throttle<W>> {
        let limit = match rate {
            Some(rate) => {
                let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
                Some((Bucket { rate, free: Instant::now() }, timer))
            }
            None => None,
        };
        Ok(Throttle { to, limit })
    }
}

impl<W: Write> Write for Throttle<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((bucket, timer)) = &mut self.limit else { return self.to.write(bytes) };
        let piece = &bytes[..bytes.len().min(PIECE)];
        let wait = bucket.take(piece.len(), Instant::now());
        if !wait.is_zero() {
            sleep_on(timer, wait)?;
        }
        self.to.write_all(piece)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Waits.
pub(crate) fn pause(time: Duration) -> io::Result<()> {
    sleep_on(&timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?, time)
}

/// Reads the timer when it is over.
fn sleep_on(timer: &OwnedFd, wait: Duration) -> io::Result<()> {
    let value = Timespec::try_from(wait).map_err(|_| io::ErrorKind::InvalidInput)?;
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    loop {
        match rustix::io::read(timer, &mut [0; 8]) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_a_pause_is_not_made_up_for() {
        let begin = Instant::now();
        let mut bucket = Bucket { rate: 1000, free: begin };
        assert_eq!(bucket.take(500, begin), Duration::ZERO);
        assert_eq!(bucket.take(500, begin), Duration::from_millis(500));
        assert_eq!(bucket.take(1, begin), Duration::from_secs(1));
        let later = begin + Duration::from_secs(60);
        assert_eq!(bucket.take(1000, later), Duration::ZERO);
        assert_eq!(bucket.take(1, later), Duration::from_millis(980));
    }

    #[test]
    fn everything_arrives() {
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let mut to = Vec::new();
        Throttle::new(&mut to, Some(50 << 20)).unwrap().write_all(&bytes).unwrap();
        assert_eq!(to, bytes);
    }
}
