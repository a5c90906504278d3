//! CRIU's `sk-packet.proto`: packets waiting in datagram and unix sockets (`sk-queues.img`).

/// CRIU's `scm_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ScmEntry {
    #[prost(uint32, required, tag = "1")]
    pub r#type: u32,
    /// File ids passed.
    #[prost(uint32, repeated, packed = "false", tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rights: Vec<u32>,
}

/// CRIU's `sk_packet_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct SkPacketEntry {
    /// File id of the socket whose receive queue holds the data.
    #[prost(uint32, required, tag = "1")]
    pub id_for: u32,
    /// Payload length following the entry.
    #[prost(uint32, required, tag = "2")]
    pub length: u32,
    #[prost(message, repeated, tag = "4")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scm: Vec<ScmEntry>,
    /// Arctern's own, passed over by CRIU: pid, uid and gid of the sender, where the reader asks for
    /// them (SO_PASSCRED).
    #[prost(uint32, repeated, packed = "false", tag = "4096")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sender: Vec<u32>,
    /// Arctern's own, passed over by CRIU: the name of the socket that sent a datagram, as in
    /// sun_path; empty without one.
    #[prost(bytes = "vec", optional, tag = "4097")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<u8>>,
}
