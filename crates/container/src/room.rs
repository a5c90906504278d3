//! Whether there is room: what an operation is about to write and to take, by file system, compared
//! with what is there, before anything is frozen.
//!
//! Only what is certain counts. A file system that compresses, or that does not say what is free, is
//! not judged; blocks that are reserved for root are root's. What others write meanwhile, and what is
//! not known in time, still ends the operation by the kernel's error, and then nothing of it stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arctern_sys::Pid;
use arctern_sys::proc::meminfo;
use arctern_sys::proc::mountinfo::{self, Mount};

use crate::error::{Error, Result};
use crate::transfer::Blocker;
use crate::units::size;

/// What an operation needs.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    files: Vec<Files>,
    memory: Vec<Memory>,
}

#[derive(Debug)]
struct Files {
    what: &'static str,
    dir: PathBuf,
    bytes: u64,
    remedy: String,
}

#[derive(Debug)]
struct Memory {
    what: String,
    bytes: u64,
    /// What there is.
    room: u64,
    remedy: &'static str,
}

impl Needs {
    /// At least so many bytes of files (`what` fits after `for`) come into `dir`, which exists.
    pub fn write(&mut self, what: &'static str, dir: &Path, bytes: u64, remedy: &str) {
        if bytes > 0 {
            let (dir, remedy) = (dir.to_owned(), remedy.to_owned());
            self.files.push(Files { what, dir, bytes, remedy });
        }
    }

    /// At least so many bytes of memory are taken, of the `room` that `what` has.
    pub fn take(&mut self, what: impl Into<String>, bytes: u64, room: u64, remedy: &'static str) {
        self.memory.push(Memory { what: what.into(), bytes, room, remedy });
    }

    /// At least so many bytes of the machine's memory are taken.
    pub fn take_of_machine(&mut self, bytes: u64) -> Result<()> {
        self.memory.push(Memory::of_machine(bytes)?);
        Ok(())
    }

    /// Everything that is missing.
    ///
    /// # Errors
    /// A directory is not there.
    pub fn missing(&self) -> Result<Vec<Blocker>> {
        let mounts = match self.files.is_empty() {
            true => Vec::new(),
            false => mountinfo::read(Pid(std::process::id().cast_signed()))
                .map_err(Error::io("read", "/proc/self/mountinfo"))?,
        };
        let mut places: BTreeMap<u64, (Place, Vec<&Files>)> = BTreeMap::new();
        for files in &self.files {
            let inspect = |e: rustix::io::Errno| Error::io("inspect", &files.dir)(e.into());
            let device = rustix::fs::stat(&files.dir).map_err(inspect)?.st_dev;
            match places.get_mut(&device) {
                Some((_, list)) => list.push(files),
                None => {
                    let place = Place::of(&files.dir, &mounts).map_err(inspect)?;
                    places.insert(device, (place, vec![files]));
                }
            }
        }
        let in_memory = places.values().filter(|(place, _)| place.in_memory);
        let in_memory = in_memory.flat_map(|(_, files)| files).map(|f| f.bytes).sum();
        let short = places.values().filter_map(|(place, files)| place.judge(files));
        let own = (in_memory > 0).then(|| Memory::of_machine(in_memory)).transpose()?;
        Ok(short.chain(self.memory.iter().chain(&own).filter_map(Memory::judge)).collect())
    }

    /// Refuses when something is missing.
    ///
    /// # Errors
    /// [`Error::NoRoom`] with the whole list.
    pub fn check(&self) -> Result<()> {
        let missing = self.missing()?;
        if missing.is_empty() { Ok(()) } else { Err(Error::NoRoom(missing)) }
    }
}

impl Memory {
    fn of_machine(bytes: u64) -> Result<Memory> {
        Ok(Memory {
            what: "this machine".to_owned(),
            bytes,
            room: meminfo::read().map_err(Error::io("read", "/proc/meminfo"))?.room(),
            remedy: "end something that uses memory, or choose another machine",
        })
    }

    fn judge(&self) -> Option<Blocker> {
        (self.bytes > self.room).then(|| Blocker {
            cause: format!(
                "{} has {} of memory, and at least {} are needed",
                self.what,
                size(self.room),
                size(self.bytes)
            ),
            remedy: self.remedy.to_owned(),
        })
    }
}

