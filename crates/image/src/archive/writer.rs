//! Writing an archive.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::Mode;
use tar::{EntryType, Header};

use super::compression::Encoder;
use super::name::{LINK_NAME, LINK_TARGET, normalise, printable};
use super::target::Target;
use super::{ArchiveError, Compression, STEP};
use crate::digest::{Digest, Hasher};
use crate::manifest::{MANIFEST_NAME, Manifest, Member};
use crate::seal::{SIGNATURE_NAME, Seal, Sealed, Signer};
use crate::section::Section;

const BLOCK: usize = 512;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Size of the archive in bytes.
    pub bytes: u64,
    /// Bytes of all members before compression.
    pub content_bytes: u64,
    /// Number of members, the manifest included.
    pub members: u64,
}

/// Where an archive goes.
enum Output {
    File(Target),
    Stream {
        to: Box<dyn Write + Send>,
        /// Written so far.
        bytes: u64,
    },
}

impl Write for Output {
    fn write(&mut self, content: &[u8]) -> std::io::Result<usize> {
        match self {
            Output::File(target) => target.write(content),
            Output::Stream { to, bytes } => {
                let written = to.write(content)?;
                *bytes += written as u64;
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Output::File(target) => Write::flush(target),
            Output::Stream { to, .. } => to.flush(),
        }
    }
}

/// Writes one archive in one pass. Dropped before [`ArchiveWriter::finish`] it leaves nothing behind.
pub struct ArchiveWriter {
    sink: Encoder<BufWriter<Sealed<Output>>>,
    signer: Option<Signer>,
    members: Vec<Member>,
    names: HashSet<String>,
    content_bytes: u64,
    mtime: u64,
    buffer: Vec<u8>,
    /// For errors.
    path: String,
}

impl ArchiveWriter {
    /// Begins an archive that will appear at `path`, in place of a file that is there.
    ///
    /// # Errors
    /// The directory is missing or not writable, or `path` is a directory: worth knowing before
    /// anything is frozen.
    pub fn create(path: &Path, compression: Compression) -> Result<Self, ArchiveError> {
        Self::create_sealed(path, compression, &Seal::default())
    }

    /// As [`ArchiveWriter::create`], signed and encrypted as `seal` says.
    ///
    /// # Errors
    /// Also: a recipient cannot be encrypted to.
    pub fn create_sealed(
        path: &Path,
        compression: Compression,
        seal: &Seal,
    ) -> Result<Self, ArchiveError> {
        let output = Output::File(Target::create(path)?);
        Self::new(output, compression, seal, path.display().to_string())
    }

    /// Begins an archive that goes to a stream as it is made; `name` is the stream's, for errors.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn stream(
        to: Box<dyn Write + Send>,
        name: &str,
        compression: Compression,
    ) -> Result<Self, ArchiveError> {
        Self::stream_sealed(to, name, compression, &Seal::default())
    }

    /// As [`ArchiveWriter::stream`], signed and encrypted as `seal` says.
    ///
    /// # Errors
    /// Also: a recipient cannot be encrypted to.
    pub fn stream_sealed(
        to: Box<dyn Write + Send>,
        name: &str,
        compression: Compression,
        seal: &Seal,
    ) -> Result<Self, ArchiveError> {
        let output = Output::Stream { to, bytes: 0 };
        Self::new(output, compression, seal, name.to_owned())
    }

