//! In which order mounts are made and attached. Pure, and printable for tests and dry runs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::path::Path;

use arctern_image::messages::{Fstype, MntEntry};

use super::table::{self, Source, Uncarried};

/// One mount of the plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Index among the images' mounts.
    pub index: usize,
    /// Where it comes from.
    pub source: Source,
    /// The mount that it is attached to, and the path below that one's root. None for the root.
    pub place: Option<(usize, String)>,
}

/// A change of propagation, made when every mount is in place. Indices are those of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// A peer group of its own.
    Share(usize),
    /// The second joins the group and the masters of the first.
    Join(usize, usize),
    /// It becomes a slave of the group that it is in.
    Enslave(usize),
    /// It cannot be bind mounted.
    Unbindable(usize),
}

/// Mounts in the order of their attachment, then propagation.
#[derive(Debug)]
pub struct Plan {
    /// What the images say, newest mount first.
    pub entries: Vec<MntEntry>,
    /// The root comes first.
    pub mounts: Vec<Planned>,
    /// In order.
    pub propagation: Vec<Propagation>,
    /// Mounts that are slaves of a group of the host's and stay so.
    pub outer_slaves: Vec<usize>,
    /// Mounts that were slaves of a group of the host's and cannot be again.
    pub lost_masters: Vec<usize>,
    /// Mounts that are not made, since what they showed cannot be there.
    pub left_out: Vec<usize>,
}

impl Plan {
    /// Orders the mounts of an image. `terminals` are the names that exist in a new devpts.
    ///
    /// # Errors
    /// The mounts that cannot be made, with the reasons.
    pub fn new(
        entries: Vec<MntEntry>,
        terminals: &[String],
    ) -> Result<Self, Vec<(String, Uncarried)>> {
        let sources = table::sources(&entries);
        let uncarried: Vec<_> = entries
            .iter()
            .zip(&sources)
            .filter_map(|(entry, source)| Some((entry.mountpoint.clone(), source.clone().err()?)))
            .collect();
        if !uncarried.is_empty() {
            return Err(uncarried);
        }
        let sources: Vec<Source> = sources.into_iter().flatten().collect();
        let by_id: BTreeMap<u32, usize> =
            entries.iter().enumerate().map(|(i, e)| (e.mnt_id, i)).collect();
        let places: Vec<Option<(usize, String)>> = entries
            .iter()
            .zip(&sources)
            .map(|(entry, source)| {
                if *source == Source::Root {
                    return None;
                }
                let parent = *by_id.get(&entry.parent_mnt_id)?;
                let below =
                    Path::new(&entry.mountpoint).strip_prefix(&entries[parent].mountpoint).ok()?;
                let below = below.to_string_lossy().into_owned();
                Some((parent, if below.is_empty() { ".".to_owned() } else { below }))
            })
            .collect();
        let mounts = order(&sources, &places);
        if mounts.len() != entries.len() {
            let left = (0..entries.len()).filter(|i| !mounts.iter().any(|m| m.index == *i));
            return Err(left
                .map(|i| (entries[i].mountpoint.clone(), Uncarried::NoParent))
                .collect());
        }
        let (propagation, outer) = propagation(&entries);
        // Only what comes from the host can be a slave of the host.
        let (outer_slaves, lost_masters) = outer
            .into_iter()
            .partition(|&i| matches!(sources[i], Source::Root | Source::External(_)));
        let left_out = Vec::new();
        let mut plan = Plan { entries, mounts, propagation, outer_slaves, lost_masters, left_out };
        // A new devpts has those terminals only whose masters are made with it; others cannot be
        // bound, as on /dev/console.
        let missing = |m: &&Planned| plan.terminal(m).is_some_and(|name| !terminals.contains(name));
        let terminals: Vec<usize> = plan.mounts.iter().filter(missing).map(|m| m.index).collect();
        for index in terminals {
            plan.leave_out(index);
        }
        Ok(plan)
    }

    /// The name in its devpts of the terminal that is bound by this mount.
    fn terminal<'a>(&self, mount: &'a Planned) -> Option<&'a String> {
        match &mount.source {
            Source::Bind(from, below) => (self.entries[*from].fstype == Fstype::Devpts as u32
                && !matches!(below.as_str(), "" | "ptmx"))
            .then_some(below),
            _ => None,
        }
    }

    /// Takes a mount out of the plan, with what is mounted on it and what is a piece of it.
    pub fn leave_out(&mut self, index: usize) {
        let mut out = vec![index];
        // Parents and sources come before what needs them.
        for mount in &self.mounts {
            let needs = |other: usize| out.contains(&other);
            let on = mount.place.as_ref().is_some_and(|(parent, _)| needs(*parent));
            let of = matches!(&mount.source, Source::Bind(from, _) if needs(*from));
            if (on || of) && !out.contains(&mount.index) {
                out.push(mount.index);
            }
        }
        self.mounts.retain(|mount| !out.contains(&mount.index));
        self.propagation.retain(|step| match step {
            Propagation::Share(a) | Propagation::Enslave(a) | Propagation::Unbindable(a) => {
                !out.contains(a)
            }
            Propagation::Join(a, b) => !out.contains(a) && !out.contains(b),
        });
        self.left_out.extend(out);
    }
}

