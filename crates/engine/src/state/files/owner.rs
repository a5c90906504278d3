//! Owners of descriptors: whom the kernel signals about them (F_SETOWN, F_SETSIG, O_ASYNC).
//!
//! The owner is a task of the tree, so it is set when every task exists. The uid of who set it is
//! the restorer's, as with CRIU.

use arctern_image::messages::{FileEntry, FownEntry};

use super::table::Opener;

/// The owner in an entry, if there is one to set.
pub(super) fn of(file: &FileEntry) -> Option<&FownEntry> {
    let fown = match file {
        FileEntry { reg: Some(f), .. } => &f.fown,
        FileEntry { pipe: Some(f), .. } => &f.fown,
        FileEntry { efd: Some(f), .. } => &f.fown,
        FileEntry { epfd: Some(f), .. } => &f.fown,
        FileEntry { sgfd: Some(f), .. } => &f.fown,
        FileEntry { tfd: Some(f), .. } => &f.fown,
        FileEntry { ify: Some(f), .. } => &f.fown,
        FileEntry { usk: Some(f), .. } => &f.fown,
        FileEntry { isk: Some(f), .. } => &f.fown,
        FileEntry { nlsk: Some(f), .. } => &f.fown,
        FileEntry { memfd: Some(f), .. } => &f.fown,
        FileEntry { tty: Some(f), .. } => &f.fown,
        FileEntry { pidfd: Some(f), .. } => &f.fown,
        _ => return None,
    };
    (fown.pid != 0 || fown.signum != 0).then_some(fown)
}

/// Status flags in an entry.
pub(super) fn flags(file: &FileEntry) -> u32 {
    match file {
        FileEntry { reg: Some(f), .. } => f.flags,
        FileEntry { pipe: Some(f), .. } => f.flags,
        FileEntry { usk: Some(f), .. } => f.flags,
        FileEntry { isk: Some(f), .. } => f.flags,
        FileEntry { tty: Some(f), .. } => f.flags,
        _ => 0,
    }
}

/// Sets the owner of descriptor `fd`.
pub(super) fn set(o: &mut Opener<'_>, fd: i32, fown: &FownEntry, flags: u32) {
    const F_SETOWN_EX: i32 = 15;
    const F_SETSIG: i32 = 10;
    if fown.pid != 0 {
        let mut owner = [0; 8];
        owner[..4].copy_from_slice(&fown.pid_type.to_ne_bytes());
        owner[4..].copy_from_slice(&fown.pid.to_ne_bytes());
        let owner = o.bytes(&owner);
        let args = [fd.into(), F_SETOWN_EX.into(), owner.into()];
        o.call(libc::SYS_fcntl, &args, "set its signal owner");
    }
    if fown.signum != 0 {
        let args = [fd.into(), F_SETSIG.into(), fown.signum.into()];
        o.call(libc::SYS_fcntl, &args, "set its signal");
    }
    if flags & libc::O_ASYNC as u32 != 0 {
        let settable =
            libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC;
        let args = [fd.into(), libc::F_SETFL.into(), (flags & settable as u32).into()];
        o.call(libc::SYS_fcntl, &args, "set its status flags");
    }
}
