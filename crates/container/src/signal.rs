//! Signals by name, as `kill --signal` and `--stop-signal` take them.

use crate::error::{Error, Result};

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// The number of `SIGTERM`, `term`, `15` or `RTMIN+3`.
pub fn parse(text: &str) -> Result<i32> {
    let bad =
        || Error::Invalid(format!("`{text}` is no signal: give a name such as TERM or a number"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let find = |name: &str| NAMES.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    let number = match name.split_once(['+', '-']) {
        None => find(name),
        Some((base, offset)) if base.starts_with("RT") => {
            let offset: i32 = offset.parse().map_err(|_| bad())?;
            let sign = if name.contains('+') { 1 } else { -1 };
            find(base).and_then(|b| b.checked_add(sign * offset)).filter(|n| (34..=64).contains(n))
        }
        Some(_) => None,
    };
    number.ok_or_else(bad)
}

/// The name of a signal, `SIGTERM`, or its number.
#[must_use]
pub fn name(number: i32) -> String {
    match NAMES.iter().find(|(_, n)| *n == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in
            [("TERM", 15), ("sigkill", 9), ("1", 1), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse(text).expect(text), number);
        }
        for bad in ["", "0", "65", "NOPE", "RTMIN+99", "TERM+1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(name(15), "SIGTERM");
    }
}
