//! `/proc/PID/smaps`: the mappings of a process with their VmFlags; `smaps_rollup`, their sum.

use super::ParseError;
use crate::Pid;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset into the file, bytes.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// Inode number, 0 without a file.
    pub inode: u64,
    /// Path, `[name]`, or nothing; ` (deleted)` is kept.
    pub name: String,
    /// Anonymous memory in the mapping, bytes.
    pub anonymous: u64,
    /// Resident memory that other mappings share: clean and dirty, bytes.
    pub shared_clean: u64,
    /// See `shared_clean`.
    pub shared_dirty: u64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Resident memory where a page that several mappings share counts for each in part, bytes.
    pub pss: u64,
    /// The anonymous part of `pss` (rollup only, kernel 5.10), bytes.
    pub pss_anonymous: u64,
    /// The part of `pss` that lies in shared memory and tmpfs (rollup only), bytes.
    pub pss_shmem: u64,
    /// Private memory that is swapped out, shared pages counted in part, bytes.
    pub swap_pss: u64,
    /// Page size in use, bytes (hugetlb).
    pub kernel_page_size: u64,
    /// Memory protection key.
    pub protection_key: u32,
    /// Two-letter flags (Documentation/filesystems/proc.rst), each followed by a blank.
    pub vm_flags: String,
}

impl Mapping {
    /// Whether the two-letter flag is set.
    pub fn has(&self, flag: &str) -> bool {
        self.vm_flags.split_ascii_whitespace().any(|f| f == flag)
    }
}

/// Parses a smaps file.
pub fn parse(text: &str) -> Result<Vec<Mapping>, ParseError> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let first = line.as_bytes().first().copied().unwrap_or(0);
        if first.is_ascii_uppercase() {
            let Some(mapping) = mappings.last_mut() else {
                return Err(ParseError::new("a mapping", line));
            };
            let Some((key, value)) = line.split_once(':') else {
                return Err(ParseError::new("a smaps line", line));
            };
            let kib = || value.trim().strip_suffix(" kB").and_then(|v| v.parse::<u64>().ok());
            let bytes = || kib().unwrap_or(0).saturating_mul(1024);
            match key {
                "Anonymous" => mapping.anonymous = bytes(),
                "Shared_Clean" => mapping.shared_clean = bytes(),
                "Shared_Dirty" => mapping.shared_dirty = bytes(),
                "Rss" => mapping.rss = bytes(),
                "Pss" => mapping.pss = bytes(),
                "Pss_Anon" => mapping.pss_anonymous = bytes(),
                "Pss_Shmem" => mapping.pss_shmem = bytes(),
                "SwapPss" => mapping.swap_pss = bytes(),
                "KernelPageSize" => {
                    mapping.kernel_page_size = kib().unwrap_or(4).saturating_mul(1024)
                }
                "ProtectionKey" => mapping.protection_key = value.trim().parse().unwrap_or(0),
                "VmFlags" => mapping.vm_flags = value.trim().to_owned(),
                _ => {}
            }
        } else {
            mappings.push(header(line).ok_or_else(|| ParseError::new("a mapping", line))?);
        }
    }
    Ok(mappings)
}

