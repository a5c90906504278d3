//! CRIU's `pipe-data.proto`: bytes waiting in pipes (`pipes-data.img` and `fifo-data.img`).

/// CRIU's `pipe_data_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PipeDataEntry {
    #[prost(uint32, required, tag = "1")]
    pub pipe_id: u32,
    /// Payload length following the entry.
    #[prost(uint32, required, tag = "2")]
    pub bytes: u32,
    /// Pipe capacity.
    #[prost(uint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
}
