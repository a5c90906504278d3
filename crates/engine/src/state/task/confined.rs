//! What a task of a confined tree may not have: privileges that it could not have got by itself.

use arctern_image::messages::{CoreEntry, CredsEntry};

use crate::confinement::{Confinement, SYS_NICE};
use crate::error::Refusal;
use crate::restore_context::subject;

/// Refuses capabilities beyond the bounding set, and scheduling that needs privileges. `nice` is the
/// controller's own.
pub fn check(
    tid: i32,
    comm: &str,
    core: &CoreEntry,
    nice: i32,
    confinement: &Confinement,
    refusals: &mut Vec<Refusal>,
) {
    let Some(thread) = &core.thread_core else { return };
    let mut refuse = |cause: String, remedy: &str| {
        refusals.push(Refusal {
            subject: subject(tid, comm, "credentials"),
            cause,
            remedy: remedy.into(),
        });
    };
    if let Some(creds) = &thread.creds {
        let beyond = all_sets(creds) & !confinement.capabilities;
        if beyond != 0 {
            let names = names(beyond).join(", ");
            refuse(
                format!("it has capabilities that the container has not: {names}"),
                "allow them with --cap-add, if you trust the archive",
            );
        }
    }
    if confinement.allows(SYS_NICE) {
        return;
    }
    let real_time = [libc::SCHED_FIFO, libc::SCHED_RR, 6]
        .contains(&i32::try_from(thread.sched_policy.unwrap_or(0)).unwrap_or(6));
    if real_time || thread.sched_nice.unwrap_or(0) < nice {
        refuse(
            "it runs before other programs of the host (real-time policy or negative nice value)"
                .to_owned(),
            "allow it with --cap-add SYS_NICE, if you trust the archive",
        );
    }
}

fn all_sets(creds: &CredsEntry) -> u64 {
    let sets = [&creds.cap_inh, &creds.cap_prm, &creds.cap_eff, &creds.cap_bnd, &creds.cap_amb];
    let word = |set: &[u32], i: usize| u64::from(set.get(i).copied().unwrap_or(0));
    sets.into_iter().fold(0, |all, set| all | word(set, 0) | word(set, 1) << 32)
}

/// The names of capabilities; a number that has no name here stands for itself.
fn names(set: u64) -> Vec<String> {
    (0..64u32)
        .filter(|bit| set & 1 << bit != 0)
        .map(|bit| {
            let known = arctern_sys::capability::NAMES.get(bit as usize);
            known.map_or_else(|| bit.to_string(), |name| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use arctern_image::messages::ThreadCoreEntry;

    use super::*;

    fn refused(thread: ThreadCoreEntry, confinement: &Confinement) -> Vec<String> {
        let core = CoreEntry { thread_core: Some(thread), ..CoreEntry::default() };
        let mut refusals = Vec::new();
        check(7, "sh", &core, 0, confinement, &mut refusals);
        refusals.iter().map(ToString::to_string).collect()
    }

    fn with_bounding(low: u32) -> ThreadCoreEntry {
        let creds = CredsEntry { cap_bnd: vec![low, 0], ..CredsEntry::default() };
        ThreadCoreEntry { creds: Some(creds), ..ThreadCoreEntry::default() }
    }

    #[test]
    fn capabilities_beyond_the_containers_are_named() {
        let confinement = Confinement { capabilities: 0b11, ..Confinement::default() };
        assert!(refused(with_bounding(0b11), &confinement).is_empty());
        let text = refused(with_bounding(1 << 21 | 1), &confinement).join("\n");
        assert!(text.contains("CAP_SYS_ADMIN") && !text.contains("CAP_CHOWN"), "{text}");
        let creds = CredsEntry { cap_amb: vec![0, 1 << 31], ..CredsEntry::default() };
        let odd = ThreadCoreEntry { creds: Some(creds), ..ThreadCoreEntry::default() };
        assert!(refused(odd, &confinement)[0].contains("63"));
    }

    #[test]
    fn priority_needs_its_capability() {
        let real_time = ThreadCoreEntry { sched_policy: Some(1), ..ThreadCoreEntry::default() };
        let nice = ThreadCoreEntry { sched_nice: Some(-5), ..ThreadCoreEntry::default() };
        let none = Confinement::default();
        assert_eq!(refused(real_time.clone(), &none).len(), 1);
        assert_eq!(refused(nice, &none).len(), 1);
        let may = Confinement { capabilities: 1 << SYS_NICE, ..none };
        assert!(refused(real_time, &may).is_empty());
    }
}
