//! File locks as the kernel lists them: `/proc/locks`, and the `lock:` lines of `/proc/PID/fdinfo/FD`.
//!
//! In fdinfo only the locks that belong to that descriptor are listed: flock and open-file-description
//! locks of its open file description, POSIX locks of its descriptor table on that inode.

use super::ParseError;

/// Who owns a lock, which decides how it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// fcntl(2) F_SETLK: the descriptor table.
    Posix,
    /// flock(2): the open file description.
    Flock,
    /// fcntl(2) F_OFD_SETLK: the open file description.
    Ofd,
    /// F_SETLEASE, or a delegation of the NFS server.
    Lease,
}

/// One lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lock {
    /// Kind of owner.
    pub owner: Owner,
    /// Exclusive, otherwise shared.
    pub write: bool,
    /// Process that took it, in the reader's pid namespace; 0 or -1 when it has none there.
    pub pid: i32,
    /// Device major and minor, inode.
    pub file: (u32, u32, u64),
    /// First byte.
    pub start: i64,
    /// Last byte; None: to the end of the file, however long it becomes.
    pub end: Option<i64>,
}

/// Parses one line; None for a waiter (`->`), which owns nothing.
pub fn parse_line(line: &str) -> Result<Option<Lock>, ParseError> {
    let bad = || ParseError::new("a file lock", line);
    let (_, rest) = line.split_once(':').ok_or_else(bad)?;
    let mut words = rest.split_ascii_whitespace();
    let mut next = || words.next().ok_or_else(bad);
    let owner = match next()? {
        "->" => return Ok(None),
        "POSIX" => Owner::Posix,
        "FLOCK" => Owner::Flock,
        "OFDLCK" => Owner::Ofd,
        "LEASE" | "DELEG" => Owner::Lease,
        _ => return Err(bad()),
    };
    next()?;
    let write = match next()? {
        "WRITE" => true,
        "READ" | "UNLCK" | "RW" | "NONE" => false,
        _ => return Err(bad()),
    };
    let pid = next()?.parse().map_err(|_| bad())?;
    let mut file = next()?.split(':');
    let mut part = || file.next().ok_or_else(bad);
    let major = u32::from_str_radix(part()?, 16).map_err(|_| bad())?;
    let minor = u32::from_str_radix(part()?, 16).map_err(|_| bad())?;
    let inode = part()?.parse().map_err(|_| bad())?;
    let start = next()?.parse().map_err(|_| bad())?;
    let end = match next()? {
        "EOF" => None,
        number => Some(number.parse().map_err(|_| bad())?),
    };
    Ok(Some(Lock { owner, write, pid, file: (major, minor, inode), start, end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_kernel_6_18() {
        let lock =
            parse_line("1: POSIX  ADVISORY  WRITE 7835 fe:00:10019040 5 14").unwrap().unwrap();
        assert_eq!(
            lock,
            Lock {
                owner: Owner::Posix,
                write: true,
                pid: 7835,
                file: (0xfe, 0, 10019040),
                start: 5,
                end: Some(14)
            }
        );
        let lock =
            parse_line("2: FLOCK  ADVISORY  READ 7835 fe:00:10019039 0 EOF").unwrap().unwrap();
        assert_eq!((lock.owner, lock.write, lock.end), (Owner::Flock, false, None));
        let lock = parse_line("3: OFDLCK ADVISORY  WRITE -1 fe:00:7 0 EOF").unwrap().unwrap();
        assert_eq!((lock.owner, lock.pid), (Owner::Ofd, -1));
        assert_eq!(parse_line("1: -> POSIX  ADVISORY  WRITE 7 fe:00:7 0 EOF").unwrap(), None);
        assert!(parse_line("1: WHAT").is_err());
        assert!(parse_line("").is_err());
    }
}
