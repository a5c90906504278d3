//! `/proc/PID/status`.

use super::ParseError;
use crate::Pid;

/// What we use of a task's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// State letter: R, S, D, T, t, Z, X, I.
    pub state: char,
    /// Real, effective, saved and file-system user id.
    pub uids: [u32; 4],
    /// The same of the group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File creation mask.
    pub umask: u32,
    /// Thread group ids, outermost namespace first.
    pub ns_tgid: Vec<i32>,
    /// Thread ids, outermost namespace first.
    pub ns_pid: Vec<i32>,
    /// Process group ids, outermost namespace first.
    pub ns_pgid: Vec<i32>,
    /// Session ids, outermost namespace first.
    pub ns_sid: Vec<i32>,
    /// The tracer, 0 without one.
    pub tracer: i32,
    /// Thread's own pending signals.
    pub pending: u64,
    /// Pending signals of the thread group.
    pub shared_pending: u64,
    /// Blocked signals.
    pub blocked: u64,
    /// Ignored signals.
    pub ignored: u64,
    /// Caught signals.
    pub caught: u64,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// no_new_privs.
    pub no_new_privs: bool,
    /// 0 disabled, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of filters (kernel 5.9).
    pub seccomp_filters: u32,
    /// Whether transparent huge pages are enabled (PR_SET_THP_DISABLE).
    pub thp_enabled: bool,
}

impl Status {
    /// The pid inside the innermost pid namespace.
    pub fn inner_pid(&self) -> i32 {
        self.ns_pid.last().copied().unwrap_or(0)
    }
}

/// Parses the text of a status file.
pub fn parse(text: &str) -> Result<Status, ParseError> {
    let mut status = Status { thp_enabled: true, ..Status::default() };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let bad = || ParseError::new("a status line", line);
        let hex = || u64::from_str_radix(value, 16).map_err(|_| bad());
        let number = || value.parse::<u32>().map_err(|_| bad());
        match key {
            "State" => status.state = value.chars().next().ok_or_else(bad)?,
            "Uid" => status.uids = four(value).ok_or_else(bad)?,
            "Gid" => status.gids = four(value).ok_or_else(bad)?,
            "Groups" => status.groups = list(value).ok_or_else(bad)?,
            "Umask" => status.umask = u32::from_str_radix(value, 8).map_err(|_| bad())?,
            "NStgid" => status.ns_tgid = list(value).ok_or_else(bad)?,
            "NSpid" => status.ns_pid = list(value).ok_or_else(bad)?,
            "NSpgid" => status.ns_pgid = list(value).ok_or_else(bad)?,
            "NSsid" => status.ns_sid = list(value).ok_or_else(bad)?,
            "TracerPid" => status.tracer = value.parse().map_err(|_| bad())?,
            "SigPnd" => status.pending = hex()?,
            "ShdPnd" => status.shared_pending = hex()?,
            "SigBlk" => status.blocked = hex()?,
            "SigIgn" => status.ignored = hex()?,
            "SigCgt" => status.caught = hex()?,
            "CapInh" => status.capabilities[0] = hex()?,
            "CapPrm" => status.capabilities[1] = hex()?,
            "CapEff" => status.capabilities[2] = hex()?,
            "CapBnd" => status.capabilities[3] = hex()?,
            "CapAmb" => status.capabilities[4] = hex()?,
            "NoNewPrivs" => status.no_new_privs = number()? != 0,
            "Seccomp" => status.seccomp = number()?,
            "Seccomp_filters" => status.seccomp_filters = number()?,
            "THP_enabled" => status.thp_enabled = number()? != 0,
            _ => {}
        }
    }
    Ok(status)
}

/// Reads and parses the status of a process, or of a thread where `tid` differs.
pub fn read(pid: Pid, tid: Pid) -> std::io::Result<Status> {
    Ok(parse(&super::read_single(pid, &format!("task/{tid}/status"))?)?)
}

fn list<T: std::str::FromStr>(value: &str) -> Option<Vec<T>> {
    value.split_ascii_whitespace().map(|w| w.parse().ok()).collect()
}

fn four(value: &str) -> Option<[u32; 4]> {
    list(value)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_task_of_kernel_6_18() {
        let status = parse(
            "Name:\tnginx: worker\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4121\nPid:\t4121\n\
             TracerPid:\t0\nUid:\t33\t33\t33\t33\nGid:\t33\t33\t33\t33\nGroups:\t33 44 \n\
             NStgid:\t4121\t7\nNSpid:\t4121\t7\nNSpgid:\t4100\t1\nNSsid:\t4100\t1\n\
             SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000000\n\
             SigIgn:\t0000000040001000\nSigCgt:\t0000000198016a07\nCapInh:\t0000000000000000\n\
             CapBnd:\t00000000800405fb\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n\
             THP_enabled:\t0\n",
        )
        .unwrap();
        assert_eq!(status.state, 'S');
        assert_eq!(status.ns_pid, [4121, 7]);
        assert_eq!(status.inner_pid(), 7);
        assert_eq!(status.groups, [33, 44]);
        assert_eq!(status.umask, 0o022);
        assert_eq!(status.shared_pending, 0x4000);
        assert_eq!(status.capabilities[3], 0x8004_05fb);
        assert!(status.no_new_privs && !status.thp_enabled);
        assert_eq!(status.seccomp, 2);
    }

    #[test]
    fn reads_our_own() {
        let me = Pid(std::process::id() as i32);
        assert_eq!(read(me, me).unwrap().ns_tgid[0], me.0);
    }
}
