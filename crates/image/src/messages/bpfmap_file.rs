//! CRIU's `bpfmap-file.proto`: open BPF maps (`files.img`).

use super::FownEntry;

/// CRIU's `bpfmap_file_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct BpfmapFileEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// Flag set: rfile.flags.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(uint64, required, tag = "3")]
    pub pos: u64,
    #[prost(message, required, tag = "4")]
    pub fown: FownEntry,
    #[prost(uint32, required, tag = "5")]
    pub map_type: u32,
    #[prost(uint32, required, tag = "6")]
    pub key_size: u32,
    #[prost(uint32, required, tag = "7")]
    pub value_size: u32,
    #[prost(uint32, required, tag = "8")]
    pub map_id: u32,
    #[prost(uint32, required, tag = "9")]
    pub max_entries: u32,
    #[prost(uint32, required, tag = "10")]
    pub map_flags: u32,
    #[prost(uint64, required, tag = "11")]
    pub memlock: u64,
    #[prost(bool, required, tag = "12", default = "false")]
    pub frozen: bool,
    #[prost(string, required, tag = "13")]
    pub map_name: String,
    #[prost(uint32, required, tag = "14", default = "0")]
    pub ifindex: u32,
    #[prost(sint32, optional, tag = "15", default = "-1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt_id: Option<i32>,
    #[prost(uint64, optional, tag = "16")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map_extra: Option<u64>,
}
