//! `/proc/PID/limits`: readable where prlimit(2) is not (peer with another uid).

use super::ParseError;
use crate::Pid;

/// Number of resource limits (RLIM_NLIMITS).
pub const COUNT: usize = 16;

/// A soft and a hard limit; [`u64::MAX`] is «unlimited».
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Limit in force.
    pub soft: u64,
    /// Ceiling of the soft limit.
    pub hard: u64,
}

/// Names in the file, in the order of the `RLIMIT_*` numbers (linux/resource.h).
pub const NAMES: [&str; COUNT] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Parses a limits file into limits ordered by `RLIMIT_*` number.
pub fn parse(text: &str) -> Result<[Limit; COUNT], ParseError> {
    let mut limits = [Limit { soft: u64::MAX, hard: u64::MAX }; COUNT];
    for (limit, name) in limits.iter_mut().zip(NAMES) {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .ok_or_else(|| ParseError::new("a limit", name))?;
        let mut values = line[name.len()..].split_ascii_whitespace();
        let mut next = || match values.next() {
            Some("unlimited") => Some(u64::MAX),
            word => word?.parse().ok(),
        };
        let bad = || ParseError::new("a limit", line);
        *limit = Limit { soft: next().ok_or_else(bad)?, hard: next().ok_or_else(bad)? };
    }
    Ok(limits)
}

/// Reads the limits of a process.
pub fn read(pid: Pid) -> std::io::Result<[Limit; COUNT]> {
    Ok(parse(&super::read(pid, "limits")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_our_own() {
        let limits = read(Pid(std::process::id() as i32)).unwrap();
        assert!(limits[7].soft <= limits[7].hard, "open files");
    }

    #[test]
    fn a_missing_limit_is_an_error() {
        assert!(parse("Limit  Soft Limit  Hard Limit  Units\nMax cpu time 1 2 s\n").is_err());
    }
}
