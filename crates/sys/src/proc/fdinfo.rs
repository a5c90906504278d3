//! `/proc/PID/fdinfo/FD`: what the kernel tells of an open file description.
//!
//! Source: Documentation/filesystems/proc.rst 3.8 and the `show_fdinfo` functions of the kinds.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::ParseError;
use super::locks::{self, Lock};
use crate::Pid;

/// One file that an epoll descriptor watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpollItem {
    /// Number under which the file was added.
    pub tfd: i32,
    /// Events asked for, with EPOLLET and friends.
    pub events: u32,
    /// The program's own word.
    pub data: u64,
    /// Position of the file.
    pub pos: u64,
    /// Inode number of the file.
    pub ino: u64,
    /// Device of the file as the kernel has it: major << 20 | minor.
    pub device: u32,
}

/// One watch of an inotify descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode number.
    pub ino: u64,
    /// Device as the kernel has it: major << 20 | minor.
    pub device: u32,
    /// Events asked for.
    pub mask: u32,
    /// Ignored events.
    pub ignored: u32,
    /// Type of the file handle.
    pub handle_type: i32,
    /// The file handle (open_by_handle_at(2)).
    pub handle: Vec<u8>,
}

/// State of a timerfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    /// Clock.
    pub clock: i32,
    /// Expirations that nobody has read.
    pub ticks: u64,
    /// Flags of the last timerfd_settime(2).
    pub settime_flags: u32,
    /// Time until the next expiration: seconds, nanoseconds.
    pub value: (i64, i64),
    /// Period.
    pub interval: (i64, i64),
}

/// What we use of a fdinfo file. Fields that the kind does not have keep their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset.
    pub pos: i64,
    /// Open flags; O_CLOEXEC is the descriptor's own.
    pub flags: u32,
    /// Id of the mount that it was opened on.
    pub mnt_id: i32,
    /// Inode number (kernel 5.14).
    pub ino: u64,
    /// Locks.
    pub locks: Vec<Lock>,
    /// Counter of an eventfd.
    pub eventfd_count: Option<u64>,
    /// Number that no other eventfd has (kernel 5.2), 0 without one.
    pub eventfd_id: i32,
    /// EFD_SEMAPHORE (kernel 6.5).
    pub eventfd_semaphore: bool,
    /// Mask of a signalfd.
    pub sigmask: Option<u64>,
    /// A timerfd's timer.
    pub timer: Option<Timer>,
    /// What an epoll descriptor watches.
    pub epoll: Vec<EpollItem>,
    /// What an inotify descriptor watches.
    pub inotify: Vec<InotifyWatch>,
    /// Pids of a pidfd's process, the reader's namespace first; -1 when it is gone, 0 when it is not
    /// visible.
    pub pidfd: Vec<i32>,
    /// Descriptors in flight in a unix socket's receive queue.
    pub scm_fds: u32,
    /// Index of a pseudo terminal master.
    pub tty_index: Option<u32>,
}

/// Parses the text of a fdinfo file.
pub fn parse(text: &str) -> Result<FdInfo, ParseError> {
    let mut info = FdInfo::default();
    for line in text.lines() {
        let bad = || ParseError::new("a fdinfo line", line);
        let Some((key, value)) = line.split_once(':') else {
            if line.starts_with("inotify ") {
                info.inotify.push(inotify(line).ok_or_else(bad)?);
            }
            continue;
        };
        let value = value.trim();
        match key {
            "pos" => info.pos = value.parse().map_err(|_| bad())?,
            "flags" => info.flags = u32::from_str_radix(value, 8).map_err(|_| bad())?,
            "mnt_id" => info.mnt_id = value.parse().map_err(|_| bad())?,
            "ino" => info.ino = value.parse().map_err(|_| bad())?,
            "lock" => info.locks.extend(locks::parse_line(value)?),
            "eventfd-count" => {
                info.eventfd_count = Some(u64::from_str_radix(value, 16).map_err(|_| bad())?);
            }
            "eventfd-id" => info.eventfd_id = value.parse().map_err(|_| bad())?,
            "eventfd-semaphore" => info.eventfd_semaphore = value == "1",
            "sigmask" => info.sigmask = Some(u64::from_str_radix(value, 16).map_err(|_| bad())?),
            "clockid" => timer(&mut info).clock = value.parse().map_err(|_| bad())?,
            "ticks" => timer(&mut info).ticks = value.parse().map_err(|_| bad())?,
            "settime flags" => {
                timer(&mut info).settime_flags =
                    u32::from_str_radix(value, 8).map_err(|_| bad())?;
            }
            "it_value" => timer(&mut info).value = time(value).ok_or_else(bad)?,
            "it_interval" => timer(&mut info).interval = time(value).ok_or_else(bad)?,
            "tfd" => info.epoll.push(epoll(line).ok_or_else(bad)?),
            // `Pid` is the reader's view; `NSpid` begins with it and goes inwards.
            "Pid" if info.pidfd.is_empty() => info.pidfd = vec![value.parse().map_err(|_| bad())?],
            "NSpid" => {
                info.pidfd = value
                    .split_ascii_whitespace()
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .map_err(|_| bad())?;
            }
            "scm_fds" => info.scm_fds = value.parse().map_err(|_| bad())?,
            "tty-index" => info.tty_index = Some(value.parse().map_err(|_| bad())?),
            _ if key.starts_with("inotify wd") => {
                info.inotify.push(inotify(line).ok_or_else(bad)?);
            }
            _ => {}
        }
    }
    Ok(info)
}

/// Reads and parses the fdinfo of a descriptor.
pub fn read(pid: Pid, fd: i32) -> std::io::Result<FdInfo> {
    Ok(parse(&super::read(pid, &format!("fdinfo/{fd}"))?)?)
}

