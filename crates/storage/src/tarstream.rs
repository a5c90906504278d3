//! Reading a tar stream member by member.
//!
//! Understands ustar, pax (local and global records), GNU long names and GNU sparse files. The tar
//! crate parses the fields of headers; its own iterator is not used because it splits pax records
//! at line ends, where file names and extended attributes may well have one. Lengths are limited
//! before anything is allocated.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// The longest extension (pax records, long name) that is believed.
const MAX_EXTENSION: u64 = 16 << 20;
/// The longest content that is believed: no file system has longer files.
const MAX_CONTENT: u64 = i64::MAX as u64;
/// The most pieces of a sparse file that are believed.
const MAX_PIECES: usize = 1 << 20;

/// A member's header with what extensions say about it. Its content is read from the stream.
#[derive(Clone, Debug)]
pub struct Member {
    /// The header block.
    pub header: Header,
    /// Its type.
    pub kind: EntryType,
    /// Its path.
    pub path: Vec<u8>,
    /// Bytes of content.
    pub size: u64,
    /// Where it links to, for links.
    pub link: Option<Vec<u8>>,
    /// The pax records of this member, then those for all members, as they come.
    pub records: Vec<(String, Vec<u8>)>,
    /// For a sparse file: offset and length of its pieces, and its whole length.
    pub sparse: Option<(Vec<(u64, u64)>, u64)>,
}

/// A tar stream. Reading from it gives the content of the current member.
#[derive(Debug)]
pub struct TarStream<R> {
    input: R,
    /// Bytes of content that are still to be read.
    content: u64,
    /// Bytes of padding after them.
    padding: u64,
    global: Vec<(String, Vec<u8>)>,
    ended: bool,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: Read> TarStream<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        TarStream { input, content: 0, padding: 0, global: Vec::new(), ended: false }
    }

    /// The next member; `None` at the end. Content of the current one that was not read is skipped.
    ///
    /// # Errors
    /// `InvalidData` for a damaged archive, `UnexpectedEof` for one cut short, those of reading.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut local: Vec<(String, Vec<u8>)> = Vec::new();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match local.is_empty() && long_path.is_none() && long_link.is_none() {
                    true => Ok(None),
                    false => Err(damaged("the archive ends after an extension header")),
                };
            };
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|_| damaged("a size is no number"))?;
            match kind {
                EntryType::XHeader => local = parse_records(&self.extension(size)?)?,
                EntryType::XGlobalHeader => {
                    let records = parse_records(&self.extension(size)?)?;
                    for (key, value) in records {
                        self.global.retain(|(k, _)| *k != key);
                        self.global.push((key, value));
                    }
                }
                EntryType::GNULongName => long_path = Some(self.text(size)?),
                EntryType::GNULongLink => long_link = Some(self.text(size)?),
                _ => return self.member(header, kind, local, long_path, long_link).map(Some),
            }
        }
    }

    /// Records for all members that were met so far.
    pub fn global_records(&self) -> &[(String, Vec<u8>)] {
        &self.global
    }

    fn member(
        &mut self,
        header: Header,
        mut kind: EntryType,
        mut records: Vec<(String, Vec<u8>)>,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Member> {
        let inherited =
            self.global.iter().filter(|(k, _)| records.iter().all(|(have, _)| have != k));
        records.extend(inherited.cloned().collect::<Vec<_>>());
        let record = |key: &str| records.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        if records.iter().any(|(k, _)| k.starts_with("GNU.sparse.")) {
            return Err(damaged("sparse files in pax format are not supported"));
        }
        let size = match record("size") {
            None => header.entry_size()?,
            Some(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|t| t.parse().ok())
                .ok_or_else(|| damaged("a size is no number"))?,
        };
        if size > MAX_CONTENT {
            return Err(damaged("a size is larger than any file"));
        }
        let path = record("path").or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = record("linkpath")
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        if kind == EntryType::Regular && path.ends_with(b"/") {
            // How archives of before 1988 write directories.
            kind = EntryType::Directory;
        }
        let has_content = !matches!(
            kind,
            EntryType::Directory
                | EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Fifo
        );
        let sparse = match kind {
            EntryType::GNUSparse => Some(self.sparse_map(&header, size)?),
            _ => None,
        };
        self.content = if has_content { size } else { 0 };
        self.padding = self.content.next_multiple_of(BLOCK as u64) - self.content;
        let size = self.content;
        Ok(Member { header, kind, path, size, link, records, sparse })
    }

    /// The pieces of a GNU sparse file: four in the header, more in blocks that follow it.
    fn sparse_map(&mut self, header: &Header, size: u64) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let bad = |_| damaged("a sparse map is damaged");
        let gnu = header.as_gnu().ok_or_else(|| damaged("a sparse map is damaged"))?;
        let mut pieces = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> io::Result<()> {
            if !piece.is_empty() {
                pieces.push((piece.offset().map_err(bad)?, piece.length().map_err(bad)?));
            }
            match pieces.len() > MAX_PIECES {
                true => Err(damaged("a sparse file has too many pieces")),
                false => Ok(()),
            }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes())?;
            block.sparse().iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        let real = gnu.real_size().map_err(bad)?;
        let mut end = 0u64;
        let mut total = 0u64;
        for &(offset, len) in &pieces {
            let next = offset.checked_add(len).filter(|&n| offset >= end && n <= real);
            end = next.ok_or_else(|| damaged("a sparse map is damaged"))?;
            total += len;
        }
        match total == size {
            true => Ok((pieces, real)),
            false => Err(damaged("a sparse map is damaged")),
        }
    }

    /// The next header block; `None` at the end mark or the end of the stream.
    fn header(&mut self) -> io::Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        // The checksum counts its own field as spaces.
        let sum = |range: &[u8]| range.iter().map(|b| u32::from(*b)).sum::<u32>();
        let expected = sum(&block[..148]) + sum(&block[156..]) + 8 * 32;
        match header.cksum() {
            Ok(found) if found == expected => Ok(Some(header)),
            _ => Err(damaged("a header's checksum is wrong: this is no tar archive, or damaged")),
        }
    }

    /// The content of an extension header.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(damaged("an extension header is too long"));
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut body = Vec::new();
        self.read_to_end(&mut body)?;
        Ok(body)
    }

    /// A long name, without the zero byte that ends it.
    fn text(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut text = self.extension(size)?;
        if let Some(end) = text.iter().position(|b| *b == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    /// Skips what is left of the current member.
    fn skip(&mut self) -> io::Result<()> {
        let left = self.content + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())?;
        (self.content, self.padding) = (0, 0);
        match skipped == left {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.content).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buf[..want])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= got as u64;
        Ok(got)
    }
}

