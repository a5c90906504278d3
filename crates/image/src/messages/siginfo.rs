//! CRIU's `siginfo.proto`: queued signals (inside `core-%u.img`).

/// CRIU's `siginfo_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SiginfoEntry {
    /// Raw 128-byte siginfo_t.
    #[prost(bytes = "vec", required, tag = "1")]
    #[serde(serialize_with = "super::readable::hex")]
    pub siginfo: Vec<u8>,
}

/// CRIU's `signal_queue_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SignalQueueEntry {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SiginfoEntry>,
}
