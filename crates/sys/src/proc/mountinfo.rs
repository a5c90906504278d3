//! `/proc/PID/mountinfo`: the mounts that a process can reach.
//!
//! Source: proc(5), Documentation/filesystems/proc.rst section 3.5. Mount points are relative to the
//! process's root directory; roots of cgroup mounts are relative to the cgroup namespace of whoever
//! reads the file.

use std::io;

use super::ParseError;
use crate::Pid;

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Its id, unique on the running system at one time.
    pub id: u32,
    /// Id of the mount that it is mounted on.
    pub parent: u32,
    /// Major and minor device number of the file system.
    pub device: (u32, u32),
    /// The directory or file of the file system that is mounted.
    pub root: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// `ro`, `nosuid`, `relatime`, …: of this mount.
    pub options: Vec<String>,
    /// Peer group, 0 if the mount is not shared.
    pub shared: u32,
    /// Peer group that it gets mounts from, 0 if it is no slave.
    pub master: u32,
    /// Cannot be bind mounted.
    pub unbindable: bool,
    /// Type, `fuse.sshfs` with its subtype.
    pub fstype: String,
    /// What was mounted.
    pub source: String,
    /// Options of the file system as a whole.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Device number as one word, major << 20 | minor.
    pub fn device_word(&self) -> u32 {
        self.device.0 << 20 | self.device.1
    }

    /// The `MS_*` flags of this mount (mount(2)); its propagation is told by [`Mount::shared`] and
    /// [`Mount::master`].
    pub fn flags(&self) -> u64 {
        let mut flags = 0;
        let mut any_atime = false;
        for option in &self.options {
            flags |= match option.as_str() {
                "ro" => libc::MS_RDONLY,
                "nosuid" => libc::MS_NOSUID,
                "nodev" => libc::MS_NODEV,
                "noexec" => libc::MS_NOEXEC,
                "nodiratime" => libc::MS_NODIRATIME,
                "nosymfollow" => MS_NOSYMFOLLOW,
                "noatime" => {
                    any_atime = true;
                    libc::MS_NOATIME
                }
                "relatime" => {
                    any_atime = true;
                    libc::MS_RELATIME
                }
                _ => 0,
            };
        }
        if !any_atime {
            flags |= libc::MS_STRICTATIME;
        }
        flags
    }

    /// Whether the file system as a whole is read-only.
    pub fn super_read_only(&self) -> bool {
        self.super_options.iter().any(|o| o == "ro")
    }
}

/// linux/mount.h, kernel 5.10.
pub const MS_NOSYMFOLLOW: u64 = 256;

/// Undoes the kernel's `\040` for blanks, newlines, backslashes.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)))
            .map(|d| {
                u16::from(d[0] - b'0') * 64 + u16::from(d[1] - b'0') * 8 + u16::from(d[2] - b'0')
            });
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn split_options(field: &str) -> Vec<String> {
    field.split(',').filter(|o| !o.is_empty()).map(unescape).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let mut mount = Mount {
        id: fields.next()?.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        ..Mount::default()
    };
    let (major, minor) = fields.next()?.split_once(':')?;
    mount.device = (major.parse().ok()?, minor.parse().ok()?);
    mount.root = unescape(fields.next()?);
    mount.mountpoint = unescape(fields.next()?);
    mount.options = split_options(fields.next()?);
    for tag in fields {
        if let Some(group) = tag.strip_prefix("shared:") {
            mount.shared = group.parse().ok()?;
        } else if let Some(group) = tag.strip_prefix("master:") {
            mount.master = group.parse().ok()?;
        } else if tag == "unbindable" {
            mount.unbindable = true;
        }
    }
    // The source may be empty: `- tmpfs  rw`.
    let mut fields = after.splitn(3, ' ');
    mount.fstype = unescape(fields.next()?);
    mount.source = unescape(fields.next()?);
    mount.super_options = split_options(fields.next().unwrap_or_default());
    Some(mount)
}

/// The mounts of a mountinfo text, in its order.
pub fn parse(text: &str) -> Result<Vec<Mount>, ParseError> {
    text.lines()
        .map(|line| parse_line(line).ok_or_else(|| ParseError::new("a mount", line)))
        .collect()
}

/// Reads `/proc/PID/mountinfo`.
pub fn read(pid: Pid) -> io::Result<Vec<Mount>> {
    Ok(parse(&super::read(pid, "mountinfo")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402 ro,noatime shared:7 master:1 propagate_from:2 unbindable - \
                    fuse.x /dev/root rw,errors=continue\n\
                    37 36 0:5 / /a rw,nosuid - tmpfs  rw\n";
        let mounts = parse(text).unwrap();
        let first = &mounts[0];
        assert_eq!((first.id, first.parent, first.device), (36, 35, (98, 0)));
        assert_eq!((first.root.as_str(), first.mountpoint.as_str()), ("/mnt1", "/mnt 2"));
        assert_eq!((first.shared, first.master, first.unbindable), (7, 1, true));
        assert_eq!((first.fstype.as_str(), first.source.as_str()), ("fuse.x", "/dev/root"));
        assert_eq!(first.super_options, ["rw", "errors=continue"]);
        assert_eq!(first.flags(), libc::MS_RDONLY | libc::MS_NOATIME);
        assert_eq!(first.device_word(), 98 << 20);
        assert_eq!(mounts[1].source, "");
        assert_eq!(mounts[1].flags(), libc::MS_NOSUID | libc::MS_STRICTATIME);
    }

    #[test]
    fn escapes_are_undone_and_lone_backslashes_kept() {
        assert_eq!(unescape(r"a\040b\134c\9"), r"a b\c\9");
        assert_eq!(unescape(r"\777"), r"\777");
    }

    #[test]
    fn broken_lines_are_errors() {
        assert!(parse("36 35 98:0 / /\n").is_err());
        assert!(parse("x 35 98:0 / / rw - a b c\n").is_err());
    }
}