/// The records `LEN KEY=VALUE\n`, where LEN counts the whole record.
fn parse_records(mut body: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let bad = || damaged("a pax record is damaged");
    let mut records = Vec::new();
    while !body.is_empty() && body[0] != 0 {
        let space = body.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let digits = std::str::from_utf8(&body[..space]).map_err(|_| bad())?;
        let len: usize = digits.parse().map_err(|_| bad())?;
        let record = body.get(space + 1..len).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let key = String::from_utf8(record[..equals].to_vec()).map_err(|_| bad())?;
        records.push((key, record[equals + 1..].to_vec()));
        body = &body[len..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_line_ends_and_equal_signs() {
        let records = parse_records(b"12 a=b=\nc\0\n10 path=x\n").err();
        assert!(records.is_some(), "the first length is wrong");
        let records = parse_records(b"11 a=b=\nc\0\n10 path=x\n").expect("two records");
        assert_eq!(records[0], ("a".into(), b"b=\nc\0".to_vec()));
        assert_eq!(records[1], ("path".into(), b"x".to_vec()));
        for bad in [&b"5 a=b"[..], b"x a=b\n", b"3 a=b\n", b"99 a=b\n", b"6 abcd\n", b"0 \n"] {
            assert!(parse_records(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn damaged_streams_end_in_errors() {
        let read = |bytes: &[u8]| -> io::Result<usize> {
            let mut stream = TarStream::new(bytes);
            let mut count = 0;
            while stream.next_member()?.is_some() {
                count += 1;
            }
            Ok(count)
        };
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_ustar();
        header.set_path("a").expect("path");
        header.set_size(700);
        header.set_cksum();
        builder.append(&header, &[7u8; 700][..]).expect("append");
        let good = builder.into_inner().expect("archive");
        assert_eq!(read(&good).expect("good"), 1);
        assert_eq!(read(&good[..512 + 1024]).expect("without an end mark"), 1);
        assert!(read(&good[..1000]).is_err());
        assert!(read(&good[..100]).is_err());
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        assert!(read(&flipped).is_err());
        let mut huge = Header::new_ustar();
        huge.set_entry_type(EntryType::XHeader);
        huge.set_size(u64::MAX / 2);
        huge.set_cksum();
        assert!(read(huge.as_bytes()).is_err());
    }
}
