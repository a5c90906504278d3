//! The clocks of a time namespace.
//!
//! The image holds what the clocks showed inside at the capture. A restored tree always gets a time
//! namespace in which they go on from there, as CRIU does it too: monotonic time never jumps.

use std::io;

use arctern_image::messages::{TimensEntry, Timespec};
use arctern_sys::{Pid, proc};
use nix::time::{ClockId, clock_gettime};

const NANOS: i128 = 1_000_000_000;

/// Nanoseconds of the monotonic and the boot-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: i128,
    /// CLOCK_BOOTTIME.
    pub boottime: i128,
}

impl Clocks {
    /// The clocks of the initial time namespace, now.
    pub fn host() -> io::Result<Self> {
        let own = offsets_of(Pid(std::process::id() as i32))?;
        Ok(Clocks {
            monotonic: now(ClockId::CLOCK_MONOTONIC)? - own.monotonic,
            boottime: now(ClockId::CLOCK_BOOTTIME)? - own.boottime,
        })
    }

    /// The clocks as `pid` sees them, now.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Clocks::host()?.plus(offsets_of(pid)?))
    }

    /// The clocks that an image holds; None if they are beyond what a kernel accepts.
    pub fn from_entry(entry: &TimensEntry) -> Option<Self> {
        let nanos = |time: &Timespec| {
            let limit = i64::MAX as u64 / NANOS as u64 / 2;
            (time.tv_sec < limit && time.tv_nsec < NANOS as u64)
                .then(|| i128::from(time.tv_sec) * NANOS + i128::from(time.tv_nsec))
        };
        Some(Clocks { monotonic: nanos(&entry.monotonic)?, boottime: nanos(&entry.boottime)? })
    }

    /// As the image holds them.
    pub fn to_entry(self) -> TimensEntry {
        let timespec = |nanos: i128| Timespec {
            tv_sec: nanos.div_euclid(NANOS) as u64,
            tv_nsec: nanos.rem_euclid(NANOS) as u64,
        };
        TimensEntry { monotonic: timespec(self.monotonic), boottime: timespec(self.boottime) }
    }

    fn plus(self, offsets: Clocks) -> Self {
        Clocks {
            monotonic: self.monotonic + offsets.monotonic,
            boottime: self.boottime + offsets.boottime,
        }
    }

    /// What to write into `timens_offsets` so that these clocks show now.
    pub fn offsets_text(self, host: Clocks) -> String {
        let line = |name: &str, offset: i128| {
            format!("{name} {} {}\n", offset.div_euclid(NANOS), offset.rem_euclid(NANOS))
        };
        line("monotonic", self.monotonic - host.monotonic)
            + &line("boottime", self.boottime - host.boottime)
    }
}

fn now(clock: ClockId) -> io::Result<i128> {
    let time = clock_gettime(clock)?;
    Ok(i128::from(time.tv_sec()) * NANOS + i128::from(time.tv_nsec()))
}

/// The offsets of a process's time namespace; none on kernels without time namespaces.
fn offsets_of(pid: Pid) -> io::Result<Clocks> {
    match proc::read(pid, "timens_offsets") {
        Ok(text) => {
            parse_offsets(&text).ok_or_else(|| proc::ParseError::new("clock offsets", &text).into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Clocks { monotonic: 0, boottime: 0 })
        }
        Err(error) => Err(error),
    }
}

fn parse_offsets(text: &str) -> Option<Clocks> {
    let mut clocks = Clocks { monotonic: 0, boottime: 0 };
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanos: i64 = words.next()?.parse().ok()?;
        let offset = i128::from(seconds) * NANOS + i128::from(nanos);
        match name {
            "monotonic" => clocks.monotonic = offset,
            "boottime" => clocks.boottime = offset,
            _ => {}
        }
    }
    Some(clocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_written() {
        let read =
            parse_offsets("monotonic           -2         1\nboottime             3         0\n");
        let read = read.unwrap();
        assert_eq!(read, Clocks { monotonic: -2 * NANOS + 1, boottime: 3 * NANOS });
        let host = Clocks { monotonic: 10 * NANOS, boottime: 20 * NANOS };
        let text = host.plus(read).offsets_text(host);
        assert_eq!(text, "monotonic -2 1\nboottime 3 0\n");
    }

    #[test]
    fn an_image_keeps_the_clocks_and_impossible_ones_are_refused() {
        let clocks = Clocks::of(Pid(std::process::id() as i32)).unwrap();
        assert_eq!(Clocks::from_entry(&clocks.to_entry()), Some(clocks));
        let mut entry = clocks.to_entry();
        entry.monotonic.tv_nsec = 1_000_000_000;
        assert_eq!(Clocks::from_entry(&entry), None);
        entry.monotonic = Timespec { tv_sec: u64::MAX, tv_nsec: 0 };
        assert_eq!(Clocks::from_entry(&entry), None);
    }
}
