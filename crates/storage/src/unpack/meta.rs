//! Owner, mode, times and extended attributes of a member.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{RawMode, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::UnpackErrorKind;
use crate::tarstream::Member;

/// Prefix of extended attributes in pax records, as star(1) and everybody after it writes them.
pub(crate) const PAX_XATTR: &str = "SCHILY.xattr.";

/// Metadata of a member, from its header and its pax records.
pub(super) struct Meta {
    pub mode: RawMode,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timespec,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    pub fn read(member: &Member) -> Result<Self, UnpackErrorKind> {
        let bad = |field| UnpackErrorKind::BadField { field };
        let header = &member.header;
        let record = |key: &str| {
            let value = member.records.iter().find(|(k, _)| k == key).map(|(_, v)| v);
            value.map(|v| std::str::from_utf8(v).unwrap_or("damaged"))
        };
        let old = header.as_old();
        let id = |key: &'static str, field: &[u8], value: io::Result<u64>| match record(key) {
            Some(text) => text.parse().map_err(|_| bad(key)),
            None => number(field, value).and_then(|v| u32::try_from(v).ok()).ok_or(bad(key)),
        };
        let mtime = match record("mtime") {
            Some(text) => pax_time(text),
            None => number(&old.mtime, header.mtime())
                .and_then(|v| i64::try_from(v).ok())
                .map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 }),
        };
        let mode = number(&old.mode, header.mode().map(u64::from)).ok_or(bad("mode"))?;
        let xattrs = member.records.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(PAX_XATTR).filter(|name| !is_overlay_xattr(name))?;
            Some((name.to_owned(), value.clone()))
        });
        Ok(Meta {
            mode: RawMode::try_from(mode & 0o7777).map_err(|_| bad("mode"))?,
            uid: id("uid", &old.uid, header.uid())?,
            gid: id("gid", &old.gid, header.gid())?,
            mtime: mtime.ok_or(bad("mtime"))?,
            xattrs: xattrs.collect(),
        })
    }
}

/// A numeric field: blank is zero, as all tars take it.
fn number(field: &[u8], value: io::Result<u64>) -> Option<u64> {
    match field.iter().all(|b| matches!(b, 0 | b' ')) {
        true => Some(0),
        false => value.ok(),
    }
}

/// Removes the attributes of a directory that was there before, which the archive's has not. Those
/// of security modules stay: they are the host's affair.
pub(super) fn drop_xattrs(dir: &OwnedFd, meta: &Meta) -> rustix::io::Result<()> {
    let mut names = vec![0; 65536];
    let len = match rustix::fs::flistxattr(dir, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names[..len].split(|b| *b == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let ours = ["user.", "trusted.", "system.posix_acl_"].iter().any(|p| name.starts_with(p));
        if ours && !is_overlay_xattr(name) && meta.xattrs.iter().all(|(have, _)| have != name) {
            rustix::fs::fremovexattr(dir, name)?;
        }
    }
    Ok(())
}

/// Where a link leads.
pub(super) fn link_target(member: &Member) -> Result<&[u8], UnpackErrorKind> {
    let target = member.link.as_deref().filter(|t| !t.is_empty());
    target.ok_or(UnpackErrorKind::BadField { field: "linkname" })
}

/// Whether an extended attribute steers overlayfs: never taken from or put into an archive.
pub(crate) fn is_overlay_xattr(name: &str) -> bool {
    name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.")
}

/// A pax time: seconds since the epoch as a decimal number, possibly negative, with a fraction.
fn pax_time(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos: i64 = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanos = nanos * 10 + i64::from(digit - b'0');
    }
    if negative && nanos > 0 {
        // -1.25 lies between the seconds -2 and -1.
        return Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos });
    }
    Some(Timespec { tv_sec: seconds, tv_nsec: nanos })
}

/// Both times set to `mtime`: archives carry no access time worth keeping.
pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}
