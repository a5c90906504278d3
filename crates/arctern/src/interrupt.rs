//! Signals that are to end a command in an orderly way: the first one is noted, the second ends the
//! program at once.

use std::io;

use arctern_container::cancel::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Notes signals from here on. One that is ignored (`nohup`) stays ignored.
pub fn listen() -> io::Result<Cancel> {
    let cancel = Cancel::default();
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status")?);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if ignored & (1 << (signal - 1)) == 0 {
            // In this order: the first signal finds the flag unset.
            signal_hook::flag::register_conditional_default(signal, cancel.flag())?;
            signal_hook::flag::register(signal, cancel.flag())?;
        }
    }
    Ok(cancel)
}

/// The ignored signals of `/proc/PID/status`, one bit each.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
