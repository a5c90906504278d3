//! What was found in an archive, and whether it is what the manifest and the signature say.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use super::members::{Entry, EntryKind, Limits, Members, open_members};
use super::name::LINK_TARGET;
use super::{ArchiveError, STEP};
use crate::digest::{Digest, Hasher};
use crate::manifest::{MANIFEST_NAME, MAX_MANIFEST, Manifest, Member};
use crate::seal::{MAX_SIGNATURE, SIGNATURE_NAME, Signature, Unseal};

/// What an archive holds, while it is read.
#[derive(Default)]
pub(super) struct Ledger {
    /// Files and links, in order, without the manifest and its signature.
    pub found: Vec<Member>,
    directories: Vec<String>,
    manifest: Option<(Vec<u8>, Manifest)>,
    signature: Option<Vec<u8>>,
}

impl Ledger {
    pub fn directory(&mut self, name: &str) {
        self.directories.push(name.to_owned());
    }

    /// Takes the manifest or its signature in; gives the bytes of the manifest, and None for what is
    /// neither.
    pub fn document<R: Read>(
        &mut self,
        entry: &Entry,
        members: &mut Members<R>,
    ) -> Result<Option<Document>, ArchiveError> {
        let limit = match entry.name.as_str() {
            MANIFEST_NAME => MAX_MANIFEST,
            SIGNATURE_NAME => MAX_SIGNATURE,
            _ => return Ok(None),
        };
        let bytes = members.read_to_vec(limit)?;
        if entry.name == SIGNATURE_NAME {
            self.signature = Some(bytes);
            return Ok(Some(Document::Signature));
        }
        let manifest = Manifest::from_json(&bytes).map_err(ArchiveError::Manifest)?;
        self.manifest = Some((bytes.clone(), manifest));
        Ok(Some(Document::Manifest(bytes)))
    }

    /// Compares everything. An archive without a manifest is another program's.
    pub fn judge(self, unseal: &Unseal) -> Result<Judged, ArchiveError> {
        let Self { found, directories, manifest, signature } = self;
        let signature = match (&manifest, signature) {
            (Some((bytes, _)), Some(text)) => Some(Signature::check(&text, bytes)?),
            (None, Some(_)) => {
                return Err(ArchiveError::MissingMember { member: MANIFEST_NAME.to_owned() });
            }
            (_, None) => None,
        };
        if let Some(signers) = &unseal.signers {
            signers.accept(signature.as_ref())?;
        }
        if let Some((_, manifest)) = &manifest {
            compare(&found, &manifest.members)?;
            if signature.is_some() {
                no_more_directories(&directories, &found)?;
            }
        }
        Ok(Judged { found, manifest: manifest.map(|(_, manifest)| manifest), signature })
    }
}

/// A member that is about the others.
pub(super) enum Document {
    Manifest(Vec<u8>),
    Signature,
}

/// An archive that is what it says.
pub(super) struct Judged {
    pub found: Vec<Member>,
    pub manifest: Option<Manifest>,
    pub signature: Option<Signature>,
}

/// Reads a whole archive and compares it with its manifest and with the keys that must have signed it,
/// before anything of it is used.
///
/// # Errors
/// As for [`super::extract`]; it is not signed, or by somebody else.
pub fn verify<R: Read>(
    source: R,
    limits: Limits,
    unseal: &Unseal,
) -> Result<Option<Signature>, ArchiveError> {
    let mut members = open_members(crate::seal::open(source, unseal.keys.as_ref())?, limits)?;
    let mut ledger = Ledger::default();
    let mut buffer = vec![0; STEP];
    while let Some(entry) = members.next_entry()? {
        match entry.kind {
            EntryKind::Directory => ledger.directory(&entry.name),
            EntryKind::ParentLink => ledger.found.push(link_member(entry.name)),
            EntryKind::File { size } => {
                if ledger.document(&entry, &mut members)?.is_some() {
                    continue;
                }
                let mut hasher = Hasher::default();
                loop {
                    match members.read_content(&mut buffer)? {
                        0 => break,
                        read => hasher.update(&buffer[..read]),
                    }
                }
                let sha256 = hasher.finish();
                ledger.found.push(Member { name: entry.name, size, sha256, link: None });
            }
        }
    }
    ledger.judge(unseal).map(|judged| judged.signature)
}

/// The one link that an archive may have.
pub(super) fn link_member(name: String) -> Member {
    let sha256 = Digest::of(LINK_TARGET.as_bytes());
    Member { name, size: 0, sha256, link: Some(LINK_TARGET.to_owned()) }
}

/// Compares what is there with what the manifest says.
fn compare(found: &[Member], listed: &[Member]) -> Result<(), ArchiveError> {
    let mut expected: HashMap<&str, &Member> = HashMap::with_capacity(listed.len());
    for member in listed {
        if expected.insert(&member.name, member).is_some() {
            return Err(ArchiveError::Duplicate { member: member.name.clone() });
        }
    }
    for member in found {
        match expected.remove(member.name.as_str()) {
            Some(listed) if listed == member => {}
            Some(_) => return Err(ArchiveError::Mismatch { member: member.name.clone() }),
            None => return Err(ArchiveError::Unlisted { member: member.name.clone() }),
        }
    }
    match listed.iter().find(|member| expected.contains_key(member.name.as_str())) {
        Some(missing) => Err(ArchiveError::MissingMember { member: missing.name.clone() }),
        None => Ok(()),
    }
}

/// The manifest lists no directories: those that are not above a member are nobody's.
fn no_more_directories(directories: &[String], found: &[Member]) -> Result<(), ArchiveError> {
    let mut above = HashSet::new();
    for member in found {
        let mut name = member.name.as_str();
        while let Some((directory, _)) = name.rsplit_once('/') {
            if !above.insert(directory) {
                break;
            }
            name = directory;
        }
    }
    match directories.iter().find(|name| !name.is_empty() && !above.contains(name.as_str())) {
        Some(name) => Err(ArchiveError::Unlisted { member: name.clone() }),
        None => Ok(()),
    }
}
