//! The file-descriptor based mount interface: fsopen, fsconfig, fsmount, open_tree, move_mount,
//! mount_setattr (kernels 5.2 and 5.12).
//!
//! Most of these calls are made remotely, in a task that lives in the mount namespace that is being
//! built; here are their numbers and structures, and the few calls that a controller makes itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::NixPath;

use crate::check;

/// open_tree(2): make a copy of the mount that belongs to no namespace yet.
pub const OPEN_TREE_CLONE: u32 = 1;
/// open_tree(2), fsmount(2), …: close-on-exec. O_CLOEXEC and 1.
pub const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
/// fsopen(2): close-on-exec.
pub const FSOPEN_CLOEXEC: u32 = 1;
/// fsmount(2): close-on-exec.
pub const FSMOUNT_CLOEXEC: u32 = 1;
/// fsconfig(2): an option without a value.
pub const FSCONFIG_SET_FLAG: u32 = 0;
/// fsconfig(2): an option with a text as value.
pub const FSCONFIG_SET_STRING: u32 = 1;
/// fsconfig(2): make or find the file system.
pub const FSCONFIG_CMD_CREATE: u32 = 6;
/// fsconfig(2): change the options of the file system.
pub const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
/// move_mount(2): the source is the descriptor itself.
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
/// move_mount(2): the target is the descriptor itself.
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
/// move_mount(2): the target joins the peer group and the masters of the source (kernel 5.15).
pub const MOVE_MOUNT_SET_GROUP: u32 = 0x100;

/// `struct mount_attr` (linux/mount.h): what mount_setattr(2) changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
}

impl MountAttr {
    /// Size of the structure.
    pub const SIZE: usize = 32;

    /// Gives a mount exactly the given `MS_*` flags.
    pub fn exactly(flags: u64) -> Self {
        let set = attributes(flags);
        // The access-time attributes are one field, which has to be cleared as a whole.
        MountAttr { set, clear: ALL_ATTRIBUTES & !set | libc::MOUNT_ATTR__ATIME, propagation: 0 }
    }

    /// Changes the propagation alone.
    pub fn propagation(propagation: u64) -> Self {
        MountAttr { propagation, ..MountAttr::default() }
    }

    /// The bytes as the kernel reads them.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (chunk, word) in
            bytes.chunks_exact_mut(8).zip([self.set, self.clear, self.propagation, 0])
        {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

const ALL_ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NODIRATIME
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// The `MOUNT_ATTR_*` for `MS_*` flags of a mount; flags of other meanings are left out.
pub fn attributes(flags: u64) -> u64 {
    let pairs = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (crate::proc::mountinfo::MS_NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let mut attributes =
        pairs.iter().filter(|(ms, _)| flags & ms != 0).fold(0, |all, (_, attr)| all | attr);
    // No bit at all means relatime.
    if flags & libc::MS_NOATIME != 0 {
        attributes |= libc::MOUNT_ATTR_NOATIME;
    } else if flags & libc::MS_STRICTATIME != 0 {
        attributes |= libc::MOUNT_ATTR_STRICTATIME;
    }
    attributes
}

/// `struct open_how` (openat2(2)) as bytes: flags, mode, resolve.
pub fn open_how(flags: i32, resolve: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&(flags as u64).to_ne_bytes());
    bytes[16..].copy_from_slice(&resolve.to_ne_bytes());
    bytes
}

/// A copy of the mount at `path` (without the mounts on it) that belongs to no namespace: what lies
/// under other mounts becomes visible.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as u32;
    let fd = path.with_nix_path(|path| {
        // SAFETY: `path` is a C string that lives across the call.
        check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
    })??;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The root of a file system that is made without a device and mounted nowhere (fsopen(2),
/// fsmount(2)): `mqueue` is that of the calling thread's IPC namespace.
pub fn detached(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string that lives across the call.
    let context = check(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(context as i32) };
    let (fd, none) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: this command takes no key and no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: fsmount takes integers and touches no memory of ours.
    let mount = check(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_attributes() {
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_RELATIME;
        let attr = MountAttr::exactly(flags);
        assert_eq!(attr.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_ne!(attr.clear & libc::MOUNT_ATTR_NOEXEC, 0);
        assert_eq!(attr.clear & libc::MOUNT_ATTR_RDONLY, 0);
        let strict = MountAttr::exactly(libc::MS_STRICTATIME);
        assert_eq!(strict.set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(strict.clear & libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR__ATIME);
    }
}
