//! CRIU's `regfile.proto`: files opened by path (`files.img`).

use super::FownEntry;

/// CRIU's `reg_file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct RegFileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Flag set: rfile.flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    /// File offset.
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    #[prost(message, required, tag = "5")]
    pub fown: FownEntry,
    /// Absolute path, or path in mount namespace.
    #[prost(string, required, tag = "6")]
    pub name: String,
    /// Mnt_entry id; -1 unknown.
    #[prost(sint32, optional, tag = "7", default = "-1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt_id: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[prost(bool, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext: Option<bool>,
    #[prost(uint32, optional, tag = "10")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Note bytes packed in 32-bit words.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub build_id: Vec<u32>,
    #[prost(uint32, optional, tag = "12")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum_config: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum_parameter: Option<u32>,
}
