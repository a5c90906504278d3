//! Reading a tar stream member by member.
//!
//! Understood are the formats that Podman, checkpointctl, GNU tar and Arctern write: ustar, GNU long
//! names, and the pax records `path`, `linkpath` and `size`. Everything that a checkpoint archive has
//! no use for is refused when its header is read, before any content.

use std::collections::HashSet;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::compression::Decoder;
use super::name::{LINK_NAME, LINK_TARGET, normalise, printable};
use super::{ArchiveError, Compression, STEP};

const BLOCK: u64 = 512;

/// The largest long name or pax record list, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;

/// The most bytes that may follow the end of the archive: writers fill up to a tape record.
const MAX_TRAILER: u64 = 1 << 20;

/// What an archive may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all members together.
    pub total_bytes: u64,
    /// Number of members, directories included.
    pub members: u64,
}

impl Default for Limits {
    /// 16 TiB in a million members; extraction checks the free space besides.
    fn default() -> Self {
        Self { total_bytes: 16 << 40, members: 1_000_000 }
    }
}

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: relative, without `.` and `..` components.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with this many bytes.
    File {
        /// Its size in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// The link [`LINK_NAME`] to [`LINK_TARGET`].
    ParentLink,
}

/// The members of an archive in order. Reading from it reads the current file member.
pub struct Members<R: Read> {
    source: Decoder<R>,
    limits: Limits,
    seen: HashSet<String>,
    headers: u64,
    total: u64,
    /// The current member, for errors.
    current: String,
    /// Bytes of the current member that were not read yet.
    left: u64,
    /// Filling after the current member.
    padding: u64,
    ended: bool,
}

/// Opens an archive, compressed or not.
///
/// # Errors
/// The first bytes are of a compression that is not supported.
pub fn open_members<R: Read>(source: R, limits: Limits) -> Result<Members<R>, ArchiveError> {
    Ok(Members {
        source: Decoder::new(source)?,
        limits,
        seen: HashSet::new(),
        headers: 0,
        total: 0,
        current: "its beginning".to_owned(),
        left: 0,
        padding: 0,
        ended: false,
    })
}

