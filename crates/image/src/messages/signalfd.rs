//! CRIU's `signalfd.proto`: signalfds (`files.img`).

use super::FownEntry;

/// CRIU's `signalfd_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SignalfdEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(message, required, tag = "3")]
    pub fown: FownEntry,
    #[prost(uint64, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub sigmask: u64,
}
