//! The contents of a tmpfs as a compressed tar, as GNU tar and CRIU read and write it.
//!
//! Kept: files with holes, directories, symbolic and hard links, devices, named pipes; owners, modes,
//! modification times. Not kept: sockets (whoever has one open binds it again), extended attributes
//! (CRIU's tar has none).
//!
//! Nothing in an archive is trusted: every path is opened beneath the mount and through no link.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use crate::confinement::Confinement;

/// Writes the contents of the mount `root` into `file`.
pub fn pack(root: &OwnedFd, file: File) -> io::Result<()> {
    // The descriptor's own path: nothing else can be mounted in between.
    let top = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    let mut packer = Packer {
        tar: Builder::new(GzEncoder::new(file, Compression::fast())),
        top,
        linked: HashMap::new(),
    };
    packer.tar.follow_symlinks(false);
    let metadata = fs::metadata(packer.top.join("."))?;
    let mut header = header(&metadata);
    packer.tar.append_data(&mut header, "./", io::empty())?;
    packer.directory(Path::new(""))?;
    packer.tar.into_inner()?.finish()?;
    Ok(())
}

struct Packer {
    tar: Builder<GzEncoder<File>>,
    top: PathBuf,
    /// Files with several names: the first one.
    linked: HashMap<u64, PathBuf>,
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header
}

impl Packer {
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut names: Vec<_> = fs::read_dir(self.top.join(path))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        for name in names {
            let inner = path.join(name);
            let full = self.top.join(&inner);
            let metadata = fs::symlink_metadata(&full)?;
            self.member(&inner, &full, &metadata)?;
            if metadata.is_dir() {
                self.directory(&inner)?;
            }
        }
        Ok(())
    }

    fn member(&mut self, inner: &Path, full: &Path, metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let mut header = header(metadata);
        if !metadata.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&metadata.ino()) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.tar.append_link(&mut header, inner, first);
            }
            self.linked.insert(metadata.ino(), inner.to_owned());
        }
        if kind.is_symlink() {
            header.set_size(0);
            return self.tar.append_link(&mut header, inner, fs::read_link(full)?);
        }
        if kind.is_file() {
            // Somebody outside of the tree may be writing to it: as many bytes as were announced.
            let size = metadata.len();
            let contents = File::open(full)?.take(size).chain(io::repeat(0)).take(size);
            return self.tar.append_data(&mut header, inner, contents);
        }
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(libc::major(metadata.rdev()))?;
            header.set_device_minor(libc::minor(metadata.rdev()))?;
        }
        self.tar.append_data(&mut header, inner, io::empty())
    }
}

