//! Reading what a summary is made from, in one pass: an archive, or a directory of images.
//!
//! Small files are taken into memory, within bounds; of pages only what was asked for: the command
//! lines, and a digest of each page for a comparison.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::SummaryError;
use crate::archive::{ArchiveError, Compression, EntryKind, Limits, open_members, verify};
use crate::images::{ImageDir, ImageKind, RecordReader};
use crate::messages::MmEntry;
use crate::pages::{PAGE_SIZE, Run, read_runs};
use crate::seal::{self, SIGNATURE_NAME, Unseal};

/// The largest file that is taken into memory, in bytes.
const MAX_FILE: u64 = 32 << 20;

/// The most that all of them may take together, in bytes.
const MAX_FILES: u64 = 256 << 20;

/// The most pages whose digests are kept: 64 GiB of memory.
const MAX_PAGES: u64 = 16 << 20;

/// The longest command line that is read, in bytes.
const MAX_COMMAND: u64 = 4096;

/// Directory of images in an archive.
const IMAGES: &str = "checkpoint/";

/// Members that are no images and are looked into.
const DOCUMENTS: &[&str] =
    &["config.dump", "spec.dump", "network.status", crate::manifest::MANIFEST_NAME, SIGNATURE_NAME];

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// How the archive is compressed; None for a directory.
    pub compression: Option<Compression>,
    /// Every file with its size in bytes, in the order of the archive.
    pub members: Vec<(String, u64)>,
    /// Contents of [`DOCUMENTS`].
    pub documents: BTreeMap<String, Vec<u8>>,
    /// Contents of images.
    pub images: BTreeMap<(ImageKind, u64), Vec<u8>>,
    /// Runs of the pages of processes, by pid, with the number of their pages file.
    pub maps: BTreeMap<u64, (u64, Vec<Run>)>,
    /// Command lines by pid, words separated by zero bytes.
    pub commands: BTreeMap<u64, Vec<u8>>,
    /// Digests of pages by pid and address.
    pub pages: BTreeMap<u64, BTreeMap<u64, u64>>,
}

/// What is read of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Command lines only.
    Commands,
    /// A digest of each page as well.
    Digests,
}

struct Reading {
    raw: Raw,
    pages: Pages,
    taken: u64,
    digests: u64,
}

/// Reads an archive or a directory.
pub(super) fn read(path: &Path, pages: Pages, unseal: &Unseal) -> Result<Raw, SummaryError> {
    let metadata = std::fs::metadata(path).map_err(SummaryError::io("look at", path))?;
    if !metadata.is_dir() {
        let open = || File::open(path).map_err(SummaryError::io("open", path));
        if unseal.signers.is_some() {
            verify(open()?, Limits::default(), unseal)?;
        }
        return read_stream(seal::open(open()?, unseal.keys.as_ref())?, path, pages);
    }
    if unseal.signers.is_some() {
        return Err(ArchiveError::Unsigned.into());
    }
    let mut reading = Reading { raw: Raw::default(), pages, taken: 0, digests: 0 };
    reading.directory(path)?;
    reading.done(path)
}

/// Reads an archive; `path` is for errors.
pub(super) fn read_stream(
    source: impl Read,
    path: &Path,
    pages: Pages,
) -> Result<Raw, SummaryError> {
    let mut reading = Reading { raw: Raw::default(), pages, taken: 0, digests: 0 };
    reading.archive(source)?;
    reading.done(path)
}

impl Reading {
    fn done(self, path: &Path) -> Result<Raw, SummaryError> {
        match self.raw.images.contains_key(&(ImageKind::Inventory, 0)) {
            true => Ok(self.raw),
            false => Err(SummaryError::NoCheckpoint(path.to_owned())),
        }
    }

