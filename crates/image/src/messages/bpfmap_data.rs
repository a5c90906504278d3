//! CRIU's `bpfmap-data.proto`: contents of BPF maps (`bpfmap-data.img`).

/// CRIU's `bpfmap_data_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct BpfmapDataEntry {
    #[prost(uint32, required, tag = "1")]
    pub map_id: u32,
    /// First payload.
    #[prost(uint32, required, tag = "2")]
    pub keys_bytes: u32,
    /// Second payload.
    #[prost(uint32, required, tag = "3")]
    pub values_bytes: u32,
    #[prost(uint32, required, tag = "4")]
    pub count: u32,
}