/// Fills the mount `root` with the contents of an image. Devices are those that `confinement` allows.
pub fn unpack(root: &OwnedFd, image: File, confinement: Option<&Confinement>) -> io::Result<()> {
    let mut archive = Archive::new(MultiGzDecoder::new(BufReader::new(image)));
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = plain(&entry.path()?)?;
        let header = entry.header().clone();
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (open_dir(root, parent)?, PathBuf::from(name)),
            // The root of the mount itself.
            _ => (open_dir(root, Path::new(""))?, PathBuf::from(".")),
        };
        let mode = Mode::from_bits_truncate(header.mode()?);
        let device = || -> io::Result<u64> {
            let part = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default);
            Ok(libc::makedev(part(header.device_major())?, part(header.device_minor())?))
        };
        let allowed = |kind: u32, device: u64| match confinement {
            Some(confinement) if !confinement.allows_device(kind, device) => {
                let text = format!(
                    "the archive's member {} is a device that no container has",
                    path.display()
                );
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
            _ => Ok(device),
        };
        let node = |kind: SFlag, device: u64| mknodat(&parent, &name, kind, Mode::S_IRUSR, device);
        match header.entry_type() {
            EntryType::Directory if name == Path::new(".") => {}
            EntryType::Directory => match mkdirat(&parent, &name, Mode::S_IRWXU) {
                Ok(()) => {}
                // What has the name may be a link, which leads anywhere.
                Err(nix::errno::Errno::EEXIST) => drop(open_dir(&parent, &name)?),
                Err(error) => return Err(error.into()),
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let how = beneath().flags(flags).mode(Mode::S_IRUSR | Mode::S_IWUSR);
                write_sparse(&mut entry, File::from(openat2(&parent, &name, how)?))?;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
                symlinkat(target.as_ref(), &parent, &name)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
                let target = plain(&target)?;
                let above = open_dir(root, target.parent().unwrap_or(Path::new("")))?;
                let last = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
                linkat(&above, last, &parent, &name, AtFlags::empty())?;
                continue;
            }
            EntryType::Char => node(SFlag::S_IFCHR, allowed(libc::S_IFCHR, device()?)?)?,
            EntryType::Block => node(SFlag::S_IFBLK, allowed(libc::S_IFBLK, device()?)?)?,
            EntryType::Fifo => node(SFlag::S_IFIFO, 0)?,
            _ => continue,
        }
        let owner =
            |id: u64| u32::try_from(id).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (uid, gid) = (owner(header.uid()?)?, owner(header.gid()?)?);
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(&parent, &name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // Change of owner clears set-id bits, so the mode comes after it.
        if header.entry_type() != EntryType::Symlink {
            fchmodat(&parent, &name, mode, FchmodatFlags::FollowSymlink)?;
        }
        let seconds = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
        let times = TimeSpec::new(seconds, 0);
        if header.entry_type() == EntryType::Directory {
            // Whatever is made in it changes its time.
            directories.push((parent, name, times));
        } else {
            utimensat(&parent, &name, &times, &times, UtimensatFlags::NoFollowSymlink)?;
        }
    }
    for (parent, name, times) in directories.into_iter().rev() {
        utimensat(parent.as_fd(), &name, &times, &times, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

/// A relative path of plain names; an error for anything that leads elsewhere.
fn plain(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                let text = format!("the archive's path {} leads out of it", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok(plain)
}

fn beneath() -> OpenHow {
    OpenHow::new().resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    )
}

/// Opens a directory of the mount.
fn open_dir(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat2(root, path, beneath().flags(flags))?)
}

/// Copies a file and leaves out what is zero.
fn write_sparse(from: &mut impl Read, mut to: File) -> io::Result<()> {
    let mut block = vec![0; 64 * 1024];
    let mut size = 0u64;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return to.set_len(size);
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(size))?;
            to.write_all(&block[..filled])?;
        }
        size += filled as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn sample(dir: &Path) {
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/f"), b"text").unwrap();
        fs::write(dir.join("a").join("n".repeat(180)), b"long").unwrap();
        fs::hard_link(dir.join("a/f"), dir.join("a/b/g")).unwrap();
        symlink("/etc/passwd", dir.join("link")).unwrap();
        let mut holes = File::create(dir.join("holes")).unwrap();
        holes.seek(SeekFrom::Start(1 << 20)).unwrap();
        holes.write_all(b"end").unwrap();
        fs::set_permissions(dir.join("a/b"), fs::Permissions::from_mode(0o1750)).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRUSR).unwrap();
    }

    fn check(dir: &Path) {
        assert_eq!(fs::read(dir.join("a/f")).unwrap(), b"text");
        assert_eq!(fs::read(dir.join("a").join("n".repeat(180))).unwrap(), b"long");
        let meta = |path: &str| fs::symlink_metadata(dir.join(path)).unwrap();
        assert_eq!(meta("a/f").ino(), meta("a/b/g").ino());
        assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(meta("holes").len(), (1 << 20) + 3);
        assert_eq!(meta("a/b").mode() & 0o7777, 0o1750);
        assert!(meta("fifo").file_type().is_fifo());
    }

    #[test]
    fn contents_survive_the_round_trip() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        sample(from.path());
        let image = tempfile::NamedTempFile::new().unwrap();
        pack(&open(from.path()), image.reopen().unwrap()).unwrap();
        unpack(&open(to.path()), image.reopen().unwrap(), None).unwrap();
        check(to.path());
        let blocks = fs::metadata(to.path().join("holes")).unwrap().blocks();
        assert!(blocks < 1024, "holes stay holes: {blocks}");
    }

    #[test]
    fn gnu_tar_reads_ours_and_we_read_its() {
        let dirs: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        sample(dirs[0].path());
        let image = tempfile::NamedTempFile::new().unwrap();
        let tar =
            |args: &[&str]| assert!(Command::new("tar").args(args).status().unwrap().success());
        let paths = dirs.each_ref().map(|dir| dir.path().to_str().unwrap());
        let file = image.path().to_str().unwrap();
        pack(&open(dirs[0].path()), image.reopen().unwrap()).unwrap();
        tar(&["-x", "-z", "-p", "-f", file, "-C", paths[1]]);
        check(dirs[1].path());
        tar(&["-c", "-z", "--sparse", "--numeric-owner", "-f", file, "-C", paths[1], "."]);
        unpack(&open(dirs[2].path()), image.reopen().unwrap(), None).unwrap();
        check(dirs[2].path());
    }

    #[test]
    fn hostile_archives_do_not_get_out() {
        let (outside, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let evil = |build: &dyn Fn(&mut Builder<GzEncoder<File>>)| {
            let image = tempfile::NamedTempFile::new().unwrap();
            let file = image.reopen().unwrap();
            let mut tar = Builder::new(GzEncoder::new(file, Compression::fast()));
            build(&mut tar);
            tar.into_inner().unwrap().finish().unwrap();
            unpack(&open(to.path()), image.reopen().unwrap(), None)
        };
        let file = |tar: &mut Builder<GzEncoder<File>>, name: &[u8]| {
            let mut header = Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_size(1);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            tar.append(&header, &b"x"[..]).unwrap();
        };
        assert!(evil(&|tar| file(tar, b"../x")).is_err());
        let victim = outside.path().join("victim");
        fs::write(&victim, b"").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        let node = |tar: &mut Builder<GzEncoder<File>>, kind: EntryType, target: &Path| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o777);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_device_major(8).unwrap();
            header.set_device_minor(0).unwrap();
            match kind {
                EntryType::Symlink => tar.append_link(&mut header, "name", target).unwrap(),
                _ => tar.append_data(&mut header, "name", io::empty()).unwrap(),
            }
        };
        let directory_over_link = evil(&|tar| {
            node(tar, EntryType::Symlink, &victim);
            node(tar, EntryType::Directory, Path::new(""));
        });
        assert!(directory_over_link.is_err());
        let mode = fs::metadata(&victim).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "the mode of a file outside was changed");
        fs::remove_file(to.path().join("name")).unwrap();
        fs::remove_file(&victim).unwrap();
        assert!(evil(&|tar| file(tar, b"/tmp/arctern-evil")).is_err());
        let through_link = evil(&|tar| {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            tar.append_link(&mut header, "way", outside.path()).unwrap();
            file(tar, b"way/x");
        });
        assert!(through_link.is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!Path::new("/tmp/arctern-evil").exists());
    }
}
