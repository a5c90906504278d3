//! Unix sockets: whom they show as their peer (SO_PEERCRED): restore.
//!
//! The kernel notes who calls socketpair(2), connect(2) and listen(2): pid, effective uid and gid. The
//! calls are made by the task that opens the group, or by a helper with the wanted pid that shares its
//! descriptors and lives no longer than the group is in the making; the number is told when it is gone.
//! So the opener is an ancestor of the makers too, and the group is made before they are cloned, while
//! their numbers are free. Ids are changed around the calls only; capabilities stay as they are.
//!
//! Where the pid belongs to nobody inside, or somebody else has it here, the opener's is shown.

use std::collections::{BTreeMap, HashMap};

use arctern_image::messages::UnixPeerEntry;
use arctern_tracee::TraceeError;
use arctern_tracee::stub::Stub;

use super::groups;
use super::restore::FilesRestore;
use super::table::Opener;
use super::unix_restore::Group;
use crate::error::RestoreError;
use crate::restore::while_taken;
use crate::restore_context::TaskNode;
use crate::state::task::restore::reap_helper;

const SECBIT_NO_SETUID_FIXUP: i32 = 1 << 2;

impl FilesRestore {
    /// Adds the makers of sockets to those who hold them.
    pub(super) fn add_makers(&self, held: &mut BTreeMap<u32, Vec<usize>>) {
        let tasks = self.tasks.iter().zip(&self.table_owner);
        let tasks: HashMap<i32, usize> = tasks.map(|(task, owner)| (task.pid, *owner)).collect();
        for peer in self.peers.values() {
            let maker = tasks.get(&peer.pid);
            if let (Some(holders), Some(maker)) = (held.get_mut(&peer.id), maker) {
                holders.push(*maker);
            }
        }
    }

    /// Whether another process than its opener makes something of a group.
    pub(super) fn has_other_maker(&self, group: &groups::Group) -> bool {
        let opener = self.tasks[group.opener].pid;
        let mut peers = group.ids.iter().filter_map(|id| self.peers.get(id));
        peers.any(|peer| peer.pid != 0 && peer.pid != opener)
    }
}

/// Makes calls as those whom the sockets show.
pub(super) struct Makers<'a> {
    peers: &'a HashMap<u32, UnixPeerEntry>,
    tasks: &'a [TaskNode],
    /// The last helper, by its pid inside.
    helper: Option<(i32, Stub)>,
}

impl<'a> Makers<'a> {
    pub fn new(peers: &'a HashMap<u32, UnixPeerEntry>, tasks: &'a [TaskNode]) -> Self {
        Makers { peers, tasks, helper: None }
    }

    /// The helper that has a pid, with the descriptors and the directory of the opener's stub. None
    /// where the opener itself is to make the calls.
    fn helper(&mut self, o: &mut Opener<'_>, pid: i32) -> Result<Option<Stub>, RestoreError> {
        if pid == 0 || pid == o.pid {
            return Ok(None);
        }
        if let Some((_, helper)) = self.helper.filter(|(known, _)| *known == pid) {
            return Ok(Some(helper));
        }
        self.end(o)?;
        // One of both stands still while the other has calls in their common memory.
        let flags = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS) as u64;
        let clone = || Ok(o.stub.clone_child(flags, libc::SIGCHLD, &[pid])?);
        // The number of a captured task may still be that of the task itself, which was killed.
        let captured = self.tasks.iter().any(|task| task.pid == pid);
        match if captured { while_taken(pid, clone) } else { clone() } {
            Ok(helper) => {
                o.ctx.helper = Some(helper.tid());
                self.helper = Some((pid, helper));
                Ok(Some(helper))
            }
            // Somebody else has the number, or it is beyond what this host allows.
            Err(RestoreError::Tracee(TraceeError::Call { source, .. }))
                if matches!(source.raw_os_error(), Some(libc::EEXIST | libc::EINVAL)) =>
            {
                tracing::warn!("a unix socket shows process {} instead of {pid}: {source}", o.pid);
                Ok(None)
            }
            Err(RestoreError::Tracee(error)) => {
                let what = format!("make process {pid}, which it shows as its peer");
                Err(o.failed_here(&what)(std::io::Error::other(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the helper end.
    pub fn end(&mut self, o: &mut Opener<'_>) -> Result<(), RestoreError> {
        let Some((pid, helper)) = self.helper.take() else { return Ok(()) };
        reap_helper(&helper, pid, &o.stub)?;
        o.ctx.helper = None;
        Ok(())
    }
}

impl Group<'_> {
    /// Makes calls as whoever socket `id` shows as its peer.
    pub(super) fn as_peer<T>(
        &mut self,
        o: &mut Opener<'_>,
        id: u32,
        calls: impl FnOnce(&mut Opener<'_>) -> T,
    ) -> Result<T, RestoreError> {
        let Some(peer) = self.makers.peers.get(&id).copied() else { return Ok(calls(o)) };
        let Some(helper) = self.makers.helper(o, peer.pid)? else {
            return Ok(with_ids(o, &peer, calls));
        };
        o.flush()?;
        let opener = std::mem::replace(&mut o.stub, helper);
        let made = with_ids(o, &peer, calls);
        let outcome = o.flush();
        o.stub = opener;
        outcome.map(|()| made)
    }
}

/// Makes calls with the effective ids of `peer`, and with the capabilities of the stub.
fn with_ids<T>(
    o: &mut Opener<'_>,
    peer: &UnixPeerEntry,
    calls: impl FnOnce(&mut Opener<'_>) -> T,
) -> T {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (peer.uid, peer.gid) == (uid, gid) {
        return calls(o);
    }
    let what = "take the ids that it shows as its peer's";
    let secure = o.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS.into()], what);
    let dumpable = o.call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()], what);
    let keep = [libc::PR_SET_SECUREBITS.into(), SECBIT_NO_SETUID_FIXUP.into()];
    o.call(libc::SYS_prctl, &keep, what);
    let same = || (-1).into();
    o.call(libc::SYS_setresgid, &[same(), peer.gid.into(), same()], what);
    o.call(libc::SYS_setresuid, &[same(), peer.uid.into(), same()], what);
    let made = calls(o);
    let what = "take the own ids again";
    o.call(libc::SYS_setresuid, &[same(), uid.into(), same()], what);
    o.call(libc::SYS_setresgid, &[same(), gid.into(), same()], what);
    o.call(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS.into(), secure.into()], what);
    // The change of ids took it away; the value that only the kernel may set is not needed.
    o.batch().call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), dumpable.into()]);
    made
}
