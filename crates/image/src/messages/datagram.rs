//! Arctern's own: unread UDP datagrams (`arctern-datagrams.img`), in the order in which they came.

/// A datagram that waits in a socket. CRIU's images have no place for it.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct DatagramEntry {
    /// File id of the socket.
    #[prost(uint32, required, tag = "1")]
    pub id_for: u32,
    /// Bytes that follow the entry.
    #[prost(uint32, required, tag = "2")]
    pub length: u32,
    /// Address of the sender: 4 or 16 bytes in network order. Both addresses are of one family.
    #[prost(bytes = "vec", required, tag = "3")]
    pub source: Vec<u8>,
    /// Port of the sender.
    #[prost(uint32, required, tag = "4")]
    pub source_port: u32,
    /// Address that it was sent to.
    #[prost(bytes = "vec", required, tag = "5")]
    pub destination: Vec<u8>,
    /// TTL or hop limit that it arrived with.
    #[prost(uint32, optional, tag = "6")]
    pub ttl: Option<u32>,
    /// Type of service or traffic class that it arrived with.
    #[prost(uint32, optional, tag = "7")]
    pub tos: Option<u32>,
}