    fn new(
        output: Output,
        compression: Compression,
        seal: &Seal,
        path: String,
    ) -> Result<Self, ArchiveError> {
        let begin = || ArchiveError::io("begin the archive", &path);
        let sealed = Sealed::new(output, seal.recipients.as_ref()).map_err(begin())?;
        let sink =
            Encoder::new(BufWriter::with_capacity(STEP, sealed), compression).map_err(begin())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            sink,
            signer: seal.signer.clone(),
            members: Vec::new(),
            names: HashSet::new(),
            content_bytes: 0,
            mtime: now.as_secs(),
            buffer: vec![0; STEP],
            path,
        })
    }

    /// Adds a small member.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.add_stream(name, bytes.len() as u64, &mut &*bytes)
    }

    /// Adds the first `size` bytes of a file, whose offset is neither used nor moved.
    pub fn add_file(&mut self, name: &str, file: &File, size: u64) -> Result<(), ArchiveError> {
        self.add_stream(name, size, &mut Section::new(file, 0, size))
    }

    /// Adds a member of `size` bytes from a stream that has at least as many.
    ///
    /// # Errors
    /// The name is refused or was used before; the stream ends early ([`ArchiveError::SourceChanged`],
    /// after which the archive cannot be finished sensibly); a read or write fails.
    pub fn add_stream(
        &mut self,
        name: &str,
        size: u64,
        source: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        let name = self.member_name(name)?;
        let sha256 = self.content(&name, size, source)?;
        self.members.push(Member { name, size, sha256, link: None });
        Ok(())
    }

    /// Adds every file below a directory, in order of their names, as `prefix/…` (an
    /// empty prefix puts them at the archive's root). The link
    /// `checkpoint/parent` to `../pre-checkpoint` is added as what it is.
    ///
    /// # Errors
    /// As [`ArchiveWriter::add_stream`]; there is something that is neither file nor directory.
    pub fn add_dir_tree(&mut self, prefix: &str, path: &Path) -> Result<(), ArchiveError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(ArchiveError::io("open the directory", path.display()))?;
        let refused = |reason| ArchiveError::refused(printable(prefix.as_bytes()), reason);
        let prefix = match prefix {
            "" => String::new(),
            prefix => normalise(prefix.as_bytes()).map_err(refused)?,
        };
        self.add_dir(&prefix, fd)
    }

    fn add_dir(&mut self, prefix: &str, fd: OwnedFd) -> Result<(), ArchiveError> {
        self.directory(prefix)?;
        let mut dir = Dir::from_fd(fd).map_err(ArchiveError::io("list", prefix))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(ArchiveError::io("list", prefix))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let text = std::str::from_utf8(name)
                    .map_err(|_| ArchiveError::refused(printable(name), "its name is not UTF-8"))?;
                names.push(text.to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            let member = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            self.add_dir_entry(&dir, &name, member)?;
        }
        Ok(())
    }

    fn add_dir_entry(&mut self, dir: &Dir, name: &str, member: String) -> Result<(), ArchiveError> {
        // Without O_NONBLOCK a fifo would hang us.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let fd = match openat2(dir, name, how) {
            Ok(fd) => fd,
            Err(Errno::ELOOP) => {
                let target = readlinkat(dir, name).map_err(ArchiveError::io("read", &member))?;
                if member != LINK_NAME || target != LINK_TARGET {
                    return Err(ArchiveError::refused(member, "it is a symbolic link"));
                }
                return self.parent_link();
            }
            // A socket cannot be opened.
            Err(Errno::ENXIO) => {
                return Err(ArchiveError::refused(member, "it is neither file nor directory"));
            }
            Err(errno) => return Err(ArchiveError::io("open", &member)(errno)),
        };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(ArchiveError::io("look at", &member))?;
        if metadata.is_dir() {
            self.add_dir(&member, file.into())
        } else if metadata.is_file() {
            self.add_file(&member, &file, metadata.len())
        } else {
            Err(ArchiveError::refused(member, "it is neither file nor directory"))
        }
    }

    /// Adds the manifest, whose members are filled in, and its signature, ends the archive, writes it
    /// to disk and gives it its name.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<ArchiveSummary, ArchiveError> {
        manifest.members = std::mem::take(&mut self.members);
        let mut members = manifest.members.len() as u64 + 1;
        let json = manifest.to_json();
        self.content(MANIFEST_NAME, json.len() as u64, &mut json.as_slice())?;
        if let Some(signer) = self.signer.take() {
            let signature = signer.sign(&json)?;
            self.content(SIGNATURE_NAME, signature.len() as u64, &mut signature.as_bytes())?;
            members += 1;
        }
        self.write(&[0; 2 * BLOCK])?;
        let write_error = || ArchiveError::io("write", &self.path);
        let buffered = self.sink.finish().map_err(write_error())?;
        let sealed = buffered.into_inner().map_err(|error| write_error()(error.into_error()))?;
        let output = sealed.finish().map_err(write_error())?;
        let bytes = match output {
            Output::File(target) => target.publish()?,
            Output::Stream { mut to, bytes } => {
                to.flush().map_err(write_error())?;
                bytes
            }
        };
        Ok(ArchiveSummary { bytes, content_bytes: self.content_bytes, members })
    }

    /// Checks a new member's name and announces the directories above it.
    fn member_name(&mut self, name: &str) -> Result<String, ArchiveError> {
        let refused = |reason| ArchiveError::refused(printable(name.as_bytes()), reason);
        let name = normalise(name.as_bytes()).map_err(refused)?;
        if name.is_empty() {
            return Err(refused("it has no name"));
        }
        if name == MANIFEST_NAME || name == SIGNATURE_NAME {
            return Err(refused("the manifest and its signature are added at the end"));
        }
        if let Some((above, _)) = name.rsplit_once('/') {
            self.directory(above)?;
        }
        if !self.names.insert(name.clone()) {
            return Err(ArchiveError::Duplicate { member: name });
        }
        Ok(name)
    }

    /// Adds a directory, and first those above it, unless they are there.
    fn directory(&mut self, name: &str) -> Result<(), ArchiveError> {
        if name.is_empty() || self.names.contains(name) {
            return Ok(());
        }
        if let Some((above, _)) = name.rsplit_once('/') {
            self.directory(above)?;
        }
        self.names.insert(name.to_owned());
        self.header(&format!("{name}/"), EntryType::Directory, 0, "")
    }

    fn parent_link(&mut self) -> Result<(), ArchiveError> {
        let name = self.member_name(LINK_NAME)?;
        self.header(&name, EntryType::Symlink, 0, LINK_TARGET)?;
        self.members.push(Member {
            name,
            size: 0,
            sha256: Digest::of(LINK_TARGET.as_bytes()),
            link: Some(LINK_TARGET.to_owned()),
        });
        Ok(())
    }

    /// Writes a file member and returns its digest.
    fn content(
        &mut self,
        name: &str,
        size: u64,
        source: &mut dyn Read,
    ) -> Result<Digest, ArchiveError> {
        self.header(name, EntryType::Regular, size, "")?;
        let mut hasher = Hasher::default();
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = match source.read(&mut buffer[..length]) {
                Ok(0) => {
                    return Err(ArchiveError::SourceChanged {
                        member: name.to_owned(),
                        expected: size,
                    });
                }
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::io("read", name)(error)),
            };
            hasher.update(&buffer[..read]);
            self.write(&buffer[..read])?;
            left -= read as u64;
        }
        self.buffer = buffer;
        self.content_bytes += size;
        self.pad(size)?;
        Ok(hasher.finish())
    }

    fn header(
        &mut self,
        name: &str,
        kind: EntryType,
        size: u64,
        link: &str,
    ) -> Result<(), ArchiveError> {
        let mut header = self.blank_header(kind, size);
        if header.set_path(name).is_err() {
            // GNU's way for names over 100 bytes: a member that holds the name of the next.
            let mut long = self.blank_header(EntryType::GNULongName, name.len() as u64 + 1);
            long.set_path("././@LongLink").map_err(ArchiveError::io("name", name))?;
            long.set_cksum();
            self.write(long.as_bytes())?;
            self.write(name.as_bytes())?;
            self.write(&[0])?;
            self.pad(name.len() as u64 + 1)?;
        }
        if !link.is_empty() {
            header.set_link_name(link).map_err(ArchiveError::io("name", name))?;
        }
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn blank_header(&self, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(if kind == EntryType::Directory { 0o700 } else { 0o600 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime);
        header
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        self.write(&[0; BLOCK][..padding as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.sink.write_all(bytes).map_err(ArchiveError::io("write", &self.path))
    }
}
