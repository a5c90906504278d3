//! `/proc/PID/cgroup`: the control groups of a task, one a hierarchy.
//!
//! Source: cgroups(7). Paths are relative to the cgroup namespace of whoever reads the file; a path
//! outside of it begins with `/..`.

use std::io;

use super::ParseError;
use crate::Pid;

/// The group of a task in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership {
    /// `cpu,cpuacct`, `name=systemd`, and nothing for the unified hierarchy (version 2).
    pub controllers: String,
    /// Path of the group.
    pub path: String,
    /// Number of the hierarchy, 0 for the unified one.
    pub hierarchy: u32,
}

/// The memberships of a `/proc/PID/cgroup` text, sorted by controllers.
pub fn parse(text: &str) -> Result<Vec<Membership>, ParseError> {
    let mut all = text
        .lines()
        .map(|line| {
            let mut fields = line.splitn(3, ':');
            let mut next = || fields.next().ok_or_else(|| ParseError::new("a control group", line));
            let hierarchy = next()?.parse().map_err(|_| ParseError::new("a hierarchy", line))?;
            let controllers = next()?.to_owned();
            let path = next()?;
            // The kernel marks groups that were removed.
            let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
            Ok(Membership { controllers, path, hierarchy })
        })
        .collect::<Result<Vec<_>, ParseError>>()?;
    all.sort();
    Ok(all)
}

/// Reads `/proc/PID/task/TID/cgroup`.
pub fn read(pid: Pid, tid: Pid) -> io::Result<Vec<Membership>> {
    Ok(parse(&super::read_single(pid, &format!("task/{tid}/cgroup"))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchies_are_sorted_by_controllers() {
        let text = "9:name=systemd:/user:1\n4:cpu,cpuacct:/x (deleted)\n0::/init.scope\n";
        let found: Vec<_> = parse(text)
            .unwrap()
            .into_iter()
            .map(|m| (m.hierarchy, m.controllers, m.path))
            .collect();
        let expected =
            [(0, "", "/init.scope"), (4, "cpu,cpuacct", "/x"), (9, "name=systemd", "/user:1")];
        assert_eq!(found, expected.map(|(h, c, p)| (h, c.to_owned(), p.to_owned())));
    }

    #[test]
    fn broken_lines_are_errors() {
        assert!(parse("1:x\n").is_err());
        assert!(parse("a:x:/\n").is_err());
    }
}
