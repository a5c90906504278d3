//! `cp`: files into a container and out of it, through a tar stream.
//!
//! Paths of a container are resolved as its processes see them, and never leave its root: every
//! lookup is one `openat2(2)` with RESOLVE_IN_ROOT, whatever links the container has made. What is
//! written goes below a directory that was opened so, by the code that unpacks layers.
//!
//! A running container is seen through its init (`/proc/PID/root`), with its volumes; of one that
//! does not run the root file system is mounted for the time of the copy.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arctern_storage::beneath;
use arctern_storage::pack::Packer;
use arctern_storage::tarstream::TarStream;
use arctern_storage::unpack::{Unpacker, Whiteouts};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::lock::Lock;
use crate::spec::user;

/// Links that may follow on each other in a path, as in the kernel.
const MAX_LINKS: usize = 40;

/// How long the shim of a container that has ended may take to clean up.
const END: Duration = Duration::from_secs(1);

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path of this machine.
    Here(PathBuf),
    /// A path of a container.
    In {
        /// Name or id.
        container: String,
        /// Path in it.
        path: PathBuf,
    },
    /// A tar archive on standard input or output.
    Stream,
}

impl Place {
    /// As people write it: `-`, `CONTAINER:PATH`, or a path; one with a colon begins with `/` or `.`.
    #[must_use]
    pub fn parse(text: &str) -> Place {
        match text.split_once(':') {
            _ if text == "-" => Place::Stream,
            Some((name, path))
                if !name.is_empty() && !name.contains('/') && !name.starts_with('.') =>
            {
                Place::In { container: name.to_owned(), path: Path::new("/").join(path) }
            }
            _ => Place::Here(PathBuf::from(text)),
        }
    }
}

/// A root directory that paths are resolved in.
struct View {
    root: OwnedFd,
    /// Paths cannot leave it.
    container: bool,
    /// Who owns what is written, when that is not taken from the archive.
    owner: (u32, u32),
    mounted: Option<(String, Lock)>,
}

/// A file with the directory that it is in.
struct Found {
    dir: OwnedFd,
    name: OsString,
    stat: Option<Stat>,
}

impl Found {
    fn is_dir(&self) -> bool {
        self.stat.is_some_and(|st| FileType::from_raw_mode(st.st_mode) == FileType::Directory)
    }
}

/// How a path was written: `dir/` must be a directory, `dir/.` means what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Plain,
    Slash,
    Contents,
}

impl Ending {
    fn of(path: &Path) -> Ending {
        match path.as_os_str().as_bytes() {
            b"." => Ending::Contents,
            bytes if bytes.ends_with(b"/.") => Ending::Contents,
            bytes if bytes.ends_with(b"/") => Ending::Slash,
            _ => Ending::Plain,
        }
    }
}

impl View {
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = match self.container {
            true => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            false => ResolveFlags::empty(),
        };
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The file that a path leads to, links followed; `stat` is None when there is none, and its
    /// directory exists.
    fn find(&self, path: &Path) -> rustix::io::Result<Found> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(name) = path.file_name().map(OsStr::to_owned) else {
                // The root, or a path that ends with `..`.
                let dir = self.open(&path, OFlags::PATH | OFlags::DIRECTORY)?;
                let stat = Some(rustix::fs::fstat(&dir)?);
                return Ok(Found { dir, name: OsString::from("."), stat });
            };
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            let dir = self.open(&parent, OFlags::PATH | OFlags::DIRECTORY)?;
            let stat = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(Found { dir, name, stat: None }),
                Err(e) => return Err(e),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                return Ok(Found { dir, name, stat: Some(stat) });
            }
            let target = rustix::fs::readlinkat(&dir, &name, Vec::new())?.into_bytes();
            path = parent.join(OsString::from_vec(target));
        }
        Err(Errno::LOOP)
    }
}