fn header(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (perms, rest) = rest.split_once(' ')?;
    let (offset, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
    let (major, minor) = device.split_once(':')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let perms = perms.as_bytes();
    let mut prot = 0;
    for (at, letter, bit) in
        [(0, b'r', libc::PROT_READ), (1, b'w', libc::PROT_WRITE), (2, b'x', libc::PROT_EXEC)]
    {
        if *perms.get(at)? == letter {
            prot |= bit as u32;
        }
    }
    let (start, end) = (hex(start)?, hex(end)?);
    if end < start {
        return None;
    }
    Some(Mapping {
        start,
        end,
        prot,
        shared: *perms.get(3)? == b's',
        offset: hex(offset)?,
        device: (hex(major)? as u32, hex(minor)? as u32),
        inode: inode.parse().ok()?,
        name: name.trim_start().replace("\\012", "\n"),
        kernel_page_size: 4096,
        ..Mapping::default()
    })
}

/// Reads the mappings of a process.
pub fn read(pid: Pid) -> std::io::Result<Vec<Mapping>> {
    Ok(parse(&super::read(pid, "smaps")?)?)
}

/// The sums over all mappings of a process (`smaps_rollup`), as one mapping from the first byte to the
/// last.
pub fn read_rollup(pid: Pid) -> std::io::Result<Mapping> {
    let text = super::read_single(pid, "smaps_rollup")?;
    parse(&text)?.pop().ok_or_else(|| ParseError::new("a sum of mappings", &text).into())
}

/// Reads the mappings of a process without their VmFlags and sizes (`maps`), which is much faster.
pub fn read_maps(pid: Pid) -> std::io::Result<Vec<Mapping>> {
    Ok(super::read(pid, "maps")?.lines().filter_map(header).collect())
}

/// The address ranges of this program's own mappings, ascending.
pub fn own_ranges() -> std::io::Result<Vec<(u64, u64)>> {
    let maps = read_maps(Pid(std::process::id() as i32))?;
    Ok(maps.iter().map(|m| (m.start, m.end)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_flags() {
        let text = "55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                  [heap]\n\
                    Size:                132 kB\nKernelPageSize:        4 kB\nRss: 8 kB\n\
                    Anonymous:             8 kB\nTHPeligible:    0\nProtectionKey:         0\n\
                    VmFlags: rd wr mr mw me ac \n\
                    7f00-8f00 r-xs 00001000 fe:00 1234 /usr/lib/a b.so (deleted)\n\
                    VmFlags: rd ex sh mr me ms dd \n\
                    9000-a000 ---p 00000000 00:00 0\nVmFlags: mr mw me gd\n";
        let maps = parse(text).unwrap();
        assert_eq!(maps.len(), 3);
        assert_eq!(maps[0].name, "[heap]");
        assert_eq!(maps[0].anonymous, 8192);
        assert!(maps[0].has("wr") && !maps[0].has("dd"));
        assert_eq!(maps[1].device, (0xfe, 0));
        assert_eq!(maps[1].name, "/usr/lib/a b.so (deleted)");
        assert!(maps[1].shared && maps[1].has("dd"));
        assert_eq!(maps[1].prot, 5);
        assert_eq!((maps[2].prot, maps[2].name.as_str()), (0, ""));
        assert!(maps[2].has("gd"));
    }

    #[test]
    fn what_no_kernel_writes_is_refused_or_bounded() {
        // As fuzzing found.
        assert!(parse("8f00-7f00 r-xs 00001000 fe:00 1234 /usr/lib/a\n").is_err());
        let text = "7f00-8f00 r-xs 00001000 fe:00 1234 /a\nRss: 18446744073709551615 kB\n";
        assert_eq!(parse(text).unwrap()[0].rss, u64::MAX);
    }

    #[test]
    fn sums() {
        let text = "55d0c0a00000-7ffd4d5ff000 ---p 00000000 00:00 0          [rollup]\n\
                    Rss:                4096 kB\nPss:                 900 kB\n\
                    Pss_Dirty:           800 kB\nPss_Anon:            400 kB\n\
                    Pss_File:            300 kB\nPss_Shmem:           200 kB\n\
                    Anonymous:          1024 kB\nSwap:                 64 kB\n\
                    SwapPss:              32 kB\nLocked:                0 kB\n";
        let sum = parse(text).unwrap().pop().unwrap();
        assert_eq!(sum.name, "[rollup]");
        assert_eq!((sum.anonymous, sum.pss_anonymous), (1 << 20, 400 << 10));
        assert_eq!((sum.pss, sum.pss_shmem, sum.swap_pss), (900 << 10, 200 << 10, 32 << 10));
        assert!(read_rollup(Pid(std::process::id() as i32)).unwrap().pss_anonymous > 0);
    }

    #[test]
    fn reads_our_own() {
        let maps = read(Pid(std::process::id() as i32)).unwrap();
        assert!(maps.iter().any(|m| m.name == "[vdso]"));
    }
}
