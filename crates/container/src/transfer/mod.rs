//! Moving a running container from one host to another, each host's part of it.
//!
//! The source ([`depart`]) captures, and leaves the tasks in their frozen group until it is known
//! that the others run. The destination ([`arrive`]) builds them and waits for the commit. Before
//! either acts upon the commit it is written down:
//!
//! - at the source in the container's directory ([`Marker`]), before the message is sent. Found
//!   without its command, a marker that says *held* means that the container goes on, and one that
//!   says *committed* that only the other host knows;
//! - at the destination in `ROOT/migrations` ([`Verdict`]), by the making of a file that nobody can
//!   make twice: a late commit and a source that asks meet there, and one of them is first.
//!
//! How the hosts talk is the business of the crate `arctern-migrate`.

mod arrive;
mod blockers;
mod depart;
mod forward;
mod laps;
mod passages;
mod preload;
mod urgent;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arctern_image::manifest::HostFacts;
use arctern_storage::LayerBlob;
use serde::{Deserialize, Serialize};

use crate::config::ContainerConfig;
use crate::error::{Error, Result};
use crate::paths::Paths;

pub use arctern_net::{Onward, Passage};
pub use arrive::Arrival;
pub(crate) use preload::take_in;
pub(crate) use urgent::Urgent;

pub use depart::{Departure, HandedOver, Leaving, Peer};
pub use forward::{Direction, Forward};
pub use laps::{Lap, Laps};
pub(crate) use passages::Passages;

/// What a source says of a container that is to move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Names this move: 64 hexadecimal digits. Containers that move together have the same.
    pub transfer: String,
    /// The container.
    pub config: ContainerConfig,
    /// What its network gave it, as the database has it.
    pub network: Option<String>,
    /// The machine that it runs on.
    pub facts: HostFacts,
    /// Bytes of memory that it uses at least: what processes share counts once.
    pub memory: u64,
    /// Bytes of memory that come as images at least: each process has its own.
    #[serde(default)]
    pub images: u64,
    /// Bytes of files that it has changed at least, with its volumes.
    pub changed: u64,
    /// The layers of its image.
    pub layers: Vec<LayerBlob>,
    /// Those of its volumes that come with another container of the move.
    #[serde(default)]
    pub shared: Vec<String>,
}

/// Something that is in the way of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// What it is.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

/// Where a move stands at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing was given away.
    Held,
    /// The commit was sent, or is about to be.
    Committed,
}

/// What a source writes down beside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// [`Offer::transfer`].
    pub transfer: String,
    /// The other host and how it is reached, as the caller put it.
    pub destination: String,
    /// Where the move stands.
    pub phase: Phase,
    /// Where connections by way of this host are led when the container runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onward: Option<Onward>,
}

impl Marker {
    fn path(dir: &Path) -> PathBuf {
        dir.join("migration.json")
    }

    /// The marker in a container's directory, if there is one.
    pub(crate) fn read(dir: &Path) -> Option<Marker> {
        serde_json::from_slice(&fs::read(Marker::path(dir)).ok()?).ok()
    }

    fn prepared_path(dir: &Path) -> PathBuf {
        dir.join("migration.new")
    }