/// What extension headers say about the member after them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Members<R> {
    /// How the archive is compressed.
    pub fn compression(&self) -> Compression {
        self.source.compression()
    }

    /// The next member, None at the end of a complete archive. What is left of the one before is
    /// passed over.
    ///
    /// # Errors
    /// The stream is damaged or ends early; the member is refused, or over a limit; the name was
    /// there before.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        if self.headers > 0 {
            self.current = format!("the header after {}", self.current);
        }
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            self.headers += 1;
            if self.headers > self.limits.members.saturating_mul(3) {
                return Err(ArchiveError::TooManyMembers { limit: self.limits.members });
            }
            match header.entry_type() {
                EntryType::XGlobalHeader => {
                    self.extension(&header)?;
                }
                EntryType::XHeader => {
                    let records = self.extension(&header)?;
                    self.pax(&records, &mut extensions)?;
                }
                EntryType::GNULongName => extensions.name = Some(self.long_name(&header)?),
                EntryType::GNULongLink => extensions.link = Some(self.long_name(&header)?),
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// Reads into `buffer` from the current file member; 0 at its end.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Ok(0);
        }
        match read_some(&mut self.source, &mut buffer[..length]) {
            Ok(0) => Err(self.damaged(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) => Err(self.damaged(error)),
        }
    }

    /// The rest of the current file member, which must not be larger than `limit`.
    pub fn read_to_vec(&mut self, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.left > limit {
            let (member, size) = (self.current.clone(), self.left);
            return Err(ArchiveError::TooLarge { member, size, limit });
        }
        let mut bytes = Vec::new();
        let mut buffer = vec![0; STEP.min(self.left as usize + 1)];
        loop {
            match self.read_content(&mut buffer)? {
                0 => return Ok(bytes),
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn damaged(&self, error: io::Error) -> ArchiveError {
        ArchiveError::Damaged { member: self.current.clone(), error }
    }

    fn invalid(&self, message: &'static str) -> ArchiveError {
        self.damaged(io::Error::new(io::ErrorKind::InvalidData, message))
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let skip = self.left + self.padding;
        self.left = 0;
        self.padding = 0;
        let skipped = io::copy(&mut (&mut self.source).take(skip), &mut io::sink())
            .map_err(|error| self.damaged(error))?;
        if skipped < skip {
            return Err(self.damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize], ArchiveError> {
        let mut block = [0; BLOCK as usize];
        self.source.read_exact(&mut block).map_err(|error| self.damaged(error))?;
        Ok(block)
    }

    /// The next header, None at the end mark (two blocks of zeros). An archive without end mark was
    /// cut off.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let first = self.headers == 0;
        let block = self.block().map_err(|error| match error {
            // Too short for any archive, and not compressed: some other file.
            ArchiveError::Damaged { .. } if first && self.compression() == Compression::None => {
                ArchiveError::NotAnArchive
            }
            error => error,
        })?;
        if block.iter().all(|&byte| byte == 0) {
            if self.block()?.iter().any(|&byte| byte != 0) {
                return Err(self.invalid("the end mark is incomplete"));
            }
            self.trailer()?;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            // The sum is taken with spaces in its own place.
            .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(if first {
                ArchiveError::NotAnArchive
            } else {
                self.invalid("the header's checksum does not match")
            });
        }
        Ok(Some(header))
    }

    /// Reads what follows the end mark, which also makes the decompressor check its own checksum.
    fn trailer(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 16 << 10];
        let mut length = 0;
        loop {
            match read_some(&mut self.source, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    length += read as u64;
                    if length > MAX_TRAILER || buffer[..read].iter().any(|&byte| byte != 0) {
                        return Err(self.invalid("there is data after the end of the archive"));
                    }
                }
                Err(error) => return Err(self.damaged(error)),
            }
        }
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.entry_size().map_err(|error| self.damaged(error))?;
        if size > MAX_EXTENSION {
            return Err(self.invalid("an extension header is too large"));
        }
        self.left = size;
        self.padding = padding(size);
        let bytes = self.read_to_vec(MAX_EXTENSION)?;
        self.skip_rest()?;
        Ok(bytes)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Takes the pax records in that change what a member is.
    fn pax(&self, records: &[u8], extensions: &mut Extensions) -> Result<(), ArchiveError> {
        for (key, value) in PaxRecords(records)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.invalid("a pax header is damaged"))?
        {
            match key {
                b"path" => extensions.name = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extensions.size =
                        Some(size.ok_or_else(|| self.invalid("a pax size is no number"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(ArchiveError::refused(
                        extensions.name.as_deref().map_or(self.current.clone(), printable),
                        "it is a sparse file",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks a header that stands for a member.
    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
        let raw = extensions.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let refused = |reason| ArchiveError::refused(printable(&raw), reason);
        let name = normalise(&raw).map_err(refused)?;
        let size = match extensions.size {
            Some(size) => size,
            None => header.entry_size().map_err(|error| self.damaged(error))?,
        };
        let kind = match header.entry_type() {
            // Old archives mark directories by the slash alone.
            EntryType::Regular | EntryType::Continuous if raw.ends_with(b"/") => {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous => EntryKind::File { size },
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => {
                let target = match extensions.link {
                    Some(link) => link,
                    None => header.link_name_bytes().unwrap_or_default().into_owned(),
                };
                if name != LINK_NAME || target != LINK_TARGET.as_bytes() {
                    return Err(refused("it is a symbolic link"));
                }
                EntryKind::ParentLink
            }
            EntryType::Link => return Err(refused("it is a hard link")),
            EntryType::Char | EntryType::Block => return Err(refused("it is a device")),
            EntryType::Fifo => return Err(refused("it is a fifo")),
            EntryType::GNUSparse => return Err(refused("it is a sparse file")),
            _ => return Err(refused("it is of an unknown type")),
        };
        if kind != EntryKind::Directory {
            if name.is_empty() {
                return Err(refused("it has no name"));
            }
            if !self.seen.insert(name.clone()) {
                return Err(ArchiveError::Duplicate { member: name });
            }
        }
        if self.seen.len() as u64 > self.limits.members {
            return Err(ArchiveError::TooManyMembers { limit: self.limits.members });
        }
        let content = if let EntryKind::File { size } = kind { size } else { 0 };
        if content == 0 && size != 0 {
            return Err(refused("it has content that its type does not allow"));
        }
        self.total = self.total.saturating_add(content);
        if self.total > self.limits.total_bytes {
            return Err(ArchiveError::TooLarge {
                member: name,
                size: self.total,
                limit: self.limits.total_bytes,
            });
        }
        self.left = content;
        self.padding = padding(content);
        self.current.clone_from(&name);
        Ok(Entry { name, kind })
    }
}

/// Reads as a pipe wants to be read: a signal's arrival is no error.
fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Filling after `size` bytes of content.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

/// Iterates over `LENGTH KEY=VALUE\n` records; None for a damaged one.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = take_pax(&mut self.0);
        if record.is_none() {
            self.0 = &[];
        }
        Some(record)
    }
}

fn take_pax<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = rest.iter().take(12).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
    let (record, after) = rest.split_at_checked(length)?;
    *rest = after;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_taken_apart() {
        let all: Option<Vec<_>> = PaxRecords(b"11 path=ab\n18 size=123456789\n").collect();
        assert_eq!(all, Some(vec![(&b"path"[..], &b"ab"[..]), (b"size", b"123456789")]));
        for bad in
            [&b"x"[..], b"99 a=b\n", b"0 \n", b"5 ab\n", b"6 a=b?", b"18446744073709551616 a=b\n"]
        {
            assert_eq!(PaxRecords(bad).collect::<Option<Vec<_>>>(), None, "{bad:?}");
        }
    }
}