impl Host {
    /// Copies a file, or a directory with all in it. With `keep_owners` what is written belongs to
    /// whom it belonged to; else to the container's user, or to this process's.
    pub fn copy(&mut self, from: &Place, to: &Place, keep_owners: bool) -> Result<()> {
        match (from, to) {
            (Place::Stream, Place::Stream) => {
                Err(Error::Invalid("one side of a copy must be a path".to_owned()))
            }
            (Place::Stream, to) => {
                let (view, path) = self.view(to)?;
                let done = extract(&view, path, keep_owners);
                self.close(view, done)
            }
            (from, Place::Stream) => {
                let (view, path) = self.view(from)?;
                let done = archive(&view, path);
                self.close(view, done)
            }
            (from, to) => {
                let (source, source_path) = self.view(from)?;
                let (target, target_path) = match self.view(to) {
                    Ok(opened) => opened,
                    Err(error) => return self.close(source, Err(error)),
                };
                let done = between(&source, source_path, &target, target_path, keep_owners);
                let done = self.close(target, done);
                self.close(source, done)
            }
        }
    }

    /// Opens what paths of one side are resolved in.
    fn view<'p>(&mut self, place: &'p Place) -> Result<(View, &'p Path)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| {
            rustix::fs::open(path, flags, Mode::empty())
                .map_err(|e| Error::io("open", path)(e.into()))
        };
        let own = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (container, path) = match place {
            Place::Here(path) => {
                let root = open(Path::new("."))?;
                return Ok((View { root, container: false, owner: own(), mounted: None }, path));
            }
            Place::In { container, path } => (container, path),
            Place::Stream => return Err(Error::Invalid("a stream has no paths".to_owned())),
        };
        let (record, lock) = self.find_locked(container)?;
        let user =
            |root: &Path| user::resolve(root, &record.config.user).map(|user| (user.uid, user.gid));
        if let (Some(init), Some(process)) = (self.init(&record), record.init) {
            let root = PathBuf::from(format!("/proc/{}/root", process.pid));
            let view = open(&root).and_then(|opened| {
                Ok(View { root: opened, container: true, owner: user(&root)?, mounted: None })
            });
            // It was init's as long as init lives; afterwards it is nobody's, or is not there.
            if init.wait(Some(Duration::ZERO)).unwrap_or(true) {
                return Err(Error::EndedMeanwhile(record.name().to_owned()));
            }
            return Ok((view?, path));
        }
        if let Some(shim) = self.shim_of(&record) {
            // It unmounts the root, without this lock, and would take away what is mounted here. One that
            // waits before it starts the container again stays, and has nothing to do with the root.
            let ended = shim.wait(Some(END)).unwrap_or(false);
            drop(lock);
            let now = self.store.get(record.id())?;
            return match ended || now.is_none_or(|now| now.shim != record.shim) {
                true => self.view(place),
                false => Err(Error::EndedMeanwhile(record.name().to_owned())),
            };
        }
        let config = &record.config;
        let binds = config.volumes.iter().map(|volume| &volume.destination);
        let named = config.named_volumes.iter().map(|volume| &volume.destination);
        if binds.chain(named).any(|destination| path.starts_with(destination)) {
            return Err(Error::Invalid(format!(
                "{} is in a volume, which container `{}` sees only while it runs: start it first",
                path.display(),
                record.name(),
            )));
        }
        let id = record.id().to_owned();
        let merged = self.images.mount_root(&id, false).map_err(Error::storage)?;
        let opened = open(&merged).and_then(|root| Ok((root, user(&merged)?)));
        match opened {
            Ok((root, owner)) => {
                Ok((View { root, container: true, owner, mounted: Some((id, lock)) }, path))
            }
            Err(error) => {
                self.images.unmount_root(&id).map_err(Error::storage)?;
                Err(error)
            }
        }
    }

    /// Unmounts what was mounted for a view.
    fn close(&self, view: View, done: Result<()>) -> Result<()> {
        let View { root, mounted, .. } = view;
        drop(root);
        let Some((id, _lock)) = mounted else { return done };
        let closed = self.images.unmount_root(&id).map_err(Error::storage);
        done.and(closed)
    }
}

