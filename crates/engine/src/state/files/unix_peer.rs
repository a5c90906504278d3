//! Unix sockets: whom they show as their peer (SO_PEERCRED): capture. The restore is in
//! [`super::unix_peer_restore`].
//!
//! The kernel notes who called: socketpair(2) for both ends; connect(2) for the end that is accepted;
//! listen(2) for the listener and for all who connect to it. That stays as it is when the process
//! changes its ids or ends. In another pid namespace than ours, the number is asked for by a remote
//! call in a task that has the socket: nobody outside can translate that of a process which has ended.
//!
//! In a file of our own that CRIU passes over. Not kept: the supplementary groups (SO_PEERGROUPS), and
//! whom a connection shows that is not accepted yet.

use std::collections::{BTreeMap, HashMap};

use arctern_image::images::{ImageDir, ImageKind};
use arctern_image::messages::UnixPeerEntry;
use arctern_sys::fd::socket_option;
use arctern_sys::{Pid, proc};
use arctern_tracee::{Batch, TraceeError};

use super::capture::FileCollector;
use super::descriptor::Descriptor;
use super::unix::Member;
use crate::error::{CaptureError, RestoreError};
use crate::tree::{FrozenTask, FrozenTree};

/// Bytes of struct ucred: pid, uid, gid.
const UCRED: usize = 12;
/// Sockets that are asked for in one batch.
const AT_ONCE: usize = 64;
/// No pid of any Linux is higher (PID_MAX_LIMIT).
const MAX_PID: i32 = 1 << 22;

/// Pid as we see it, uid and gid of the peer; None where the socket shows none.
pub(super) fn shown_peer(d: &Descriptor<'_>) -> Result<Option<[u32; 3]>, CaptureError> {
    let mut bytes = [0; UCRED];
    socket_option(&d.file, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes)
        .map_err(d.failed("ask whom it shows as its peer"))?;
    let peer = [word(&bytes, 0), word(&bytes, 4), word(&bytes, 8)];
    Ok((peer[1] != u32::MAX).then_some(peer))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

impl FileCollector {
    /// Notes the peers that the sockets show, by pids inside.
    pub(super) fn find_peers(&mut self, tree: &mut FrozenTree) -> Result<(), CaptureError> {
        let mut members: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
        for member in self.unix.members.iter().filter(|member| member.peer.is_some()) {
            members.entry(member.index).or_default().push(member);
        }
        let Some(root) = tree.tasks.first().filter(|_| !members.is_empty()) else {
            return Ok(());
        };
        let namespace = |pid: Pid| proc::namespace(pid, "pid").ok().flatten();
        let inside = namespace(root.pid) == namespace(Pid(std::process::id() as i32));
        let known: HashMap<i32, i32> =
            tree.tasks.iter().map(|task| (task.pid.0, task.inner_pid)).collect();
        let mut peers = Vec::new();
        for (index, members) in members {
            let task = &mut tree.tasks[index];
            for members in members.chunks(AT_ONCE) {
                let asked = if inside { Vec::new() } else { ask(task, members)? };
                for (at, member) in members.iter().enumerate() {
                    let Some([pid, uid, gid]) = member.peer else { continue };
                    let seen = pid as i32;
                    let pid = match asked.get(at).copied().flatten() {
                        Some(pid) => pid,
                        None if inside => seen,
                        None => known.get(&seen).copied().unwrap_or(0),
                    };
                    peers.push(UnixPeerEntry { id: member.id, pid, uid, gid });
                }
            }
        }
        self.unix.peers = peers;
        Ok(())
    }
}

/// The pids of the peers as `task` sees them; None where it cannot be asked, as for a socket that is
/// on its way to it.
fn ask(task: &mut FrozenTask, members: &[&Member]) -> Result<Vec<Option<i32>>, TraceeError> {
    if task.session.is_none() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    let mut calls = Vec::new();
    for member in members {
        if member.passed {
            calls.push(None);
            continue;
        }
        let peer = batch.reserve(UCRED);
        let len = batch.bytes(&(UCRED as u32).to_ne_bytes());
        let (level, name) = (libc::SOL_SOCKET.into(), libc::SO_PEERCRED.into());
        let args = [member.fd.into(), level, name, peer.into(), len.into()];
        calls.push(Some((batch.call(libc::SYS_getsockopt, &args), peer)));
    }
    task.run(&mut batch)?;
    let pid = |(call, peer)| {
        batch.result(call).ok()?;
        Some(word(batch.memory(peer), 0) as i32)
    };
    Ok(calls.into_iter().map(|call| pid(call?)).collect())
}

/// Whom the sockets of a checkpoint show, by file id.
pub(super) fn read(images: &ImageDir) -> Result<HashMap<u32, UnixPeerEntry>, RestoreError> {
    let mut peers = HashMap::new();
    for peer in images.read_all::<UnixPeerEntry>(ImageKind::UnixPeers, 0)? {
        if !(0..MAX_PID).contains(&peer.pid) || peer.uid == u32::MAX || peer.gid == u32::MAX {
            return Err(RestoreError::Inconsistent(format!(
                "unix socket {} shows process {} with ids {} and {} as its peer",
                peer.id, peer.pid, peer.uid, peer.gid
            )));
        }
        peers.insert(peer.id, peer);
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_nobody_has_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageDir::create(dir.path().join("images")).unwrap();
        let good = UnixPeerEntry { id: 3, pid: MAX_PID - 1, uid: 1000, gid: 0 };
        images.write_all(ImageKind::UnixPeers, 0, [&good]).unwrap();
        assert_eq!(read(&images).unwrap()[&3], good);
        for bad in [
            UnixPeerEntry { pid: -1, ..good },
            UnixPeerEntry { pid: MAX_PID, ..good },
            UnixPeerEntry { uid: u32::MAX, ..good },
            UnixPeerEntry { gid: u32::MAX, ..good },
        ] {
            images.write_all(ImageKind::UnixPeers, 0, [&good, &bad]).unwrap();
            assert!(read(&images).is_err(), "{bad:?}");
        }
    }
}