    /// Writes it beside its place, on disk when this returns: it means nothing there, and
    /// [`Marker::write`] takes less time then.
    pub(crate) fn prepare(&self, dir: &Path) -> Result<()> {
        let path = Marker::prepared_path(dir);
        let json = self.to_json()?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&json)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Writes it, on disk when this returns.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let prepared = Marker::prepared_path(dir);
        if fs::read(&prepared).ok() != Some(self.to_json()?) {
            self.prepare(dir)?;
        }
        let path = Marker::path(dir);
        let put = || -> io::Result<()> {
            fs::rename(&prepared, &path)?;
            File::open(dir)?.sync_all()
        };
        put().map_err(Error::io("write", &path))
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(Error::json("a migration"))
    }

    pub(crate) fn remove(dir: &Path) -> Result<()> {
        for path in [Marker::prepared_path(dir), Marker::path(dir)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a destination has decided about a move, once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The container is the destination's.
    Committed,
    /// It stays the source's.
    Aborted,
}

impl Verdict {
    fn path(paths: &Paths, transfer: &str) -> Result<PathBuf> {
        let hexadecimal = transfer.len() == 64 && transfer.bytes().all(|b| b.is_ascii_hexdigit());
        match hexadecimal {
            true => Ok(paths.root.join("migrations").join(transfer)),
            false => Err(Error::Invalid(format!("`{transfer}` names no migration"))),
        }
    }

    /// Decides, on disk when this returns, unless it was decided before: gives what holds.
    pub fn decide(self, paths: &Paths, transfer: &str) -> Result<Verdict> {
        let path = Verdict::path(paths, transfer)?;
        let dir = paths.root.join("migrations");
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let write = || -> io::Result<bool> {
            // Complete before it has its name: who finds it finds all of it.
            let temporary = dir.join(format!(".{transfer}.{}", std::process::id()));
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            file.write_all(self.as_str().as_bytes())?;
            file.sync_all()?;
            let linked = fs::hard_link(&temporary, &path);
            fs::remove_file(&temporary)?;
            match linked {
                Ok(()) => File::open(&dir)?.sync_all().map(|()| true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e),
            }
        };
        match write().map_err(Error::io("write", &path))? {
            true => Ok(self),
            false => Verdict::of(paths, transfer)?
                .ok_or_else(|| Error::Invalid(format!("{} is damaged", path.display()))),
        }
    }

    /// What was decided.
    pub fn of(paths: &Paths, transfer: &str) -> Result<Option<Verdict>> {
        let path = Verdict::path(paths, transfer)?;
        match fs::read_to_string(&path) {
            Ok(text) => Ok([Verdict::Committed, Verdict::Aborted]
                .into_iter()
                .find(|verdict| verdict.as_str() == text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Forgets a move whose end both hosts know.
    pub fn forget(paths: &Paths, transfer: &str) -> Result<()> {
        let path = Verdict::path(paths, transfer)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Verdict::Committed => "committed",
            Verdict::Aborted => "aborted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_given_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let paths = Paths::new(dir.path(), dir.path()).expect("paths");
        let transfer = "ab".repeat(32);
        assert_eq!(Verdict::of(&paths, &transfer).expect("read"), None);
        let decide = |verdict: Verdict| verdict.decide(&paths, &transfer).expect("decide");
        assert_eq!(decide(Verdict::Aborted), Verdict::Aborted);
        assert_eq!(decide(Verdict::Committed), Verdict::Aborted);
        assert_eq!(Verdict::of(&paths, &transfer).expect("read"), Some(Verdict::Aborted));
        Verdict::forget(&paths, &transfer).expect("forget");
        assert_eq!(decide(Verdict::Committed), Verdict::Committed);
        for bad in ["", "../../etc/passwd", "x"] {
            assert!(Verdict::of(&paths, bad).is_err());
        }
    }

    #[test]
    fn a_marker_comes_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(Marker::read(dir.path()), None);
        let marker = Marker {
            transfer: "ab".repeat(32),
            destination: "ssh://b".into(),
            phase: Phase::Held,
            onward: None,
        };
        marker.write(dir.path()).expect("write");
        let committed = Marker { phase: Phase::Committed, ..marker.clone() };
        committed.prepare(dir.path()).expect("prepare");
        assert_eq!(
            Marker::read(dir.path()),
            Some(marker.clone()),
            "what is prepared means nothing"
        );
        marker.write(dir.path()).expect("write");
        assert_eq!(Marker::read(dir.path()), Some(marker));
        committed.prepare(dir.path()).expect("prepare");
        committed.write(dir.path()).expect("write");
        assert_eq!(Marker::read(dir.path()), Some(committed.clone()));
        committed.prepare(dir.path()).expect("prepare");
        Marker::remove(dir.path()).expect("remove");
        Marker::remove(dir.path()).expect("again");
        assert_eq!(Marker::read(dir.path()), None);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }
}
