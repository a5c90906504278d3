//! Writing files of a directory tree as members of a tar stream.
//!
//! Members are POSIX ustar headers, preceded by pax records for what those cannot say: times with
//! nanoseconds, long or odd paths, big ids, extended attributes (`SCHILY.xattr.NAME`). Everybody's
//! tar reads that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::beneath;
use crate::unpack::{PAX_XATTR, is_overlay_xattr};

/// A file that could not be put into an archive.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct PackError {
    /// What was tried.
    pub action: &'static str,
    /// With which file, relative to the tree.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// What was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Members written.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
}

/// Writes members. Memory grows with the number of files that have several links only.
pub struct Packer<W: Write> {
    tar: tar::Builder<W>,
    /// First path of each file with several links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    packed: Packed,
}

impl<W: Write> Packer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Packer { tar: tar::Builder::new(out), links: HashMap::new(), packed: Packed::default() }
    }

    /// What was written so far.
    pub fn packed(&self) -> Packed {
        self.packed
    }

    /// Writes the end of the archive and returns what it was written to.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    /// Appends `name` in `dir` as the member `path`. Sockets cannot be archived and are left out:
    /// says whether there is a member now.
    ///
    /// # Errors
    /// [`PackError`] naming the file.
    pub fn append(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        st: &Stat,
    ) -> Result<bool, PackError> {
        let doing =
            |action| move |e: io::Error| PackError { action, path: path.to_owned(), source: e };
        let file_type = FileType::from_raw_mode(st.st_mode);
        if file_type == FileType::Socket {
            return Ok(false);
        }
        let mut member = Member::new(path, st);
        if file_type != FileType::Directory && st.st_nlink > 1 {
            let key = (st.st_dev, st.st_ino);
            if let Some(first) = self.links.get(&key) {
                member.link(EntryType::Link, first.as_os_str());
                self.write(member, &mut io::empty()).map_err(doing("archive"))?;
                return Ok(true);
            }
            self.links.insert(key, path.to_owned());
        }
        match file_type {
            FileType::RegularFile => {
                let file = open(dir, name, OFlags::empty()).map_err(doing("open"))?;
                member.xattrs_of_fd(&file).map_err(doing("read extended attributes of"))?;
                let size = u64::try_from(st.st_size).unwrap_or(0);
                member.content(size);
                self.packed.bytes += size;
                let mut content = Exactly { file: File::from(file), left: size };
                self.write(member, &mut content).map_err(doing("archive"))?;
            }
            FileType::Directory => {
                let file = open(dir, name, OFlags::DIRECTORY).map_err(doing("open"))?;
                member.xattrs_of_fd(&file).map_err(doing("read extended attributes of"))?;
                member.header.set_entry_type(EntryType::Directory);
                self.write(member, &mut io::empty()).map_err(doing("archive"))?;
            }
            _ => {
                let full = beneath::through_fd(dir, name);
                member.xattrs_of_path(&full).map_err(doing("read extended attributes of"))?;
                match file_type {
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(dir, name, Vec::new())
                            .map_err(|e| doing("read link")(e.into()))?;
                        member.link(EntryType::Symlink, OsStr::from_bytes(target.as_bytes()));
                    }
                    FileType::Fifo => member.header.set_entry_type(EntryType::Fifo),
                    FileType::CharacterDevice => member.device(EntryType::Char, st),
                    FileType::BlockDevice => member.device(EntryType::Block, st),
                    _ => return Ok(false),
                }
                self.write(member, &mut io::empty()).map_err(doing("archive"))?;
            }
        }
        Ok(true)
    }

    /// Appends records that belong to no member (a pax global header).
    ///
    /// # Errors
    /// Those of writing.
    pub fn append_global(&mut self, records: &[(String, Vec<u8>)]) -> io::Result<()> {
        let mut body = Vec::new();
        for (key, value) in records {
            pax_record(&mut body, key, value);
        }
        self.append_pax(EntryType::XGlobalHeader, &body)
    }

    fn append_pax(&mut self, kind: EntryType, body: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("pax_header")?;
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.tar.append(&header, body)
    }

    fn write(&mut self, mut member: Member, content: &mut dyn Read) -> io::Result<()> {
        if !member.records.is_empty() {
            self.append_pax(EntryType::XHeader, &member.records)?;
        }
        member.header.set_cksum();
        self.tar.append(&member.header, content)?;
        self.packed.entries += 1;
        Ok(())
    }
}

/// A member's header and its pax records.
struct Member {
    header: Header,
    records: Vec<u8>,
}

/// The largest number that fits into the seven octal digits of an id field.
const MAX_OCTAL_ID: u32 = 0o7_777_777;

