//! CRIU's `packet-sock.proto`: packet sockets (`files.img`).

use super::{FownEntry, SkOptsEntry};

/// CRIU's `packet_mclist`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PacketMclist {
    #[prost(uint32, required, tag = "1")]
    pub index: u32,
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(bytes = "vec", required, tag = "3")]
    #[serde(serialize_with = "super::readable::hex")]
    pub addr: Vec<u8>,
}

/// CRIU's `packet_ring`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PacketRing {
    #[prost(uint32, required, tag = "1")]
    pub block_size: u32,
    #[prost(uint32, required, tag = "2")]
    pub block_nr: u32,
    #[prost(uint32, required, tag = "3")]
    pub frame_size: u32,
    #[prost(uint32, required, tag = "4")]
    pub frame_nr: u32,
    #[prost(uint32, required, tag = "5")]
    pub retire_tmo: u32,
    #[prost(uint32, required, tag = "6")]
    pub sizeof_priv: u32,
    #[prost(uint32, required, tag = "7")]
    pub features: u32,
}

/// CRIU's `packet_sock_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct PacketSockEntry {
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    #[prost(uint32, required, tag = "2")]
    pub r#type: u32,
    #[prost(uint32, required, tag = "3")]
    pub protocol: u32,
    #[prost(uint32, required, tag = "4")]
    #[serde(serialize_with = "super::readable::hex")]
    pub flags: u32,
    #[prost(uint32, required, tag = "5")]
    pub ifindex: u32,
    #[prost(message, required, tag = "6")]
    pub fown: FownEntry,
    #[prost(message, required, tag = "7")]
    pub opts: SkOptsEntry,
    #[prost(uint32, required, tag = "8")]
    pub version: u32,
    #[prost(uint32, required, tag = "9")]
    pub reserve: u32,
    #[prost(bool, required, tag = "10")]
    pub aux_data: bool,
    #[prost(bool, required, tag = "11")]
    pub orig_dev: bool,
    #[prost(bool, required, tag = "12")]
    pub vnet_hdr: bool,
    #[prost(bool, required, tag = "13")]
    pub loss: bool,
    #[prost(uint32, required, tag = "14")]
    pub timestamp: u32,
    #[prost(uint32, required, tag = "15")]
    pub copy_thresh: u32,
    #[prost(message, repeated, tag = "16")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mclist: Vec<PacketMclist>,
    #[prost(uint32, optional, tag = "17", default = "4294967295")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fanout: Option<u32>,
    #[prost(message, optional, tag = "18")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_ring: Option<PacketRing>,
    #[prost(message, optional, tag = "19")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_ring: Option<PacketRing>,
    #[prost(uint32, optional, tag = "20")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_id: Option<u32>,
}
