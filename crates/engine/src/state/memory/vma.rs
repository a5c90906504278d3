//! Mappings as CRIU's entries.
//!
//! Source of the flags: Documentation/filesystems/proc.rst (VmFlags), mman.h, and the table of
//! status bits in docs/format.md.

use arctern_image::messages::VmaEntry;
use arctern_sys::proc::smaps::Mapping;

/// Bits of `VmaEntry::status`.
pub mod status {
    /// An ordinary mapping.
    pub const REGULAR: u32 = 0x1;
    /// `[vsyscall]`.
    pub const VSYSCALL: u32 = 0x4;
    /// `[vdso]`.
    pub const VDSO: u32 = 0x8;
    /// `[heap]`.
    pub const HEAP: u32 = 0x20;
    /// Private mapping of a file.
    pub const FILE_PRIVATE: u32 = 0x40;
    /// Shared mapping of a file.
    pub const FILE_SHARED: u32 = 0x80;
    /// Shared anonymous memory.
    pub const ANON_SHARED: u32 = 0x100;
    /// Private anonymous memory.
    pub const ANON_PRIVATE: u32 = 0x200;
    /// SysV shared memory.
    pub const SYSVIPC: u32 = 0x400;
    /// `[vvar]`.
    pub const VVAR: u32 = 0x1000;
    /// A ring of asynchronous I/O.
    pub const AIORING: u32 = 0x2000;
    /// A memfd.
    pub const MEMFD: u32 = 0x4000;
    /// A shadow stack.
    pub const SHSTK: u32 = 0x8000;
    /// Guard pages inside another mapping.
    pub const GUARD: u32 = 0x1_0000;
}

/// VmFlags and the advice that sets them: letters and `MADV_*`.
pub const ADVICE: [(&str, i32); 8] = [
    ("rr", libc::MADV_RANDOM),
    ("sr", libc::MADV_SEQUENTIAL),
    ("dc", libc::MADV_DONTFORK),
    ("mg", libc::MADV_MERGEABLE),
    ("hg", libc::MADV_HUGEPAGE),
    ("nh", libc::MADV_NOHUGEPAGE),
    ("dd", libc::MADV_DONTDUMP),
    ("wf", libc::MADV_WIPEONFORK),
];

/// MAP_DROPPABLE (linux/mman.h, kernel 6.11): its pages are never captured.
pub const MAP_DROPPABLE: i32 = 0x8;

