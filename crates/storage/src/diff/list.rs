//! The changes of a container's root as a list: what `arctern diff` shows.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::capture::{failure, is_opaque, is_whiteout, lower_names, open_dir};
use super::{CaptureError, Source};
use crate::beneath;
use crate::pack::stat_at;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there, and is another one: content, mode, or what is in the directory.
    Changed,
    /// It is gone.
    Deleted,
}

/// Lists the changes, parents before what is in them.
///
/// # Errors
/// [`CaptureError`].
pub fn list(source: &Source<'_>) -> Result<Vec<(PathBuf, ChangeKind)>, CaptureError> {
    let root = open_dir(rustix::fs::CWD, source.upper.as_os_str())
        .map_err(|e| failure("open", source.upper, e.into()))?;
    let mut found = Vec::new();
    level(source, root, Path::new(""), true, &mut found)?;
    found.sort();
    Ok(found)
}

/// Looks at one directory. `below`: the layers can have something there.
fn level(
    source: &Source<'_>,
    dir: OwnedFd,
    path: &Path,
    below: bool,
    found: &mut Vec<(PathBuf, ChangeKind)>,
) -> Result<(), CaptureError> {
    let lower = match below {
        true => {
            lower_names(source.lowers, path).map_err(|e| failure("list the layers at", path, e))?
        }
        false => Default::default(),
    };
    let names = beneath::names(dir.as_fd()).map_err(|e| failure("list", path, e))?;
    let opaque = is_opaque(&dir);
    if opaque {
        let hidden = lower.iter().filter(|name| !names.contains(name));
        note(source, hidden.map(|name| path.join(name)), ChangeKind::Deleted, found);
    }
    for name in names {
        let path = path.join(&name);
        if excluded(source, &path) {
            continue;
        }
        let was_there = lower.contains(&name);
        match look(dir.as_fd(), &name).map_err(|e| failure("inspect", &path, e.into()))? {
            Entry::Gone => {}
            Entry::Whiteout if was_there => found.push((absolute(&path), ChangeKind::Deleted)),
            Entry::Whiteout => {}
            Entry::File(is_dir) => {
                let kind = if was_there { ChangeKind::Changed } else { ChangeKind::Added };
                found.push((absolute(&path), kind));
                if is_dir {
                    let dir = open_dir(dir.as_fd(), &name)
                        .map_err(|e| failure("open", &path, e.into()))?;
                    level(source, dir, &path, was_there && !opaque, found)?;
                }
            }
        }
    }
    Ok(())
}

enum Entry {
    Gone,
    Whiteout,
    /// Says whether it is a directory.
    File(bool),
}

fn look(dir: BorrowedFd<'_>, name: &OsString) -> rustix::io::Result<Entry> {
    match stat_at(dir, name) {
        Ok(st) if is_whiteout(&st) => Ok(Entry::Whiteout),
        Ok(st) => Ok(Entry::File(FileType::from_raw_mode(st.st_mode) == FileType::Directory)),
        // The container goes on while it is looked at.
        Err(Errno::NOENT) => Ok(Entry::Gone),
        Err(e) => Err(e),
    }
}

fn note(
    source: &Source<'_>,
    paths: impl Iterator<Item = PathBuf>,
    kind: ChangeKind,
    found: &mut Vec<(PathBuf, ChangeKind)>,
) {
    let paths = paths.filter(|path| !excluded(source, path));
    found.extend(paths.map(|path| (absolute(&path), kind)));
}

fn excluded(source: &Source<'_>, path: &Path) -> bool {
    source.excludes.iter().any(|e| e.strip_prefix("/").unwrap_or(e) == path)
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn added_changed_and_deleted_paths() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        for path in ["etc", "gone"] {
            fs::create_dir_all(lower.join(path)).expect("create");
        }
        fs::create_dir_all(upper.join("etc/new")).expect("create");
        fs::create_dir_all(upper.join("dev")).expect("create");
        for path in ["etc/passwd", "etc/same", "gone/file"] {
            fs::write(lower.join(path), "old").expect("write");
        }
        for path in ["etc/passwd", "etc/new/file", "dev/null"] {
            fs::write(upper.join(path), "new").expect("write");
        }
        let whiteout = rustix::fs::mknodat(
            rustix::fs::CWD,
            upper.join("gone"),
            FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        );
        if whiteout.is_err() {
            eprintln!("skipped: no device nodes without root");
            return;
        }
        let excludes = [PathBuf::from("/dev")];
        let source =
            Source { upper: &upper, lowers: std::slice::from_ref(&lower), excludes: &excludes };
        let listed = list(&source).expect("list");
        let text: Vec<String> =
            listed.iter().map(|(path, kind)| format!("{kind:?} {}", path.display())).collect();
        assert_eq!(
            text,
            [
                "Changed /etc",
                "Added /etc/new",
                "Added /etc/new/file",
                "Changed /etc/passwd",
                "Deleted /gone",
            ]
        );
    }
}
