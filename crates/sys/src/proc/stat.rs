//! `/proc/PID/stat`.

use super::ParseError;
use crate::Pid;

/// What we use of a task's stat line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Name of the thread.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal, 0 without one.
    pub tty_nr: i32,
    /// Foreground process group of the terminal, -1 without one.
    pub tpgid: i32,
    /// `PF_*` flags of the kernel (linux/sched.h).
    pub flags: u32,
    /// Nice value.
    pub nice: i32,
    /// Start after boot in clock ticks.
    pub start_time: u64,
    /// Text and data bounds and the initial stack pointer.
    pub start_code: u64,
    /// See `start_code`.
    pub end_code: u64,
    /// See `start_code`.
    pub start_stack: u64,
    /// Signal at exit.
    pub exit_signal: i32,
    /// Processor on which it ran last.
    pub processor: usize,
    /// Real-time priority.
    pub rt_priority: u32,
    /// Scheduling policy.
    pub policy: u32,
    /// See `start_code`.
    pub start_data: u64,
    /// See `start_code`.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Bounds of the command line.
    pub arg_start: u64,
    /// See `arg_start`.
    pub arg_end: u64,
    /// Bounds of the environment.
    pub env_start: u64,
    /// See `env_start`.
    pub env_end: u64,
    /// Exit status as waitpid(2) gives it.
    pub exit_code: i32,
}

/// Parses a stat line. The name may hold anything, parentheses and line breaks too.
pub fn parse(text: &str) -> Result<Stat, ParseError> {
    let bad = || ParseError::new("a stat line", text);
    let open = text.find('(').ok_or_else(bad)?;
    let close = text.rfind(')').ok_or_else(bad)?;
    let fields: Vec<&str> =
        text.get(close + 1..).ok_or_else(bad)?.split_ascii_whitespace().collect();
    // proc(5) counts from 1; the state is field 3.
    let field = |n: usize| fields.get(n - 3).copied().ok_or_else(bad);
    fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
        text.parse().ok()
    }
    macro_rules! get {
        ($n:expr) => {
            number(field($n)?).ok_or_else(bad)?
        };
    }
    Ok(Stat {
        comm: text.get(open + 1..close).ok_or_else(bad)?.to_owned(),
        state: field(3)?.chars().next().ok_or_else(bad)?,
        ppid: get!(4),
        pgrp: get!(5),
        session: get!(6),
        tty_nr: get!(7),
        tpgid: get!(8),
        flags: get!(9),
        nice: get!(19),
        start_time: get!(22),
        start_code: get!(26),
        end_code: get!(27),
        start_stack: get!(28),
        exit_signal: get!(38),
        processor: get!(39),
        rt_priority: get!(40),
        policy: get!(41),
        start_data: get!(45),
        end_data: get!(46),
        start_brk: get!(47),
        arg_start: get!(48),
        arg_end: get!(49),
        env_start: get!(50),
        env_end: get!(51),
        exit_code: get!(52),
    })
}

/// Reads and parses the stat line of a process.
pub fn read(pid: Pid) -> std::io::Result<Stat> {
    Ok(parse(&super::read_single(pid, "stat")?)?)
}

/// Reads and parses the stat line of a thread.
pub fn read_thread(pid: Pid, tid: Pid) -> std::io::Result<Stat> {
    Ok(parse(&super::read_single(pid, &format!("task/{tid}/stat"))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces() {
        let text = "12 (a) b (c) S 1 12 12 34816 12 4194560 100 0 0 0 1 2 0 0 20 5 1 0 777 1000 \
                    200 18446744073709551615 4096 8192 140000 0 0 0 0 0 65538 0 0 0 17 1 0 0 0 0 \
                    0 9000 9500 10000 20000 20010 20010 20100 256";
        let stat = parse(text).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!(stat.tty_nr, 34816);
        assert_eq!(stat.nice, 5);
        assert_eq!(stat.start_time, 777);
        assert_eq!(stat.start_stack, 140000);
        assert_eq!(stat.env_end, 20100);
        assert_eq!(stat.exit_code, 256);
    }

    #[test]
    fn a_short_line_is_an_error() {
        assert!(parse("12 (x) S 1 2").is_err());
        assert!(parse("").is_err());
    }
}
