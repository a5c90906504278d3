//! What a restored tree may have at most, when its images come from somebody who is not trusted.
//!
//! Images are put back with all privileges of the controller: a path is opened, a mount made, a
//! capability kept because a file says so. A [`Confinement`] says what the tree could have had on
//! its own; whatever goes beyond that is refused by the room whose state it is (`confined.rs` there),
//! all of it at once and before anything is made. docs/security.md lists the fields one by one.

/// Bits of a set of capabilities, by the kernel's numbers.
pub type Capabilities = u64;

/// CAP_SYS_ADMIN's number: who has it may mount what it likes, so that its mounts are not compared.
pub(crate) const SYS_ADMIN: u32 = 21;
/// CAP_NET_ADMIN's number.
pub(crate) const NET_ADMIN: u32 = 12;
/// CAP_SYS_RAWIO's number.
pub(crate) const SYS_RAWIO: u32 = 17;
/// CAP_SYS_NICE's number.
pub(crate) const SYS_NICE: u32 = 23;

/// What a tree may have at most.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// The bounding set: no thread has a capability that is not in it.
    pub capabilities: Capabilities,
    /// A seccomp program (`struct sock_filter`s as bytes) that every thread runs under: where the
    /// oldest one of the images is not the same, it is installed before theirs.
    pub filter: Option<Vec<u8>>,
    /// The key of the network namespace that the tree lives in ([`crate::options::RestoreOptions`]'s
    /// `inherit_fds`); None: the controller's own.
    pub network: Option<String>,
    /// Paths that something else covers.
    pub hidden: Vec<String>,
    /// Paths that are read-only mounts.
    pub read_only: Vec<String>,
    /// The external mounts: nothing else of the host appears in the tree.
    pub mounts: Vec<ConfinedMount>,
    /// The highest hard limit of each resource, by the kernel's number; those that are not here are
    /// not bounded.
    pub limits: Vec<u64>,
    /// Everything above is allowed. Block devices are not.
    pub trusted: bool,
}

/// An external mount of a confined tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfinedMount {
    /// Where it is in the tree, which is its key too.
    pub path: String,
    /// Flags (`MS_…`) that it has at least.
    pub flags: u64,
}

impl Confinement {
    /// Everything but block devices.
    pub fn trusting() -> Self {
        Confinement { trusted: true, ..Confinement::default() }
    }

    /// Whether the tree may have this capability.
    pub(crate) fn allows(&self, capability: u32) -> bool {
        self.trusted || self.capabilities & (1 << capability) != 0
    }

    /// Whether the tree may have a device node of this kind and number. Nodes lead past every mount
    /// and permission to the device itself.
    pub(crate) fn allows_device(&self, mode: u32, device: u64) -> bool {
        match mode & libc::S_IFMT {
            libc::S_IFBLK => false,
            libc::S_IFCHR => self.trusted || is_ordinary_device(device),
            _ => true,
        }
    }
}

/// Character devices that every container has: memory that is none, random numbers, terminals; and
/// 0:0, with which an overlay hides a name.
pub(crate) fn is_ordinary_device(device: u64) -> bool {
    match (libc::major(device), libc::minor(device)) {
        (0, 0) | (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2) => true,
        (major, _) => (136..=143).contains(&major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_never() {
        let disk = libc::makedev(8, 0);
        let null = libc::makedev(1, 3);
        let memory = libc::makedev(1, 1);
        let confined = Confinement::default();
        let trusting = Confinement::trusting();
        assert!(!confined.allows_device(libc::S_IFBLK, disk));
        assert!(!trusting.allows_device(libc::S_IFBLK, disk));
        assert!(confined.allows_device(libc::S_IFCHR, null));
        assert!(!confined.allows_device(libc::S_IFCHR, memory));
        assert!(trusting.allows_device(libc::S_IFCHR, memory));
        assert!(confined.allows_device(libc::S_IFREG, disk));
    }
}