    fn archive(&mut self, source: impl Read) -> Result<(), SummaryError> {
        let mut members = open_members(source, Limits::default())?;
        self.raw.compression = Some(members.compression());
        while let Some(entry) = members.next_entry()? {
            let EntryKind::File { size } = entry.kind else { continue };
            let mut source = Member(&mut members);
            self.file(&entry.name, size, &mut source)?;
            self.raw.members.push((entry.name, size));
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<(), SummaryError> {
        let images = ImageDir::open(path)?;
        for (kind, id) in images.list()? {
            let Some(mut file) = images.open_file(kind, id)? else { continue };
            let name = kind.file_name(id);
            let size =
                file.metadata().map_err(SummaryError::io("look at", &path.join(&name)))?.len();
            self.image(kind, id, &name, size, &mut file)?;
            self.raw.members.push((name, size));
        }
        Ok(())
    }

    fn file(&mut self, name: &str, size: u64, source: &mut impl Read) -> Result<(), SummaryError> {
        if DOCUMENTS.contains(&name) {
            let bytes = self.take(name, size, source)?;
            self.raw.documents.insert(name.to_owned(), bytes);
            return Ok(());
        }
        let image = name.strip_prefix(IMAGES).and_then(ImageKind::from_file_name);
        match image {
            Some((kind, id)) => self.image(kind, id, name, size, source),
            None => Ok(()),
        }
    }

    fn image(
        &mut self,
        kind: ImageKind,
        id: u64,
        name: &str,
        size: u64,
        source: &mut impl Read,
    ) -> Result<(), SummaryError> {
        match kind {
            ImageKind::Pages => self.pages(id, name, source),
            kind if !is_shown(kind) => Ok(()),
            _ => {
                let bytes = self.take(name, size, source)?;
                if kind == ImageKind::Pagemap {
                    let mut reader =
                        RecordReader::new(&bytes[..], bytes.len() as u64, kind, Path::new(name))?;
                    let (pages, runs, _) = read_runs(&mut reader)?;
                    self.raw.maps.insert(id, (pages.into(), runs));
                } else {
                    self.raw.images.insert((kind, id), bytes);
                }
                Ok(())
            }
        }
    }

    fn take(
        &mut self,
        name: &str,
        size: u64,
        source: &mut impl Read,
    ) -> Result<Vec<u8>, SummaryError> {
        self.taken = self.taken.saturating_add(size);
        if size > MAX_FILE || self.taken > MAX_FILES {
            return Err(SummaryError::TooLarge { name: name.to_owned(), size });
        }
        let mut bytes = Vec::new();
        source
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(SummaryError::io("read", name.as_ref()))?;
        Ok(bytes)
    }

    /// Goes through a pages file. Its pagemaps and address spaces come before it, because files are in
    /// the order of their names; without them there is nothing to look for.
    fn pages(&mut self, file: u64, name: &str, source: &mut impl Read) -> Result<(), SummaryError> {
        let wanted: Vec<u64> = self
            .raw
            .maps
            .iter()
            .filter(|(_, (pages, _))| *pages == file)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in wanted {
            // One pages file belongs to one process.
            let Some((_, runs)) = self.raw.maps.get(&pid) else { continue };
            let runs = runs.clone();
            let arguments = self.arguments(pid);
            let mut command = Vec::new();
            let mut digests = BTreeMap::new();
            let mut page = vec![0; PAGE_SIZE as usize];
            'runs: for run in runs.iter().filter(|run| run.flags.present) {
                for number in 0..run.nr_pages {
                    let needed = self.pages == Pages::Digests
                        || arguments.is_some_and(|(_, end)| run.vaddr + number * PAGE_SIZE < end);
                    if !needed {
                        break 'runs;
                    }
                    match source.read_exact(&mut page) {
                        Ok(()) => {}
                        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                            return Err(SummaryError::Short { name: name.to_owned() });
                        }
                        Err(e) => return Err(SummaryError::io("read", name.as_ref())(e)),
                    }
                    let address = run.vaddr + number * PAGE_SIZE;
                    if let Some((start, end)) = arguments {
                        let from = start.clamp(address, address + PAGE_SIZE) - address;
                        let to = end.clamp(address, address + PAGE_SIZE) - address;
                        command.extend_from_slice(&page[from as usize..to as usize]);
                    }
                    if self.pages == Pages::Digests {
                        self.digests += 1;
                        if self.digests > MAX_PAGES {
                            return Err(SummaryError::TooManyPages(MAX_PAGES));
                        }
                        digests.insert(address, digest(&page));
                    }
                }
            }
            self.raw.commands.insert(pid, command);
            self.raw.pages.insert(pid, digests);
        }
        Ok(())
    }

    /// Where the command line of a process is.
    fn arguments(&self, pid: u64) -> Option<(u64, u64)> {
        let bytes = self.raw.images.get(&(ImageKind::Mm, pid))?;
        let name = PathBuf::from(ImageKind::Mm.file_name(pid));
        let mut reader =
            RecordReader::new(&bytes[..], bytes.len() as u64, ImageKind::Mm, &name).ok()?;
        let mm: MmEntry = reader.required().ok()?;
        let end = mm.mm_arg_end.min(mm.mm_arg_start.checked_add(MAX_COMMAND)?);
        (mm.mm_arg_start < end).then_some((mm.mm_arg_start, end))
    }
}

/// The images that a summary is made from.
fn is_shown(kind: ImageKind) -> bool {
    matches!(
        kind,
        ImageKind::Inventory
            | ImageKind::Pstree
            | ImageKind::Core
            | ImageKind::Ids
            | ImageKind::Mm
            | ImageKind::Fdinfo
            | ImageKind::Files
            | ImageKind::Mountpoints
            | ImageKind::Utsns
            | ImageKind::Pagemap
    )
}

/// A digest that is the same in one run of the program, enough to tell that a page has changed.
fn digest(page: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(page);
    hasher.finish()
}

/// The current member of an archive as a stream.
struct Member<'a, R: Read>(&'a mut crate::archive::Members<R>);

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_content(buffer).map_err(io::Error::other)
    }
}

impl Raw {
    /// All records of an image; none if it is not there.
    pub fn records<M: prost::Message + Default>(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<Vec<M>, SummaryError> {
        match self.images.get(&(kind, id)) {
            None => Ok(Vec::new()),
            Some(bytes) => {
                let name = PathBuf::from(kind.file_name(id));
                let source = BufReader::new(&bytes[..]);
                let mut reader = RecordReader::new(source, bytes.len() as u64, kind, &name)?;
                Ok(reader.all()?)
            }
        }
    }

    /// The only record of an image.
    pub fn record<M: prost::Message + Default>(
        &self,
        kind: ImageKind,
        id: u64,
    ) -> Result<Option<M>, SummaryError> {
        Ok(self.records(kind, id)?.into_iter().next())
    }
}
