//! Unpacking an archive into a directory.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::symlinkat;

use super::ledger::{Document, Judged, Ledger, link_member};
use super::members::{Entry, EntryKind, Limits, Members, open_members};
use super::name::LINK_TARGET;
use super::{ArchiveError, STEP};
use crate::digest::Hasher;
use crate::manifest::{Manifest, Member};
use crate::seal::{Signature, Unseal};

/// Who wrote an archive, as far as that can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Arctern: every member matched its digest.
    Arctern(Box<Manifest>),
    /// Podman or another program: there is no manifest and nothing to compare with.
    Foreign,
}

/// What was unpacked.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// Who wrote the archive.
    pub provenance: Provenance,
    /// Its files and links, in order, the manifest left out.
    pub members: Vec<Member>,
    /// Bytes written.
    pub bytes: u64,
    /// Who signed it, if somebody did.
    pub signature: Option<Signature>,
}

/// Unpacks an archive into `dest`, a directory that should be empty, and compares every member with
/// the manifest's digest if there is one. Files belong to the caller and are readable by nobody else.
/// `unseal` opens what is encrypted and says who must have signed it. `progress` is told how many bytes were written so far.
///
/// After an error `dest` holds part of the archive, which the caller removes.
///
/// # Errors
/// The archive is damaged, incomplete, refused or over a limit; there is no space; a member is not
/// what the manifest says, is missing, or is not in it.
pub fn extract<R: Read>(
    source: R,
    dest: &Path,
    limits: Limits,
    unseal: &Unseal,
    progress: &mut dyn FnMut(u64),
) -> Result<Extracted, ArchiveError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(dest, flags, Mode::empty())
        .map_err(ArchiveError::io("open the directory", dest.display()))?;
    let mut members = open_members(crate::seal::open(source, unseal.keys.as_ref())?, limits)?;
    let mut unpack = Unpack {
        free: free_space(&root).map_err(ArchiveError::io("ask for space in", dest.display()))?,
        root,
        directory: None,
        bytes: 0,
        buffer: vec![0; STEP],
        progress,
    };
    let mut ledger = Ledger::default();
    while let Some(entry) = members.next_entry()? {
        match entry.kind {
            EntryKind::Directory => {
                unpack.make_directory(&entry.name)?;
                ledger.directory(&entry.name);
            }
            EntryKind::ParentLink => ledger.found.push(unpack.link(entry.name)?),
            EntryKind::File { size } => match ledger.document(&entry, &mut members)? {
                Some(Document::Manifest(json)) => {
                    unpack.file(&entry, size, |file| file.write_all(&json))?;
                }
                Some(Document::Signature) => {}
                None => ledger.found.push(unpack.content(&entry, size, &mut members)?),
            },
        }
    }
    let Judged { found, manifest, signature } = ledger.judge(unseal)?;
    let provenance = match manifest {
        Some(manifest) => Provenance::Arctern(Box::new(manifest)),
        None => Provenance::Foreign,
    };
    Ok(Extracted { provenance, members: found, bytes: unpack.bytes, signature })
}

fn free_space(dir: &OwnedFd) -> Result<u64, Errno> {
    let stat = fstatvfs(dir)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

struct Unpack<'a> {
    root: OwnedFd,
    /// Bytes that were free at the beginning.
    free: u64,
    /// The directory of the member before, by name: members of one directory follow each other.
    directory: Option<(String, OwnedFd)>,
    bytes: u64,
    buffer: Vec<u8>,
    progress: &'a mut dyn FnMut(u64),
}

impl Unpack<'_> {
    /// Writes a file member while computing its digest.
    fn content<R: Read>(
        &mut self,
        entry: &Entry,
        size: u64,
        members: &mut Members<R>,
    ) -> Result<Member, ArchiveError> {
        let mut file = self.create(entry, size)?;
        let mut hasher = Hasher::default();
        loop {
            let read = members.read_content(&mut self.buffer)?;
            if read == 0 {
                break;
            }
            let bytes = &self.buffer[..read];
            file.write_all(bytes).map_err(ArchiveError::io("write", &entry.name))?;
            hasher.update(bytes);
            self.bytes += read as u64;
            (self.progress)(self.bytes);
        }
        Ok(Member { name: entry.name.clone(), size, sha256: hasher.finish(), link: None })
    }

    /// Writes a file that is in memory.
    fn file(
        &mut self,
        entry: &Entry,
        size: u64,
        write: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let mut file = self.create(entry, size)?;
        write(&mut file).map_err(ArchiveError::io("write", &entry.name))?;
        self.bytes += size;
        Ok(())
    }

    fn create(&mut self, entry: &Entry, size: u64) -> Result<File, ArchiveError> {
        let free = self.free.saturating_sub(self.bytes);
        if size > free {
            let member = entry.name.clone();
            return Err(ArchiveError::NoSpace { member, needed: size, free });
        }
        let (directory, name) = self.parent(&entry.name)?;
        let how = beneath()
            .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC)
            .mode(Mode::S_IRUSR | Mode::S_IWUSR);
        let fd = openat2(directory, name, how).map_err(ArchiveError::io("create", &entry.name))?;
        Ok(File::from(fd))
    }

    fn link(&mut self, name: String) -> Result<Member, ArchiveError> {
        let (directory, last) = self.parent(&name)?;
        symlinkat(LINK_TARGET, directory, last).map_err(ArchiveError::io("create", &name))?;
        Ok(link_member(name))
    }

    /// Opens the directory of a member, making it if it is not there; returns it with the member's
    /// last component.
    fn parent<'n>(&mut self, name: &'n str) -> Result<(BorrowedFd<'_>, &'n str), ArchiveError> {
        match name.rsplit_once('/') {
            Some((directory, last)) => {
                self.make_directory(directory)?;
                let fd = self.directory.as_ref().map_or(&self.root, |(_, fd)| fd);
                Ok((fd.as_fd(), last))
            }
            None => Ok((self.root.as_fd(), name)),
        }
    }

    /// Opens a directory into `self.directory`, making it and those above it if they are not there.
    fn make_directory(&mut self, name: &str) -> Result<(), ArchiveError> {
        if name.is_empty() || self.directory.as_ref().is_some_and(|(open, _)| open == name) {
            return Ok(());
        }
        let mut current: Option<OwnedFd> = None;
        for component in name.split('/') {
            let above = current.as_ref().unwrap_or(&self.root);
            match mkdirat(above, component, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(ArchiveError::io("make the directory", name)(errno)),
            }
            let how = beneath().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
            let fd = openat2(above, component, how)
                .map_err(ArchiveError::io("open the directory", name))?;
            current = Some(fd);
        }
        self.directory = current.map(|fd| (name.to_owned(), fd));
        Ok(())
    }
}

/// Nothing outside the directory, no link on the way.
fn beneath() -> OpenHow {
    OpenHow::new().resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}
