//! CRIU's `ext-file.proto`: files that a plugin restores (`files.img`).

use super::FownEntry;

/// CRIU's `ext_file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ExtFileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(message, required, tag = "5")]
    pub fown: FownEntry,
}