/// What a mapping is, before files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory, heap and stacks.
    Anonymous,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`, `[vvar_vclock]`.
    Vvar,
    /// `[vsyscall]`.
    Vsyscall,
    /// MAP_SHARED | MAP_ANONYMOUS.
    SharedAnonymous,
    /// SysV shared memory.
    SysV,
    /// A memfd.
    Memfd,
    /// A file with a name (deleted ones too).
    File,
}

/// Classifies a mapping; Err says why it cannot be captured and what to do.
pub fn classify(mapping: &Mapping) -> Result<Kind, (String, &'static str)> {
    let refuse = |cause: &str, remedy| Err((cause.to_owned(), remedy));
    match mapping.name.as_str() {
        "[vdso]" => return Ok(Kind::Vdso),
        "[vvar]" | "[vvar_vclock]" => return Ok(Kind::Vvar),
        "[vsyscall]" => return Ok(Kind::Vsyscall),
        "[uprobes]" => return refuse("is used by uprobes", "remove the uprobes"),
        _ => {}
    }
    if mapping.has("ss") {
        return refuse("is a shadow stack", "run it without shadow stacks");
    }
    if mapping.has("um") || mapping.has("uw") || mapping.has("ui") {
        return refuse("is watched by a userfaultfd", "let the program unregister it first");
    }
    if mapping.protection_key != 0 {
        return refuse("has a protection key", "protection keys cannot be rebuilt yet");
    }
    if mapping.has("ht") {
        return refuse("uses huge pages of hugetlbfs", "run it without explicit huge pages");
    }
    if mapping.inode == 0 && (mapping.name.is_empty() || mapping.name.starts_with('[')) {
        return Ok(Kind::Anonymous);
    }
    if mapping.name.starts_with("anon_inode:") {
        return refuse("maps an object of the kernel", "close it before the capture");
    }
    if mapping.name.starts_with("/[aio]") {
        return refuse("is a ring of asynchronous I/O (io_setup)", "destroy it before the capture");
    }
    if mapping.has("io") || mapping.has("pf") {
        return refuse("maps a device", "devices cannot be captured");
    }
    Ok(match mapping.name.as_str() {
        name if name.starts_with("/SYSV") => Kind::SysV,
        "/dev/zero (deleted)" if mapping.shared => Kind::SharedAnonymous,
        name if name.starts_with("/memfd:") => Kind::Memfd,
        _ => Kind::File,
    })
}

/// The entry of a mapping. `file` is its id in files.img, the inode of shared anonymous memory, or
/// the SysV id.
pub fn entry(mapping: &Mapping, kind: Kind, file: u64) -> VmaEntry {
    let mut flags = if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let mut status = status::REGULAR;
    match kind {
        Kind::Anonymous => {
            flags |= libc::MAP_ANONYMOUS;
            status |= status::ANON_PRIVATE;
            if mapping.name == "[heap]" {
                status |= status::HEAP;
            }
        }
        Kind::Vdso => {
            flags |= libc::MAP_ANONYMOUS;
            status |= status::ANON_PRIVATE | status::VDSO;
        }
        Kind::Vvar => {
            flags |= libc::MAP_ANONYMOUS;
            status |= status::ANON_PRIVATE | status::VVAR;
        }
        Kind::Vsyscall => {
            flags |= libc::MAP_ANONYMOUS;
            status = status::VSYSCALL | status::ANON_PRIVATE;
        }
        Kind::SharedAnonymous => {
            flags |= libc::MAP_ANONYMOUS;
            status |= status::ANON_SHARED;
        }
        Kind::SysV => {
            flags |= libc::MAP_ANONYMOUS;
            status |= status::SYSVIPC | status::ANON_SHARED;
        }
        Kind::Memfd => {
            status |= status::MEMFD
                | if mapping.shared { status::FILE_SHARED } else { status::FILE_PRIVATE };
        }
        Kind::File => {
            status |= if mapping.shared { status::FILE_SHARED } else { status::FILE_PRIVATE };
        }
    }
    for (letters, flag) in [
        ("gd", libc::MAP_GROWSDOWN),
        ("nr", libc::MAP_NORESERVE),
        ("lo", libc::MAP_LOCKED),
        ("dp", MAP_DROPPABLE),
    ] {
        if mapping.has(letters) {
            flags |= flag;
        }
    }
    let madv = ADVICE
        .iter()
        .filter(|(letters, _)| mapping.has(letters))
        .fold(0u64, |mask, (_, advice)| mask | 1 << advice);
    let anonymous = matches!(kind, Kind::Anonymous | Kind::Vdso | Kind::Vvar | Kind::Vsyscall);
    VmaEntry {
        start: mapping.start,
        end: mapping.end,
        pgoff: if anonymous { 0 } else { mapping.offset },
        shmid: file,
        prot: mapping.prot,
        flags: flags as u32,
        status,
        fd: -1,
        madv: (madv != 0).then_some(madv),
        fdflags: (kind == Kind::SysV).then_some(libc::O_RDWR as u32),
    }
}

/// Whether the entry maps anonymous shared memory that the memory room itself carries.
pub fn is_shared_anonymous(entry: &VmaEntry) -> bool {
    entry.status & (status::ANON_SHARED | status::SYSVIPC) == status::ANON_SHARED
}

/// Whether the entry's pages are stored with the task.
pub fn has_private_pages(entry: &VmaEntry) -> bool {
    let skipped = status::VVAR | status::VSYSCALL | status::GUARD | status::SYSVIPC;
    entry.flags & libc::MAP_SHARED as u32 == 0
        && entry.flags & MAP_DROPPABLE as u32 == 0
        && entry.status & skipped == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use arctern_sys::proc::smaps;

    fn one(line: &str, flags: &str) -> Mapping {
        smaps::parse(&format!("{line}\nVmFlags: {flags} \n")).unwrap().remove(0)
    }

    #[test]
    fn usual_values() {
        let heap = one("1000-2000 rw-p 00000000 00:00 0 [heap]", "rd wr mr mw me ac");
        let made = entry(&heap, classify(&heap).unwrap(), 0);
        assert_eq!((made.status, made.flags, made.prot), (0x221, 0x22, 3));
        let stack = one("1000-2000 rw-p 00000000 00:00 0 [stack]", "rd wr mr mw me gd ac");
        let made = entry(&stack, classify(&stack).unwrap(), 0);
        assert_eq!((made.status, made.flags), (0x201, 0x122));
        let file = one("1000-2000 r-xp 00003000 fe:00 12 /bin/x", "rd ex mr mw me");
        let made = entry(&file, classify(&file).unwrap(), 7);
        assert_eq!((made.status, made.pgoff, made.shmid), (0x41, 0x3000, 7));
        let vdso = one("1000-2000 r-xp 00000000 00:00 0 [vdso]", "rd ex mr mw me de");
        assert_eq!(entry(&vdso, classify(&vdso).unwrap(), 0).status, 0x209);
        let shared = one("1000-2000 rw-s 00000000 00:01 12 /dev/zero (deleted)", "rd wr sh");
        assert_eq!(classify(&shared).unwrap(), Kind::SharedAnonymous);
    }

    #[test]
    fn advice_is_a_mask_of_bits() {
        let m = one("1000-2000 rw-p 00000000 00:00 0", "rd wr hg dd");
        assert_eq!(entry(&m, Kind::Anonymous, 0).madv, Some(1 << 14 | 1 << 16));
    }

    #[test]
    fn what_cannot_be_rebuilt_is_refused_with_a_reason() {
        for (line, flags) in [
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr ss"),
            ("1000-2000 rw-s 00000000 00:0e 5 anon_inode:[io_uring]", "rd wr sh"),
            ("1000-2000 rw-s 00000000 00:0e 5 /[aio] (deleted)", "rd wr"),
            ("1000-2000 rw-s 00000000 00:06 5 /dev/mem", "rd wr io pf"),
        ] {
            assert!(classify(&one(line, flags)).is_err(), "{line}");
        }
    }
}
