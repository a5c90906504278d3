//! Looking into an archive without unpacking it.

use std::collections::HashMap;
use std::io::Read;

use super::ArchiveError;
use super::members::{Entry, EntryKind, Limits, open_members};
use crate::seal::Unseal;

/// Reads the members with these names, each of at most `limit` bytes, and stops at the last of them.
/// Names that are not in the archive are not in the answer. Nothing is compared with digests: those
/// stand at the end of the archive, and [`super::extract`] checks them.
pub fn peek<R: Read>(
    source: R,
    names: &[&str],
    limit: u64,
) -> Result<HashMap<String, Vec<u8>>, ArchiveError> {
    peek_within(source, names, limit, Limits::default(), &Unseal::default())
}

/// As [`peek`], in an archive that asks for no more than `limits`: what lies before the last of the
/// names is unpacked to be passed over, which may be far more than the archive is long. Signatures are
/// not looked at: see [`super::verify`].
///
/// # Errors
/// As for [`super::extract`].
pub fn peek_within<R: Read>(
    source: R,
    names: &[&str],
    limit: u64,
    limits: Limits,
    unseal: &Unseal,
) -> Result<HashMap<String, Vec<u8>>, ArchiveError> {
    let mut members = open_members(crate::seal::open(source, unseal.keys.as_ref())?, limits)?;
    let mut found = HashMap::new();
    while found.len() < names.len() {
        let Some(entry) = members.next_entry()? else {
            break;
        };
        if matches!(entry.kind, EntryKind::File { .. }) && names.contains(&entry.name.as_str()) {
            let bytes = members.read_to_vec(limit)?;
            found.insert(entry.name, bytes);
        }
    }
    Ok(found)
}

/// The members of an archive in order.
pub fn list<R: Read>(source: R, limits: Limits) -> Result<Vec<Entry>, ArchiveError> {
    let mut members = open_members(source, limits)?;
    let mut entries = Vec::new();
    while let Some(entry) = members.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}