/// Looks a source up.
fn source(view: &View, path: &Path) -> Result<Found> {
    let fail = || Error::io("open", path);
    let found = view.find(path).map_err(|e| fail()(e.into()))?;
    match (&found.stat, Ending::of(path)) {
        (None, _) => Err(fail()(Errno::NOENT.into())),
        (Some(_), Ending::Slash | Ending::Contents) if !found.is_dir() => {
            Err(fail()(Errno::NOTDIR.into()))
        }
        _ => Ok(found),
    }
}

/// Writes an archive of a path to standard output.
fn archive(view: &View, path: &Path) -> Result<()> {
    let found = source(view, path)?;
    let prefix = match (Ending::of(path), path.file_name()) {
        (Ending::Contents, _) | (_, None) => PathBuf::new(),
        (_, Some(name)) => PathBuf::from(name),
    };
    let mut out = std::io::stdout().lock();
    pack(&found, &prefix, &mut out)?;
    out.flush().map_err(Error::system("write the archive"))
}

/// Unpacks standard input in a directory.
fn extract(view: &View, path: &Path, keep_owners: bool) -> Result<()> {
    let found = view.find(path).map_err(|e| Error::io("open", path)(e.into()))?;
    let dir = directory(&found).map_err(|e| Error::io("open", path)(e.into()))?;
    unpack(std::io::stdin().lock(), &dir, (!keep_owners).then_some(view.owner))
}

fn between(from: &View, path: &Path, to: &View, target: &Path, keep_owners: bool) -> Result<()> {
    let found = source(from, path)?;
    let (dir, prefix) = destination(&found, path, to, target)?;
    let owner = (!keep_owners).then_some(to.owner);
    let (reader, writer) = std::io::pipe().map_err(Error::system("make a pipe"))?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || pack(&found, &prefix, writer));
        let unpacked = unpack(reader, &dir, owner);
        let packed = packing
            .join()
            .unwrap_or_else(|_| Err(Error::Invalid("the thread that reads is gone".to_owned())));
        // A writer whose reader has failed says nothing that matters.
        unpacked.and(packed)
    })
}

/// The directory that is written to, and what the source is called in it.
fn destination(
    source: &Found,
    path: &Path,
    to: &View,
    target: &Path,
) -> Result<(OwnedFd, PathBuf)> {
    let fail = |errno: Errno| Error::io("copy to", target)(errno.into());
    let found = to.find(target).map_err(fail)?;
    if found.is_dir() {
        let dir = directory(&found).map_err(fail)?;
        return match (Ending::of(path), path.file_name()) {
            (Ending::Contents, _) | (_, None) => Ok((dir, PathBuf::new())),
            (_, Some(name)) => {
                let there = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
                let is_dir = |st: Stat| FileType::from_raw_mode(st.st_mode) == FileType::Directory;
                match there.map(is_dir) {
                    Ok(true) if !source.is_dir() => Err(fail(Errno::ISDIR)),
                    Ok(false) if source.is_dir() => Err(fail(Errno::NOTDIR)),
                    _ => Ok((dir, PathBuf::from(name))),
                }
            }
        };
    }
    let must_be_dir = Ending::of(target) != Ending::Plain;
    match found.stat {
        Some(_) if source.is_dir() || must_be_dir => Err(fail(Errno::NOTDIR)),
        None if must_be_dir && !source.is_dir() => Err(fail(Errno::NOENT)),
        _ => {
            let dir = reopen(found.dir.as_fd()).map_err(fail)?;
            Ok((dir, PathBuf::from(found.name)))
        }
    }
}

/// A found directory, for reading.
fn directory(found: &Found) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&found.dir, &found.name, flags, Mode::empty())
}