/// As [`read`], from an open `/proc/PID/fdinfo`: quicker for many descriptors.
pub fn read_in(directory: BorrowedFd<'_>, fd: i32) -> std::io::Result<FdInfo> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(directory, fd.to_string().as_str(), flags, Mode::empty())?;
    let mut file = File::from(file);
    let mut text = Vec::with_capacity(4096);
    let mut buffer = [0; 4096];
    loop {
        let n = file.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..n]);
        // The kernel writes the whole text at once.
        if n < buffer.len() {
            return Ok(parse(&String::from_utf8_lossy(&text))?);
        }
    }
}

fn timer(info: &mut FdInfo) -> &mut Timer {
    info.timer.get_or_insert_default()
}

/// `(seconds, nanoseconds)`.
fn time(value: &str) -> Option<(i64, i64)> {
    let (seconds, nanoseconds) = value.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some((seconds.trim().parse().ok()?, nanoseconds.trim().parse().ok()?))
}

/// `tfd: 20 events: 19 data: 14 pos:0 ino:40e sdev:10`; the first number decimal, the rest
/// hexadecimal but for `pos`.
fn epoll(line: &str) -> Option<EpollItem> {
    let mut item = EpollItem::default();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (word, next) = after.split_once(' ').unwrap_or((after, ""));
        let hex = || u64::from_str_radix(word, 16).ok();
        match key.trim() {
            "tfd" => item.tfd = word.parse().ok()?,
            "events" => item.events = hex()? as u32,
            "data" => item.data = hex()?,
            "pos" => item.pos = word.parse().ok()?,
            "ino" => item.ino = hex()?,
            "sdev" => item.device = hex()? as u32,
            _ => {}
        }
        rest = next;
    }
    Some(item)
}

/// `inotify wd:1 ino:98e0df sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1
/// f_handle:dfe09800f905e095`, all hexadecimal.
fn inotify(line: &str) -> Option<InotifyWatch> {
    let mut watch = InotifyWatch::default();
    for word in line.strip_prefix("inotify ")?.split_ascii_whitespace() {
        let (key, value) = word.split_once(':')?;
        let hex = || u64::from_str_radix(value, 16).ok();
        match key {
            "wd" => watch.wd = hex()? as i32,
            "ino" => watch.ino = hex()?,
            "sdev" => watch.device = hex()? as u32,
            "mask" => watch.mask = hex()? as u32,
            "ignored_mask" => watch.ignored = hex()? as u32,
            "fhandle-type" => watch.handle_type = hex()? as i32,
            "f_handle" => {
                watch.handle = value
                    .as_bytes()
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                    .collect::<Option<_>>()?;
            }
            _ => {}
        }
    }
    Some(watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoll_descriptor() {
        let info = parse(
            "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n\
             tfd:       20 events:       19 data:               14  pos:0 ino:40e sdev:10\n\
             tfd:       15 events: 80000019 data: ffffffff0000000f  pos:7 ino:10283 sdev:f\n",
        )
        .unwrap();
        assert_eq!((info.flags, info.mnt_id, info.ino), (0o2000002, 17, 1038));
        assert_eq!(info.epoll.len(), 2);
        assert_eq!(
            info.epoll[1],
            EpollItem {
                tfd: 15,
                events: 0x8000_0019,
                data: 0xffff_ffff_0000_000f,
                pos: 7,
                ino: 0x10283,
                device: 15
            }
        );
    }

    #[test]
    fn timers_locks_and_watches() {
        let info = parse(
            "pos:\t50\nflags:\t02100002\nclockid: 1\nticks: 3\nsettime flags: 01\n\
             it_value: (1992, 281575447)\nit_interval: (1000, 5)\n\
             lock:\t1: FLOCK  ADVISORY  WRITE 7835 fe:00:10019039 0 EOF\n\
             inotify wd:1 ino:98e0df sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 \
             fhandle-type:1 f_handle:dfe09800f905e095\n",
        )
        .unwrap();
        assert_eq!(
            info.timer,
            Some(Timer {
                clock: 1,
                ticks: 3,
                settime_flags: 1,
                value: (1992, 281575447),
                interval: (1000, 5)
            })
        );
        assert_eq!(info.locks.len(), 1);
        assert_eq!(info.inotify[0].handle, [0xdf, 0xe0, 0x98, 0, 0xf9, 5, 0xe0, 0x95]);
        assert_eq!(info.inotify[0].device, 0xfe00000);
    }

    #[test]
    fn other_kinds() {
        let info = parse("eventfd-count:               1f\neventfd-id: 4\neventfd-semaphore: 1\n");
        let info = info.unwrap();
        assert_eq!((info.eventfd_count, info.eventfd_semaphore), (Some(31), true));
        assert_eq!(info.eventfd_id, 4);
        assert_eq!(parse("sigmask:\t0000000000000200\n").unwrap().sigmask, Some(0x200));
        assert_eq!(parse("Pid:\t7835\nNSpid:\t7835\t4\n").unwrap().pidfd, [7835, 4]);
        assert_eq!(parse("Pid:\t-1\nNSpid:\t-1\n").unwrap().pidfd, [-1]);
        assert_eq!(parse("scm_fds: 2\ntty-index:\t3\n").unwrap().tty_index, Some(3));
        assert!(parse("flags:\tx\n").is_err());
    }

    #[test]
    fn reads_our_own() {
        let me = Pid(std::process::id() as i32);
        let directory = File::open("/proc/self/fdinfo").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let directory = std::os::fd::AsFd::as_fd(&directory);
        assert_eq!(read_in(directory, fd).unwrap().flags, read(me, fd).unwrap().flags);
        assert!(read(me, 0).is_ok() || !std::path::Path::new("/proc/self/fd/0").exists());
    }
}
