//! CRIU's `mm.proto`: an address space (`mm-%u.img`).

use super::VmaEntry;

/// CRIU's `aio_ring_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct AioRingEntry {
    #[prost(uint64, required, tag = "1")]
    pub id: u64,
    #[prost(uint32, required, tag = "2")]
    pub nr_req: u32,
    #[prost(uint32, required, tag = "3")]
    pub ring_len: u32,
}

/// CRIU's `mm_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct MmEntry {
    #[prost(uint64, required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_start_code: u64,
    #[prost(uint64, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_end_code: u64,
    #[prost(uint64, required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_start_data: u64,
    #[prost(uint64, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_end_data: u64,
    #[prost(uint64, required, tag = "5")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_start_stack: u64,
    #[prost(uint64, required, tag = "6")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_start_brk: u64,
    #[prost(uint64, required, tag = "7")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_brk: u64,
    #[prost(uint64, required, tag = "8")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_arg_start: u64,
    #[prost(uint64, required, tag = "9")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_arg_end: u64,
    #[prost(uint64, required, tag = "10")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_env_start: u64,
    #[prost(uint64, required, tag = "11")]
    #[serde(serialize_with = "super::readable::hex")]
    pub mm_env_end: u64,
    /// Reg file id.
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    /// Flat key,value words as in /proc auxv.
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mm_saved_auxv: Vec<u64>,
    /// Ascending by start.
    #[prost(message, repeated, tag = "14")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmas: Vec<VmaEntry>,
    #[prost(int32, optional, tag = "15")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dumpable: Option<i32>,
    #[prost(message, repeated, tag = "16")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aios: Vec<AioRingEntry>,
    #[prost(bool, optional, tag = "17")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thp_disabled: Option<bool>,
}