/// The directory of a descriptor that only stands for it, for reading.
fn reopen(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::empty())
}

/// Writes a file, or a directory with everything in it, as members that begin with `prefix`.
fn pack(found: &Found, prefix: &Path, out: impl Write) -> Result<()> {
    let mut packer = Packer::new(out);
    let Some(stat) = &found.stat else { return Ok(()) };
    packer.append(found.dir.as_fd(), &found.name, prefix, stat).map_err(Error::storage)?;
    if found.is_dir() {
        let dir = directory(found).map_err(|e| Error::io("open", prefix)(e.into()))?;
        pack_below(&mut packer, dir, prefix)?;
    }
    packer.finish().map(drop).map_err(Error::system("write the archive"))
}

fn pack_below<W: Write>(packer: &mut Packer<W>, dir: OwnedFd, path: &Path) -> Result<()> {
    let mut names = beneath::names(dir.as_fd()).map_err(Error::io("list", path))?;
    names.sort_unstable();
    for name in names {
        let path = path.join(&name);
        let fail = |e: Errno| Error::io("open", &path)(e.into());
        let stat = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(fail(e)),
        };
        packer.append(dir.as_fd(), &name, &path, &stat).map_err(Error::storage)?;
        let found = Found {
            dir: dir.try_clone().map_err(Error::io("open", &path))?,
            name,
            stat: Some(stat),
        };
        if found.is_dir() {
            pack_below(packer, directory(&found).map_err(fail)?, &path)?;
        }
    }
    Ok(())
}

/// Writes the members of an archive below a directory.
fn unpack(archive: impl Read, dir: &OwnedFd, owner: Option<(u32, u32)>) -> Result<()> {
    let root = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let mut unpacker =
        Unpacker::new(&root, Whiteouts::Literal).map_err(Error::system("open the directory"))?;
    let mut stream = TarStream::new(archive);
    while let Some(mut member) = stream.next_member().map_err(Error::system("read the archive"))? {
        if let Some((uid, gid)) = owner {
            member.header.set_uid(uid.into());
            member.header.set_gid(gid.into());
            member.records.retain(|(key, _)| key != "uid" && key != "gid");
        }
        // The directory itself is somebody's already: only what is put into it is ours.
        let itself = beneath::clean(Path::new(OsStr::from_bytes(&member.path)))
            .is_ok_and(|path| path.as_os_str().is_empty());
        if !itself {
            unpacker.member(&member, &mut stream).map_err(Error::storage)?;
        }
    }
    unpacker.finish().map(drop).map_err(Error::storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let inside = |name: &str, path: &str| Place::In {
            container: name.to_owned(),
            path: PathBuf::from(path),
        };
        assert_eq!(Place::parse("web:/etc"), inside("web", "/etc"));
        assert_eq!(Place::parse("web:etc/"), inside("web", "/etc/"));
        assert_eq!(Place::parse("-"), Place::Stream);
        for here in ["a/b:c", "./web:x", "/etc", "file"] {
            assert_eq!(Place::parse(here), Place::Here(PathBuf::from(here)));
        }
    }

    #[test]
    fn links_of_a_container_do_not_lead_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("secret"), "outside").expect("write");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("create");
        for (link, target) in [("abs", "/secret"), ("up", "../../secret"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, root.join("etc").join(link)).expect("link");
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = rustix::fs::open(&root, flags, Mode::empty()).expect("open");
        let view = View { root: opened, container: true, owner: (0, 0), mounted: None };
        assert!(view.find(Path::new("/etc/abs")).expect("inside").stat.is_none());
        assert!(view.find(Path::new("/etc/up")).expect("inside").stat.is_none());
        assert_eq!(view.find(Path::new("/etc/loop")).err(), Some(Errno::LOOP));
        assert!(view.find(Path::new("/../../etc")).expect("root").is_dir());
    }
}
