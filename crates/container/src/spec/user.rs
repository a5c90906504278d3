//! Who `-u USER[:GROUP]` is, looked up beneath the container's root.
//!
//! The files belong to the image, so nothing in them is trusted and no link in them leads out:
//! they are opened with `openat2(RESOLVE_IN_ROOT)` and read up to a bound.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result};

/// Longest /etc/passwd or /etc/group that is read.
const LIMIT: u64 = 8 << 20;

/// The resolved user of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, if /etc/passwd has the user.
    pub home: Option<String>,
}

/// Resolves `user[:group]`, names or numbers; empty is root.
pub fn resolve(root: &Path, spec: &str) -> Result<User> {
    let passwd = read_beneath(root, "etc/passwd")?;
    let group = read_beneath(root, "etc/group")?;
    resolve_in(&passwd, &group, spec)
}

/// As [`resolve`], with the contents of /etc/passwd and /etc/group.
///
/// # Errors
/// There is no such user or group.
pub fn resolve_in(passwd: &str, group: &str, spec: &str) -> Result<User> {
    let (user, given_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry =
        passwd.lines().filter_map(Passwd::parse).find(|p| p.name == user || number == Some(p.uid));
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(Error::NoSuchUser {
                kind: "user",
                name: user.to_owned(),
                file: "/etc/passwd",
            });
        }
    };
    let gid = match given_group {
        None => entry.as_ref().map_or(0, |e| e.gid),
        Some(name) => {
            let number: Option<u32> = name.parse().ok();
            group
                .lines()
                .filter_map(Group::parse)
                .find(|g| g.name == name)
                .map(|g| g.gid)
                .or(number)
                .ok_or_else(|| Error::NoSuchUser {
                    kind: "group",
                    name: name.to_owned(),
                    file: "/etc/group",
                })?
        }
    };
    // As login does: the groups that list the user. A group given by hand stands alone.
    let groups = match (&entry, given_group) {
        (Some(entry), None) => group
            .lines()
            .filter_map(Group::parse)
            .filter(|g| g.gid != gid && g.members.split(',').any(|m| m == entry.name))
            .map(|g| g.gid)
            .collect(),
        _ => Vec::new(),
    };
    Ok(User { uid, gid, groups, home: entry.map(|e| e.home.to_owned()).filter(|h| !h.is_empty()) })
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Passwd<'a>> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid, gid, home })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Group<'a>> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    }
}

/// A text file of the container; empty when there is none.
fn read_beneath(root: &Path, path: &str) -> Result<String> {
    let full = || root.join(path);
    let open = || -> io::Result<Option<File>> {
        let dir = rustix::fs::openat(
            CWD,
            root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // NONBLOCK: the image may have put a FIFO there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    let Some(file) = open().map_err(Error::io("open", full()))? else {
        return Ok(String::new());
    };
    if !file.metadata().map_err(Error::io("inspect", full()))?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(Error::io("read", full()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/x\nbroken\nu:x:5\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nadm:x:4:www-data,root\nvideo:x:44:www-data\n";

    #[test]
    fn names_and_numbers() {
        let user = |s: &str| resolve_in(PASSWD, GROUP, s).expect(s);
        assert_eq!((user("").uid, user("").gid, user("").home.as_deref()), (0, 0, Some("/root")));
        let www = user("www-data");
        assert_eq!((www.uid, www.gid, www.groups), (33, 33, vec![4, 44]));
        assert_eq!(user("33"), user("www-data"));
        let mixed = user("www-data:adm");
        assert_eq!((mixed.uid, mixed.gid, mixed.groups), (33, 4, vec![]));
        let foreign = user("1234:5678");
        assert_eq!((foreign.uid, foreign.gid, foreign.home), (1234, 5678, None));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(resolve_in(PASSWD, GROUP, "nobody").is_err());
        assert!(resolve_in(PASSWD, GROUP, "root:nogroup").is_err());
        assert!(resolve_in(PASSWD, GROUP, "-1").is_err());
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("etc")).expect("etc");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("etc/passwd")).expect("link");
        assert!(matches!(resolve(dir.path(), "root"), Err(Error::Io { .. })));
    }
}
