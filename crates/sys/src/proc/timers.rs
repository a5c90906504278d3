//! `/proc/PID/timers`: POSIX timers (CONFIG_CHECKPOINT_RESTORE).

use super::ParseError;
use crate::Pid;

/// Whom a timer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// A signal to the process.
    Signal,
    /// Nobody.
    None,
    /// SIGEV_THREAD as the C library asks for it.
    Thread,
    /// A signal to this thread, as the reader of the file sees it.
    SignalTo(i32),
}

/// One timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PosixTimer {
    /// Its id.
    pub id: u32,
    /// Signal number.
    pub signal: u32,
    /// `sigev_value`.
    pub value: u64,
    /// Notification.
    pub notify: Notify,
    /// Clock.
    pub clock: i32,
}

/// Parses a timers file: four lines a timer.
pub fn parse(text: &str) -> Result<Vec<PosixTimer>, ParseError> {
    let mut timers = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let bad = |what: &'static str, line: &str| ParseError::new(what, line);
        let value = |line: &str, key: &str| {
            line.strip_prefix(key)
                .map(|v| v.trim().to_owned())
                .ok_or_else(|| ParseError::new("a timer line", line))
        };
        let id = value(line, "ID:")?.parse().map_err(|_| bad("a timer id", line))?;
        let mut next = || lines.next().ok_or_else(|| bad("four lines a timer", line));
        let signal_line = value(next()?, "signal:")?;
        let (signal, sival) =
            signal_line.split_once('/').ok_or_else(|| bad("a timer signal", &signal_line))?;
        let notify_line = value(next()?, "notify:")?;
        let clock_line = value(next()?, "ClockID:")?;
        let (how, whom) =
            notify_line.split_once('/').ok_or_else(|| bad("a notification", &notify_line))?;
        let notify = match (how, whom.split_once('.')) {
            ("none", _) => Notify::None,
            ("thread", _) => Notify::Thread,
            ("signal", Some(("tid", tid))) => {
                Notify::SignalTo(tid.parse().map_err(|_| bad("a thread id", &notify_line))?)
            }
            ("signal", _) => Notify::Signal,
            _ => return Err(bad("a notification", &notify_line)),
        };
        timers.push(PosixTimer {
            id,
            signal: signal.parse().map_err(|_| bad("a signal", &signal_line))?,
            value: u64::from_str_radix(sival, 16).map_err(|_| bad("a value", &signal_line))?,
            notify,
            clock: clock_line.parse().map_err(|_| bad("a clock", &clock_line))?,
        });
    }
    Ok(timers)
}

/// Reads the timers of a process.
pub fn read(pid: Pid) -> std::io::Result<Vec<PosixTimer>> {
    Ok(parse(&super::read(pid, "timers")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_timers() {
        let text = "ID: 0\nsignal: 10/00000000deadbeef\nnotify: signal/pid.77\nClockID: 1\n\
                    ID: 3\nsignal: 34/0\nnotify: signal/tid.78\nClockID: 0\n";
        let timers = parse(text).unwrap();
        assert_eq!(timers.len(), 2);
        assert_eq!(timers[0].value, 0xdead_beef);
        assert_eq!(timers[1].notify, Notify::SignalTo(78));
        assert!(parse("ID: 0\nsignal: 10/0\n").is_err());
    }
}