impl Member {
    fn new(path: &Path, st: &Stat) -> Self {
        let mut member = Member { header: Header::new_ustar(), records: Vec::new() };
        let mut name = path.as_os_str().as_bytes().to_vec();
        if name.is_empty() {
            name.extend(b"./");
        } else if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
            name.push(b'/');
        }
        member.name(&name);
        let header = &mut member.header;
        header.set_mode(st.st_mode & 0o7777);
        header.set_size(0);
        header.set_uid(u64::from(st.st_uid.min(MAX_OCTAL_ID)));
        header.set_gid(u64::from(st.st_gid.min(MAX_OCTAL_ID)));
        // The header has unsigned seconds; the record below says it all.
        let seconds = u64::try_from(st.st_mtime).unwrap_or(0);
        header.set_mtime(seconds.min(0o77_777_777_777));
        if st.st_uid > MAX_OCTAL_ID {
            member.record("uid", st.st_uid.to_string().as_bytes());
        }
        if st.st_gid > MAX_OCTAL_ID {
            member.record("gid", st.st_gid.to_string().as_bytes());
        }
        let nanos = i64::try_from(st.st_mtime_nsec).unwrap_or(0);
        if nanos != 0 || u64::try_from(st.st_mtime).is_err() {
            member.record("mtime", pax_time(st.st_mtime, nanos).as_bytes());
        }
        member
    }

    /// The path: in the header if it fits, else in a record.
    fn name(&mut self, name: &[u8]) {
        let field = &mut self.header.as_old_mut().name;
        if name.len() <= field.len() {
            field[..name.len()].copy_from_slice(name);
            return;
        }
        // A reader without pax sees the beginning.
        let len = field.len();
        field.copy_from_slice(&name[..len]);
        self.record("path", name);
    }

    fn link(&mut self, kind: EntryType, target: &OsStr) {
        self.header.set_entry_type(kind);
        let target = target.as_bytes();
        let field = &mut self.header.as_old_mut().linkname;
        if target.len() <= field.len() {
            field[..target.len()].copy_from_slice(target);
            return;
        }
        let len = field.len();
        field.copy_from_slice(&target[..len]);
        self.record("linkpath", target);
    }

    fn content(&mut self, size: u64) {
        self.header.set_entry_type(EntryType::Regular);
        // Beyond 8 GiB the header's field is base-256, which is not ustar: the record is.
        self.header.set_size(size);
        if size > 0o77_777_777_777 {
            self.record("size", size.to_string().as_bytes());
        }
    }

    fn device(&mut self, kind: EntryType, st: &Stat) {
        self.header.set_entry_type(kind);
        // Infallible for ustar headers.
        let _ = self.header.set_device_major(rustix::fs::major(st.st_rdev));
        let _ = self.header.set_device_minor(rustix::fs::minor(st.st_rdev));
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        pax_record(&mut self.records, key, value);
    }

    fn xattrs_of_fd(&mut self, fd: &OwnedFd) -> io::Result<()> {
        self.xattrs(
            |buffer| rustix::fs::flistxattr(fd, buffer),
            |name, buffer| rustix::fs::fgetxattr(fd, name, buffer),
        )
    }

    fn xattrs_of_path(&mut self, path: &Path) -> io::Result<()> {
        self.xattrs(
            |buffer| rustix::fs::llistxattr(path, buffer),
            |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
        )
    }

    fn xattrs(
        &mut self,
        list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
        get: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
    ) -> io::Result<()> {
        // Limits of the kernel: XATTR_LIST_MAX and XATTR_SIZE_MAX, both 64 KiB.
        let mut names = [0u8; 1024];
        let names = match list(&mut names) {
            Ok(len) => names[..len].to_vec(),
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(Errno::RANGE) => {
                let mut all = vec![0; 65536];
                let len = list(&mut all)?;
                all.truncate(len);
                all
            }
            Err(e) => return Err(e.into()),
        };
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let Ok(text) = std::str::from_utf8(name) else { continue };
            if is_overlay_xattr(text) {
                continue;
            }
            let mut value = vec![0; 65536];
            match get(OsStr::from_bytes(name), &mut value) {
                Ok(len) => self.record(&format!("{PAX_XATTR}{text}"), &value[..len]),
                // Gone meanwhile.
                Err(Errno::NODATA) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Opens a file without following links, without changing its access time where we may.
fn open(dir: BorrowedFd<'_>, name: &OsStr, extra: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | extra;
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// `LEN KEY=VALUE\n`, where LEN counts itself.
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend(format!("{len} {key}=").bytes());
    out.extend(value);
    out.push(b'\n');
}

/// A time as a decimal number.
fn pax_time(seconds: i64, nanos: i64) -> String {
    if seconds >= 0 || nanos == 0 {
        return format!("{seconds}.{nanos:09}");
    }
    // -2 s + 750 ms is -1.25.
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
}

/// A file's content, cut or padded to the size that the header promises.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let mut got = self.file.read(&mut buf[..want])?;
        if got == 0 {
            // It shrank while it was read.
            buf[..want].fill(0);
            got = want;
        }
        self.left -= got as u64;
        Ok(got)
    }
}

/// The times of a file as they are set on its copy.
pub(crate) fn stat_times(st: &Stat) -> Timestamps {
    let mtime =
        Timespec { tv_sec: st.st_mtime, tv_nsec: i64::try_from(st.st_mtime_nsec).unwrap_or(0) };
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// `fstatat(2)` without following links.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for value in [0, 1, 80, 89, 90, 91, 92, 980, 990, 995, 1000] {
            let mut out = Vec::new();
            pax_record(&mut out, "k", &vec![b'x'; value]);
            let text = String::from_utf8(out.clone()).expect("text");
            let len: usize = text.split(' ').next().and_then(|l| l.parse().ok()).expect("length");
            assert_eq!(len, out.len());
        }
    }

    #[test]
    fn times_before_the_epoch_are_negative_decimals() {
        assert_eq!(pax_time(5, 7), "5.000000007");
        assert_eq!(pax_time(-2, 750_000_000), "-1.250000000");
        assert_eq!(pax_time(-2, 0), "-2.000000000");
        assert_eq!(pax_time(-1, 999_999_999), "-0.000000001");
    }
}