/// Oldest first, as far as parents and sources allow.
fn order(sources: &[Source], places: &[Option<(usize, String)>]) -> Vec<Planned> {
    let count = sources.len();
    let mut waits = vec![0; count];
    let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); count];
    for index in 0..count {
        if let Some((parent, _)) = &places[index] {
            waits[index] += 1;
            waiting[*parent].push(index);
        }
        if let Source::Bind(from, _) = &sources[index] {
            waits[index] += 1;
            waiting[*from].push(index);
        }
    }
    // The newest comes first in the images: the highest index is the oldest.
    let mut ready: BinaryHeap<Reverse<Reverse<usize>>> =
        (0..count).filter(|i| waits[*i] == 0).map(|i| Reverse(Reverse(i))).collect();
    let mut mounts = Vec::with_capacity(count);
    while let Some(Reverse(Reverse(index))) = ready.pop() {
        for next in std::mem::take(&mut waiting[index]) {
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push(Reverse(Reverse(next)));
            }
        }
        mounts.push(Planned {
            index,
            source: sources[index].clone(),
            place: places[index].clone(),
        });
    }
    mounts
}

/// The steps that make peer groups and slaves, and the slaves of groups that are not in the tree.
fn propagation(entries: &[MntEntry]) -> (Vec<Propagation>, Vec<usize>) {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate().rev() {
        if let Some(group @ 1..) = entry.shared_id {
            groups.entry(group).or_default().push(index);
        }
    }
    // A group is handed on from the mount that shows most of the file system.
    for members in groups.values_mut() {
        members.sort_by_key(|&i| entries[i].root.trim_end_matches('/').len());
    }
    let master = |index: usize| entries[index].master_id.filter(|id| *id != 0);
    let mut steps = Vec::new();
    let mut outer = Vec::new();
    let mut done: Vec<u32> = Vec::new();
    // Masters before their slaves: at most as many rounds as groups.
    let mut left: Vec<u32> = groups.keys().copied().collect();
    while !left.is_empty() {
        let ready = |group: &u32| {
            master(groups[group][0]).is_none_or(|m| !groups.contains_key(&m) || done.contains(&m))
        };
        let (now, later): (Vec<u32>, Vec<u32>) = left.iter().partition(|g| ready(g));
        // A circle of masters: there is no such thing, so its links are dropped.
        let (now, later, circle) =
            if now.is_empty() { (later, Vec::new(), true) } else { (now, later, false) };
        for group in now {
            let members = &groups[&group];
            match master(members[0]) {
                Some(m) if groups.contains_key(&m) && !circle => {
                    steps.push(Propagation::Join(groups[&m][0], members[0]));
                    steps.push(Propagation::Enslave(members[0]));
                }
                Some(_) => outer.push(members[0]),
                None => {}
            }
            steps.push(Propagation::Share(members[0]));
            steps.extend(members[1..].iter().map(|&to| Propagation::Join(members[0], to)));
            done.push(group);
        }
        left = later;
    }
    for (index, entry) in entries.iter().enumerate().rev() {
        if entry.shared_id.unwrap_or(0) == 0
            && let Some(m) = master(index)
        {
            match groups.get(&m) {
                Some(members) => {
                    steps.push(Propagation::Join(members[0], index));
                    steps.push(Propagation::Enslave(index));
                }
                None => outer.push(index),
            }
        }
        if u64::from(entry.flags) & libc::MS_UNBINDABLE != 0 {
            steps.push(Propagation::Unbindable(index));
        }
    }
    (steps, outer)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |index: usize| &self.entries[index].mountpoint;
        for mount in &self.mounts {
            let entry = &self.entries[mount.index];
            write!(f, "{}: ", entry.mountpoint)?;
            match &mount.source {
                Source::Root => write!(f, "the caller's root")?,
                Source::External(key) => write!(f, "external {key}")?,
                Source::HostDevpts => write!(f, "the host's /dev/pts")?,
                Source::CgroupDir => write!(f, "the tree's control group")?,
                Source::Fresh => {
                    let name = table::file_system_name(entry.fstype).unwrap_or("?");
                    write!(f, "new {name} ({})", entry.options)?;
                }
                Source::Bind(from, below) => write!(f, "/{below} of {}", path(*from))?,
            }
            if let Some((parent, below)) = &mount.place {
                write!(f, ", on {below} of {}", path(*parent))?;
            }
            writeln!(f)?;
        }
        for step in &self.propagation {
            match step {
                Propagation::Share(a) => writeln!(f, "share {}", path(*a))?,
                Propagation::Join(a, b) => writeln!(f, "join {} to {}", path(*b), path(*a))?,
                Propagation::Enslave(a) => writeln!(f, "enslave {}", path(*a))?,
                Propagation::Unbindable(a) => writeln!(f, "unbindable {}", path(*a))?,
            }
        }
        for slave in &self.outer_slaves {
            writeln!(f, "{} stays a slave of the host", path(*slave))?;
        }
        for index in &self.left_out {
            writeln!(f, "{} is left out", path(*index))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::samples::{self, entries};
    use super::*;

    #[test]
    fn a_container() {
        let entries = entries(samples::CONTAINER, samples::CONTAINER_EXTERNALS);
        insta::assert_snapshot!(Plan::new(entries, &[]).unwrap());
    }

    #[test]
    fn peer_groups_and_slaves() {
        let text = "\
93 92 254:0 / / rw,relatime shared:9 master:4 - ext4 /dev/vda rw
115 93 0:49 / /mnt rw,relatime - tmpfs t rw
117 115 254:0 /usr/share /mnt/b ro,relatime - ext4 /dev/vda rw
118 115 0:51 / /mnt/s rw,relatime shared:1 - tmpfs s rw
119 115 0:51 / /mnt/s2 rw,relatime master:1 - tmpfs s rw
120 118 0:52 / /mnt/s/x rw,relatime shared:2 - tmpfs inner rw
121 119 0:52 / /mnt/s2/x rw,relatime shared:5 master:2 - tmpfs inner rw
122 115 0:51 /x /mnt/p rw,relatime shared:1 - tmpfs s rw
123 118 0:53 / /mnt/s rw unbindable - tmpfs over rw
";
        insta::assert_snapshot!(Plan::new(entries(text, &[]), &[]).unwrap());
    }

    #[test]
    fn a_bind_of_a_younger_mount_waits_for_it() {
        // The tmpfs was moved after it was bound: its new mount is younger.
        let text = "\
1 0 8:1 / / rw - ext4 a rw
2 1 0:5 /d /bound rw - tmpfs t rw
3 2 0:6 / /bound/inner rw - proc p rw
4 1 0:5 / /whole rw - tmpfs t rw
";
        let plan = Plan::new(entries(text, &[]), &[]).unwrap().to_string();
        let first: Vec<&str> = plan.lines().map(|l| l.split(':').next().unwrap()).collect();
        assert_eq!(first, ["/", "/whole", "/bound", "/bound/inner"]);
    }

    #[test]
    fn a_console_is_left_out_with_what_is_on_it() {
        let text = "\
1 0 8:1 / / rw - ext4 a rw
2 1 0:5 / /dev/pts rw - devpts d rw
3 1 0:5 /0 /dev/console rw - devpts d rw
4 1 0:5 /ptmx /dev/ptmx rw - devpts d rw
5 3 0:6 / /dev/console rw shared:1 - tmpfs t rw
";
        let plan = Plan::new(entries(text, &[]), &[]).unwrap();
        let made: Vec<&str> =
            plan.mounts.iter().map(|m| plan.entries[m.index].mountpoint.as_str()).collect();
        assert_eq!(made, ["/", "/dev/pts", "/dev/ptmx"]);
        assert!(plan.propagation.is_empty());
        assert_eq!(plan.left_out.len(), 2);
    }

    #[test]
    fn hostile_circles_end() {
        let text = "\
1 0 8:1 / / rw - ext4 a rw
2 1 0:5 / /a rw shared:1 master:2 - tmpfs t rw
3 1 0:6 / /b rw shared:2 master:1 - tmpfs t rw
";
        assert!(Plan::new(entries(text, &[]), &[]).is_ok());
        let text = "1 0 8:1 / / rw - ext4 a rw\n2 3 0:5 / /a rw - tmpfs t rw\n3 2 0:6 / /a rw - tmpfs t rw\n";
        let refused = Plan::new(entries(text, &[]), &[]).unwrap_err();
        assert_eq!(refused.len(), 2);
    }
}