/// A file system.
#[derive(Debug)]
struct Place {
    name: String,
    /// Bytes that may be written; none: nobody knows.
    free: Option<u64>,
    /// Its files are memory.
    in_memory: bool,
}

impl Place {
    fn of(dir: &Path, mounts: &[Mount]) -> rustix::io::Result<Place> {
        let path = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        let above = mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint));
        // Of several mounts at one place the last one is seen.
        let mount = above.max_by_key(|mount| mount.mountpoint.len());
        let (kind, at) = mount.map_or(("", ""), |m| (m.fstype.as_str(), m.mountpoint.as_str()));
        let stat = rustix::fs::statvfs(dir)?;
        let packs = mount.is_some_and(|mount| compresses(kind, &mount.super_options));
        let blocks = match kind.starts_with("ext") && rustix::process::geteuid().is_root() {
            true => stat.f_bfree,
            false => stat.f_bavail,
        };
        let free = (stat.f_blocks > 0 && !packs).then(|| blocks.saturating_mul(stat.f_frsize));
        let in_memory = matches!(kind, "tmpfs" | "ramfs");
        Ok(Place { name: format!("the file system on {at} ({kind})"), free, in_memory })
    }

    fn judge(&self, files: &[&Files]) -> Option<Blocker> {
        let needed = files.iter().map(|f| f.bytes).fold(0, u64::saturating_add);
        let free = self.free.filter(|free| *free < needed)?;
        let parts: Vec<String> =
            files.iter().map(|f| format!("{} for {}", size(f.bytes), f.what)).collect();
        let mut remedies = vec!["free some space there"];
        for files in files {
            if !remedies.contains(&files.remedy.as_str()) {
                remedies.push(&files.remedy);
            }
        }
        Some(Blocker {
            cause: format!(
                "{} has {} free, and at least {} are needed: {}",
                self.name,
                size(free),
                size(needed),
                parts.join(", ")
            ),
            remedy: remedies.join(", or "),
        })
    }
}

/// Whether files may take less than their length.
fn compresses(kind: &str, options: &[String]) -> bool {
    let asked = || options.iter().any(|option| option.starts_with("compress"));
    matches!(kind, "zfs" | "ubifs" | "bcachefs") || (matches!(kind, "btrfs" | "f2fs") && asked())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(what: &'static str, bytes: u64, remedy: &str) -> Files {
        Files { what, dir: PathBuf::new(), bytes, remedy: remedy.to_owned() }
    }

    #[test]
    fn sums_are_by_file_system_and_remedies_come_once() {
        let name = "the file system on /a (ext4)".to_owned();
        let place = Place { name, free: Some(999_999), in_memory: false };
        let list = [
            files("memory", 600_000, "move --root"),
            files("changed files", 100_000, "move --root"),
            files("the archive", 300_000, "choose another --file"),
        ];
        let missing = place.judge(&list.iter().collect::<Vec<_>>()).expect("too little");
        assert_eq!(
            missing.cause,
            "the file system on /a (ext4) has 999 kB free, and at least 1.0 MB are needed: \
             600 kB for memory, 100 kB for changed files, 300 kB for the archive"
        );
        assert_eq!(
            missing.remedy,
            "free some space there, or move --root, or choose another --file"
        );
        assert_eq!(place.judge(&[&list[0]]), None);
        let unknown = Place { free: None, ..place };
        assert_eq!(unknown.judge(&list.iter().collect::<Vec<_>>()), None);
    }

    #[test]
    fn everything_is_told_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut needs = Needs::default();
        needs.write("nothing much", dir.path(), 1, "x");
        needs.take("a", 10, 10, "x");
        assert!(needs.check().is_ok());
        needs.write("too much", dir.path(), u64::MAX / 2, "x");
        needs.take("b", 11, 10, "x");
        let Err(Error::NoRoom(list)) = needs.check() else { panic!("there is room") };
        assert_eq!(list.len(), 2);
        assert!(list[1].cause.starts_with("b has 10 B of memory"), "{list:?}");
    }

    #[test]
    fn what_compresses_is_not_judged() {
        assert!(compresses("zfs", &[]) && compresses("btrfs", &["compress=zstd:3".to_owned()]));
        assert!(!compresses("btrfs", &["ssd".to_owned()]) && !compresses("ext4", &[]));
    }
}
