//! CRIU's `pipe.proto`: ends of pipes (`files.img`).

use super::FownEntry;

/// CRIU's `pipe_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PipeEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Pipe inode; both ends share it.
    #[prost(uint32, required, tag = "2")]
    pub pipe_id: u32,
    #[prost(uint32, required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
}
